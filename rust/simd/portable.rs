//! Kernels that the compiler vectorises well: one body, compiled once per instruction set.
//!
//! No fused multiply-add and a fixed order of additions: every instruction set gives the same bits.

use super::LANES;

/// Fast Walsh–Hadamard transform of `x` in place, not normalised; the length is a power of two.
#[inline(always)]
pub fn hadamard(x: &mut [f32]) {
    debug_assert!(x.len().is_power_of_two());
    let mut half = x.len() / 2;
    while half >= 1 {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half /= 2;
    }
}

/// Number of values at most `limit` (NaN is not).
#[inline(always)]
pub fn count_at_most(values: &[f32], limit: f32) -> usize {
    let mut total = 0;
    for chunk in values.chunks(1 << 16) {
        total += chunk.iter().map(|&v| u32::from(v <= limit)).sum::<u32>() as usize;
    }
    total
}

/// Inner product of each of the `c` words of a sub-quantiser (`words`: dsub × c) with `part` (dsub), into `out` (c).
#[inline(always)]
pub fn word_products(part: &[f32], words: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (&x, row) in part.iter().zip(words.chunks_exact(out.len())) {
        for (o, &w) in out.iter_mut().zip(row) {
            *o += x * w;
        }
    }
}

/// Number of the word of a sub-quantiser (`words`: dsub × C) nearest to `part` (dsub); the first of equals.
#[inline(always)]
pub fn nearest_word<const C: usize>(part: &[f32], words: &[f32]) -> usize {
    let mut distances = [0f32; C];
    for (&x, row) in part.iter().zip(words.as_chunks::<C>().0) {
        for (o, &w) in distances.iter_mut().zip(row) {
            let e = x - w;
            *o += e * e;
        }
    }
    let mut least = f32::INFINITY;
    for &v in &distances {
        least = if v < least { v } else { least };
    }
    distances.iter().position(|&v| v == least).unwrap_or(0)
}

/// Codes of `x` (m × dsub): for each sub-quantiser the nearest of its C words (`words`: m × dsub × C).
#[inline(always)]
pub fn encode<const C: usize>(x: &[f32], dsub: usize, words: &[f32], codes: &mut [u8]) {
    for ((part, words), code) in x.chunks_exact(dsub).zip(words.chunks_exact(dsub * C)).zip(codes) {
        *code = nearest_word::<C>(part, words) as u8;
    }
}

/// Copies 16 rows of length `d` into a panel (d × 16).
#[inline(always)]
pub fn pack_panel(rows: &[f32], d: usize, panel: &mut [f32]) {
    let row: [&[f32]; LANES] = std::array::from_fn(|lane| &rows[lane * d..(lane + 1) * d]);
    for (t, out) in panel.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        for lane in 0..LANES {
            out[lane] = row[lane][t];
        }
    }
}
