//! Python binding: the extension module `knnlm._core`. The only place that names PyO3.

mod arrays;
mod call;
mod damage;
mod datastore;
mod documents;
mod error;
mod explain;
mod options;
mod parts;
mod reindex;

use crate::simd::Isa;
use pyo3::prelude::*;

/// The compiled half of the package.
#[pymodule]
#[pyo3(name = "_core")]
fn core_module(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("DEBUG", cfg!(debug_assertions))?;
    module.add("DEFAULT_RECALL", crate::search::DEFAULT_RECALL)?;
    module.add("StoreError", module.py().get_type::<error::StoreError>())?;
    module.add("FormatError", module.py().get_type::<error::FormatError>())?;
    module.add_class::<datastore::Datastore>()?;
    module.add_function(wrap_pyfunction!(instruction_sets, module)?)?;
    module.add_function(wrap_pyfunction!(plan_index, module)?)?;
    module.add_function(wrap_pyfunction!(parts::encode_part, module)?)?;
    module.add_function(wrap_pyfunction!(parts::add_part, module)?)?;
    module.add_function(wrap_pyfunction!(parts::calibrate, module)?)?;
    module.add_function(wrap_pyfunction!(parts::exact_nearest, module)?)?;
    module.add_function(wrap_pyfunction!(parts::plan_calibration, module)?)?;
    module.add_class::<reindex::Held>()?;
    module.add_function(wrap_pyfunction!(reindex::hold, module)?)?;
    module.add_function(wrap_pyfunction!(reindex::stage_codebook, module)?)?;
    module.add_function(wrap_pyfunction!(reindex::stage_lists, module)?)?;
    module.add_function(wrap_pyfunction!(reindex::reindex, module)?)?;
    Ok(())
}

/// Lists aimed at for `n` keys of dimension `dim`, and how many keys a build samples and holds as float32.
#[pyfunction]
#[pyo3(signature = (n, dim, nlist = None))]
fn plan_index(n: usize, dim: usize, nlist: Option<usize>) -> (usize, usize) {
    crate::index::plan(n, dim, nlist)
}

/// Names of the instruction sets of this CPU that kernels exist for, slowest first.
#[pyfunction]
fn instruction_sets() -> Vec<&'static str> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Isa::name).collect()
}
