//! NumPy arrays as slices, and vectors as NumPy arrays. Nothing is copied in either direction.

use crate::keys::KeyRows;
use crate::store::{ValueRows, ValueType, Values, ValuesMut};
use crate::{Error, Result};
use half::f16;
use numpy::{Element, IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray1};
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

/// A new array `(n,)`, not written yet. NumPy asks the system for large pages for large ones, which are then much faster to
/// fill, and says so if there is no such memory.
pub fn empty<'py, T: Element>(py: Python<'py>, n: usize) -> PyResult<Bound<'py, PyArray1<T>>> {
    let made = py.import("numpy")?.call_method1("empty", (n, T::get_dtype(py)))?;
    Ok(made.cast_into::<PyArray1<T>>()?)
}

/// A new array of values `(n,)` in the type of the store, not written yet.
pub enum NewValues<'py> {
    /// uint32.
    U32(Bound<'py, PyArray1<u32>>),
    /// uint64.
    U64(Bound<'py, PyArray1<u64>>),
}

/// The same, to be written.
pub enum LentValues<'py> {
    /// uint32.
    U32(PyReadwriteArray1<'py, u32>),
    /// uint64.
    U64(PyReadwriteArray1<'py, u64>),
}

impl<'py> NewValues<'py> {
    /// See [`empty`].
    pub fn empty(py: Python<'py>, value_type: ValueType, n: usize) -> PyResult<NewValues<'py>> {
        Ok(match value_type {
            ValueType::Uint32 => NewValues::U32(empty(py, n)?),
            ValueType::Uint64 => NewValues::U64(empty(py, n)?),
        })
    }

    /// Lends it for writing.
    pub fn lend(&self) -> LentValues<'py> {
        match self {
            NewValues::U32(values) => LentValues::U32(values.readwrite()),
            NewValues::U64(values) => LentValues::U64(values.readwrite()),
        }
    }

    /// As Python sees it.
    pub fn into_any(self) -> Bound<'py, PyAny> {
        match self {
            NewValues::U32(values) => values.into_any(),
            NewValues::U64(values) => values.into_any(),
        }
    }
}

impl LentValues<'_> {
    /// As the core writes it.
    pub fn slice(&mut self) -> PyResult<ValuesMut<'_>> {
        Ok(match self {
            LentValues::U32(values) => ValuesMut::U32(values.as_slice_mut()?),
            LentValues::U64(values) => ValuesMut::U64(values.as_slice_mut()?),
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
