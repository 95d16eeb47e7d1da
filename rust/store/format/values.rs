//! Values: what a store remembers with each key.

use super::records::ValueType;
use crate::error::Why;
use crate::{Error, Result};
use std::ops::Range;

/// Borrowed values, as a caller has them or as they lie in a mapped file.
#[derive(Clone, Copy, Debug)]
pub enum ValueRows<'a> {
    /// 32-bit.
    U32(&'a [u32]),
    /// 64-bit.
    U64(&'a [u64]),
}

/// Owned values in the type of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Values {
    /// 32-bit.
    U32(Vec<u32>),
    /// 64-bit.
    U64(Vec<u64>),
}

/// Where values are written, in the type of the store.
pub enum ValuesMut<'v> {
    /// 32-bit.
    U32(&'v mut [u32]),
    /// 64-bit.
    U64(&'v mut [u64]),
}

impl ValuesMut<'_> {
    /// Writes value `i`; `None` = missing, all ones.
    pub(crate) fn set(&mut self, i: usize, value: Option<u64>) {
        match self {
            ValuesMut::U32(x) => x[i] = value.map_or(u32::MAX, |v| v as u32),
            ValuesMut::U64(x) => x[i] = value.unwrap_or(u64::MAX),
        }
    }
}

impl Values {
    /// `n` zeros.
    pub(crate) fn zeros(value_type: ValueType, n: usize) -> Values {
        match value_type {
            ValueType::Uint32 => Values::U32(vec![0; n]),
            ValueType::Uint64 => Values::U64(vec![0; n]),
        }
    }

    /// All of them, to be written.
    pub(crate) fn as_mut(&mut self) -> ValuesMut<'_> {
        match self {
            Values::U32(x) => ValuesMut::U32(x),
            Values::U64(x) => ValuesMut::U64(x),
        }
    }
}

impl<'a> ValueRows<'a> {
    /// The values of some rows.
    pub(crate) fn slice(&self, rows: Range<usize>) -> ValueRows<'a> {
        match self {
            ValueRows::U32(x) => ValueRows::U32(&x[rows]),
            ValueRows::U64(x) => ValueRows::U64(&x[rows]),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            ValueRows::U32(x) => x.len(),
            ValueRows::U64(x) => x.len(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes as they lie in memory.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            ValueRows::U32(x) => bytemuck::cast_slice(x),
            ValueRows::U64(x) => bytemuck::cast_slice(x),
        }
    }

    /// Value `i`.
    pub fn get(&self, i: usize) -> u64 {
        match self {
            ValueRows::U32(x) => u64::from(x[i]),
            ValueRows::U64(x) => x[i],
        }
    }

    /// Refuses values above `max_value` or too large for `value_type`, naming the first. All ones means missing.
    pub(crate) fn check(&self, value_type: ValueType, max_value: Option<u64>) -> Result<()> {
        let width = match value_type {
            ValueType::Uint32 => u64::from(u32::MAX),
            ValueType::Uint64 => u64::MAX,
        };
        let limit = max_value.unwrap_or(u64::MAX).min(width - 1);
        let bad = match self {
            ValueRows::U32(x) => x.iter().position(|&v| u64::from(v) > limit),
            ValueRows::U64(x) => x.iter().position(|&v| v > limit),
        };
        let Some(row) = bad else { return Ok(()) };
        let found = self.get(row);
        Err(Error::Argument(if found > width {
            format!(
                "value of row {row}: expected at most {width} (uint32), found {found}; create the store for uint64 values. Nothing was added"
            )
        } else if found == width {
            format!(
                "value of row {row}: expected at most {limit}, found {found}, which means a missing value; nothing was added"
            )
        } else {
            format!("value of row {row}: expected at most max_value = {limit}, found {found}; nothing was added")
        }))
    }

    /// Bytes in the type of the store; values were checked.
    pub(crate) fn with_bytes<T>(&self, value_type: ValueType, mut put: impl FnMut(&[u8]) -> Result<T>) -> Result<T> {
        match (self, value_type) {
            (ValueRows::U32(x), ValueType::Uint32) => put(bytemuck::cast_slice(x)),
            (ValueRows::U64(x), ValueType::Uint64) => put(bytemuck::cast_slice(x)),
            (ValueRows::U32(x), ValueType::Uint64) => {
                let wide: Vec<u64> = x.iter().map(|&v| u64::from(v)).collect();
                put(bytemuck::cast_slice(&wide))
            }
            (ValueRows::U64(x), ValueType::Uint32) => {
                let narrow: Vec<u32> = x.iter().map(|&v| v as u32).collect();
                put(bytemuck::cast_slice(&narrow))
            }
        }
    }
}

impl Values {
    /// No values, room for `n`.
    pub(crate) fn with_capacity(value_type: ValueType, n: usize) -> Values {
        match value_type {
            ValueType::Uint32 => Values::U32(Vec::with_capacity(n)),
            ValueType::Uint64 => Values::U64(Vec::with_capacity(n)),
        }
    }

    /// No values, room for `n` that a file may have asked for; an error if there is no such memory.
    pub(crate) fn try_with_capacity(value_type: ValueType, n: u64) -> Result<Values> {
        let mut values = Values::with_capacity(value_type, 0);
        let room = usize::try_from(n).ok().and_then(|n| match &mut values {
            Values::U32(x) => x.try_reserve_exact(n).ok(),
            Values::U64(x) => x.try_reserve_exact(n).ok(),
        });
        match room {
            Some(()) => Ok(values),
            None => Err(Error::state(
                Why::Resources,
                format!("expected memory for {n} values, found too little; ask for fewer at a time"),
            )),
        }
    }

    /// Appends a value that fits; `None` = missing, all ones.
    pub(crate) fn push(&mut self, value: Option<u64>) {
        match self {
            Values::U32(x) => x.push(value.map_or(u32::MAX, |v| v as u32)),
            Values::U64(x) => x.push(value.unwrap_or(u64::MAX)),
        }
    }

    /// Appends a span of a mapped section of the same type.
    pub(crate) fn extend(&mut self, rows: ValueRows, span: std::ops::Range<usize>) {
        match (self, rows) {
            (Values::U32(x), ValueRows::U32(rows)) => x.extend_from_slice(&rows[span]),
            (Values::U64(x), ValueRows::U64(rows)) => x.extend_from_slice(&rows[span]),
            (out, rows) => span.for_each(|i| out.push(Some(rows.get(i)))),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Values::U32(x) => x.len(),
            Values::U64(x) => x.len(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
