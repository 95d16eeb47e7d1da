//! Vectors rounded to 8 bits, packed one after the other: what the coarse step and the second level multiply with.

use super::levels::{LEVELS, MIDDLE};
use super::second::UNIT;
use crate::aligned::Aligned;
use crate::simd::{ByteQuery, Kernels};
use std::ops::Range;

/// Rotated vectors of dimension d: ⟨q, x⟩ ≈ scale · Σ numbers · x. Rows are padded with zeros to whole units.
#[derive(Clone, Debug, Default)]
pub struct ByteRows {
    width: usize,
    numbers: Aligned<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

/// Length of a padded row of dimension `d`.
pub fn padded(d: usize) -> usize {
    d.next_multiple_of(UNIT)
}

impl ByteRows {
    /// Bytes that it holds on to.
    pub fn capacity(&self) -> usize {
        self.numbers.capacity() + 4 * (self.scales.capacity() + self.sums.capacity())
    }

    /// Empties it for rows of dimension `d`; keeps its memory.
    pub fn reset(&mut self, d: usize) {
        self.width = padded(d);
        self.numbers.resize(0);
        self.scales.clear();
        self.sums.clear();
    }

    /// Rounds rows of dimension `d`.
    pub fn of(kernels: &Kernels, d: usize, rows: &[f32]) -> ByteRows {
        let mut bytes = ByteRows::default();
        bytes.reset(d);
        rows.chunks_exact(d).for_each(|row| bytes.push(kernels, row));
        bytes
    }

    /// Appends a row, rounded to the nearest of 255 steps.
    pub fn push(&mut self, kernels: &Kernels, row: &[f32]) {
        let start = self.numbers.len();
        self.numbers.resize(start + self.width);
        let (scale, sum) = kernels.round_bytes(row, &mut self.numbers[start..start + row.len()]);
        self.scales.push(scale);
        self.sums.push(sum);
    }

    /// Length of a padded row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.scales.len()
    }

    /// Numbers of some rows: for every four dimensions, four of each row.
    pub fn interleaved(&self, rows: Range<usize>) -> Vec<i8> {
        let (q, width) = (rows.len(), self.width);
        let mut out = vec![[0i8; 4]; q * width / 4];
        let numbers = &self.numbers[rows.start * width..rows.end * width];
        for (i, row) in numbers.chunks_exact(width).enumerate() {
            out[i..].iter_mut().step_by(q).zip(row.as_chunks::<4>().0).for_each(|(out, part)| *out = *part);
        }
        out.into_flattened()
    }

    /// Numbers of row `i`.
    pub fn row(&self, i: usize) -> &[i8] {
        &self.numbers[i * self.width..(i + 1) * self.width]
    }

    /// Length of a step, and the sum of the numbers, of row `i`.
    pub fn scale_and_sum(&self, i: usize) -> (f32, i32) {
        (self.scales[i], self.sums[i])
    }

    /// Row `i` as the query of 4-bit codes.
    pub fn query(&self, i: usize) -> ByteQuery<'_> {
        ByteQuery { numbers: self.row(i), levels: &LEVELS, scale: self.scales[i], bias: MIDDLE * self.sums[i] }
    }
}
