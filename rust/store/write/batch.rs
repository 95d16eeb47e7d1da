//! Checks a batch of keys before anything of it is written: shape, finite numbers, what the stored type can hold.

use crate::keys::KeyRows;
use crate::store::format::records::KeyType;
use crate::store::format::values::ValueRows;
use crate::{Error, Result};

/// Number of rows.
pub(crate) fn check_rows(d: usize, keys: &KeyRows, values: &ValueRows) -> Result<usize> {
    let expected = values.len().checked_mul(d);
    if expected != Some(keys.len()) {
        return Err(Error::Argument(format!(
            "expected keys of {} rows × {d} dimensions to go with {} values, found {} numbers ({} rows); nothing was added",
            values.len(),
            values.len(),
            keys.len(),
            keys.len() as f64 / d as f64
        )));
    }
    Ok(values.len())
}

/// Refuses a sample of keys that is not whole rows of finite numbers.
pub(crate) fn check_sample(d: usize, keys: &KeyRows) -> Result<()> {
    if keys.is_empty() || !keys.len().is_multiple_of(d) {
        return Err(Error::Argument(format!("sample: expected rows of {d} numbers, found {} numbers", keys.len())));
    }
    check_keys(d, keys, KeyType::Float32)
}

/// Refuses NaN, infinities and what f16 cannot hold, naming the first row and column.
pub(crate) fn check_keys(d: usize, keys: &KeyRows, key_type: KeyType) -> Result<()> {
    // 65,520 is half-way between the largest f16 and the next power of two: from there on rounding gives infinity.
    const F16_OVERFLOW: f32 = 65_520.0;
    let place = |i: usize| format!("key of row {}, column {}", i / d, i % d);
    let largest = crate::keys::largest_coordinate(d);
    let bad = match keys {
        KeyRows::F32(x) => first(x, |v| v.is_nan() || v.abs() > largest).map(|i| (i, x[i])),
        KeyRows::F16(x) => first(x, |v| !v.is_finite()).map(|i| (i, x[i].to_f32())),
    };
    if let Some((i, found)) = bad {
        return Err(Error::Argument(format!(
            "{}: expected a finite number of at most {largest:.1e} in size (else distances overflow), found {found}; nothing was added",
            place(i)
        )));
    }
    if let (KeyRows::F32(x), KeyType::Float16) = (keys, key_type)
        && let Some(i) = first(x, |v| v.abs() >= F16_OVERFLOW)
    {
        return Err(Error::Argument(format!(
            "{}: expected at most 65504 in size (float16), found {}; scale the keys, or create the store with keep_keys float32. Nothing was added",
            place(i),
            x[i]
        )));
    }
    Ok(())
}

/// Index of the first element that is bad. Whole chunks are tested without an early end, which vectorises.
fn first<T: Copy>(x: &[T], is_bad: impl Fn(T) -> bool) -> Option<usize> {
    const CHUNK: usize = 1024;
    let chunk = x.chunks(CHUNK).position(|chunk| chunk.iter().fold(false, |any, &v| any | is_bad(v)))?;
    x[chunk * CHUNK..].iter().position(|&v| is_bad(v)).map(|i| chunk * CHUNK + i)
}
