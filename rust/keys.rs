//! Borrowed matrices of keys, as they lie in a mapped file.

use half::f16;
use std::ops::Range;

/// `n × d` keys in row-major order, f32 or f16.
#[derive(Clone, Copy, Debug)]
pub enum KeyRows<'a> {
    /// 32-bit floats, `n * d` of them.
    F32(&'a [f32]),
    /// 16-bit floats, `n * d` of them.
    F16(&'a [f16]),
}

/// Largest size of a coordinate for which every squared distance and inner product of `d` of them is a finite f32.
pub(crate) fn largest_coordinate(d: usize) -> f32 {
    (f32::MAX / 16.0 / d.max(1) as f32).sqrt()
}

/// Consecutive entries `first_id .. first_id + n` with their raw keys.
#[derive(Clone, Copy, Debug)]
#[doc(hidden)]
pub struct KeyBlock<'a> {
    /// Id of the first row.
    pub first_id: u64,
    /// Dimension of a key.
    pub d: usize,
    /// The keys.
    pub rows: KeyRows<'a>,
}

impl<'a> KeyRows<'a> {
    /// Some of the scalars.
    pub fn slice(&self, scalars: Range<usize>) -> KeyRows<'a> {
        match self {
            KeyRows::F32(x) => KeyRows::F32(&x[scalars]),
            KeyRows::F16(x) => KeyRows::F16(&x[scalars]),
        }
    }

    /// Number of scalars.
    pub fn len(&self) -> usize {
        match self {
            KeyRows::F32(x) => x.len(),
            KeyRows::F16(x) => x.len(),
        }
    }

    /// Whether there is no scalar.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes as they lie in memory.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            KeyRows::F32(x) => bytemuck::cast_slice(x),
            KeyRows::F16(x) => bytemuck::cast_slice(x),
        }
    }
}

impl<'a> KeyBlock<'a> {
    /// The keys at positions `span`.
    pub fn slice(&self, span: Range<usize>) -> KeyBlock<'a> {
        let scalars = span.start * self.d..span.end * self.d;
        KeyBlock { first_id: self.first_id + span.start as u64, d: self.d, rows: self.rows.slice(scalars) }
    }

    /// Number of keys.
    pub fn n(&self) -> usize {
        self.rows.len() / self.d.max(1)
    }

    /// Bytes of the keys.
    pub fn bytes(&self) -> u64 {
        match self.rows {
            KeyRows::F32(x) => size_of_val(x) as u64,
            KeyRows::F16(x) => size_of_val(x) as u64,
        }
    }

    /// Ids of the keys.
    pub fn ids(&self) -> Range<u64> {
        self.first_id..self.first_id + self.n() as u64
    }

    /// Copies row `i` into `out` (length `d`) as f32.
    pub fn read_row(&self, i: usize, out: &mut [f32]) {
        let span = i * self.d..(i + 1) * self.d;
        match self.rows {
            KeyRows::F32(x) => out.copy_from_slice(&x[span]),
            KeyRows::F16(x) => half::slice::HalfFloatSliceExt::convert_to_f32_slice(&x[span], out),
        }
    }
}
