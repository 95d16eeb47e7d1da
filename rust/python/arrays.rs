//! NumPy arrays as slices, and vectors as NumPy arrays. Nothing is copied in either direction.

use crate::keys::KeyRows;
use crate::store::{ValueRows, Values};
use crate::{Error, Result};
use half::f16;
use numpy::{IntoPyArray, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use std::ops::Range;

/// Keys `(n, d)` that Python lends, C-contiguous.
#[derive(FromPyObject)]
pub enum KeyArray<'py> {
    /// float32.
    F32(PyReadonlyArray2<'py, f32>),
    /// float16.
    F16(PyReadonlyArray2<'py, f16>),
}

/// Values `(n,)` that Python lends, contiguous.
#[derive(FromPyObject)]
pub enum ValueArray<'py> {
    /// uint32.
    U32(PyReadonlyArray1<'py, u32>),
    /// uint64.
    U64(PyReadonlyArray1<'py, u64>),
}

impl KeyArray<'_> {
    /// The keys as the core takes them.
    pub fn rows(&self) -> PyResult<KeyRows<'_>> {
        Ok(match self {
            KeyArray::F32(array) => KeyRows::F32(array.as_slice()?),
            KeyArray::F16(array) => KeyRows::F16(array.as_slice()?),
        })
    }
}

impl ValueArray<'_> {
    /// The values as the core takes them.
    pub fn rows(&self) -> PyResult<ValueRows<'_>> {
        Ok(match self {
            ValueArray::U32(array) => ValueRows::U32(array.as_slice()?),
            ValueArray::U64(array) => ValueRows::U64(array.as_slice()?),
        })
    }
}

/// Values `(n,)` for Python, in the type of the store.
pub fn value_array<'py>(py: Python<'py>, values: Values) -> Bound<'py, PyAny> {
    match values {
        Values::U32(values) => values.into_pyarray(py).into_any(),
        Values::U64(values) => values.into_pyarray(py).into_any(),
    }
}

/// Half-open id ranges of an array `(q, 2)`.
pub fn ranges(array: &PyReadonlyArray2<'_, i64>) -> Result<Vec<Range<u64>>> {
    let bound =
        |id: i64| u64::try_from(id).map_err(|_| Error::Argument(format!("exclude: expected ids from 0, found {id}")));
    array.as_array().rows().into_iter().map(|row| Ok(bound(row[0])?..bound(row[1])?)).collect()
}
