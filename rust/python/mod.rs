//! Python binding: the extension module `knnlm._core`. The only place that names PyO3.

mod arrays;
mod call;
mod datastore;
mod documents;
mod error;
mod options;

use crate::simd::Isa;
use pyo3::prelude::*;

/// The compiled half of the package.
#[pymodule]
#[pyo3(name = "_core")]
fn core_module(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("DEBUG", cfg!(debug_assertions))?;
    module.add("StoreError", module.py().get_type::<error::StoreError>())?;
    module.add("FormatError", module.py().get_type::<error::FormatError>())?;
    module.add_class::<datastore::Datastore>()?;
    module.add_function(wrap_pyfunction!(instruction_sets, module)?)?;
    Ok(())
}

/// Names of the instruction sets of this CPU that kernels exist for, slowest first.
#[pyfunction]
fn instruction_sets() -> Vec<&'static str> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Isa::name).collect()
}
