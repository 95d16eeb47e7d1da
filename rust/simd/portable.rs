//! Kernels that the compiler vectorises well: one body, compiled once per instruction set.
//!
//! No fused multiply-add and a fixed order of additions: every instruction set gives the same bits.

use super::{LANES, Scores, TILE_LANES};

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

/// Product of a second-level code with a query; see [`super::Kernels::dot4`].
#[inline(always)]
pub fn dot4(codes: &[u8], query: &[i8], levels: &[u8; 16]) -> i32 {
    let mut sum = 0i32;
    for (unit, query) in codes.as_chunks::<64>().0.iter().zip(query.as_chunks::<128>().0) {
        let (low, high) = query.split_at(64);
        for ((&code, &l), &h) in unit.iter().zip(low).zip(high) {
            sum += i32::from(levels[usize::from(code & 15)]) * i32::from(l);
            sum += i32::from(levels[usize::from(code >> 4)]) * i32::from(h);
        }
    }
    sum
}

/// Integer products of rows with two panels, turned into scores; see [`super::Kernels::score_tile8`].
#[inline(always)]
pub fn score_tile8(
    rows: &[i8],
    width: usize,
    panels: &[u8],
    scales: &[f32],
    offsets: &[f32],
    factors: &[(f32, i32)],
    tile: &mut Scores,
) {
    for (i, row) in rows.chunks_exact(width).enumerate() {
        let mut dots = [0i32; TILE_LANES];
        for (dots, panel) in dots.as_chunks_mut::<LANES>().0.iter_mut().zip(panels.chunks_exact(LANES * width)) {
            for (query, keys) in row.as_chunks::<4>().0.iter().zip(panel.as_chunks::<64>().0) {
                for (dot, key) in dots.iter_mut().zip(keys.as_chunks::<4>().0) {
                    for t in 0..4 {
                        *dot += i32::from(key[t]) * i32::from(query[t]);
                    }
                }
            }
        }
        scores_of(&dots, scales, offsets, factors[i], &mut tile[i]);
    }
}

/// The end of [`score_tile8`]: score = offset + (factor · scale) · (dot − bias).
#[inline(always)]
pub fn scores_of(
    dots: &[i32; TILE_LANES],
    scales: &[f32],
    offsets: &[f32],
    (factor, bias): (f32, i32),
    out: &mut [f32; TILE_LANES],
) {
    for j in 0..TILE_LANES {
        out[j] = offsets[j] + (factor * scales[j]) * (dots[j] - bias) as f32;
    }
}

/// Keeps scores at most `limit`, and their entries, in order and in place; returns their number.
#[inline(always)]
pub fn keep_at_most(scores: &mut [f32], entries: &mut [u32], limit: f32) -> usize {
    let mut kept = 0;
    for i in 0..scores.len().min(entries.len()) {
        let (score, entry) = (scores[i], entries[i]);
        scores[kept] = score;
        entries[kept] = entry;
        kept += usize::from(score <= limit);
    }
    kept
}

/// Writes the positions of values at most `limit` to `out` in order; returns their number.
#[inline(always)]
pub fn find_at_most(values: &[f32], limit: f32, out: &mut [u32]) -> usize {
    let mut found = 0;
    for (i, &value) in values.iter().enumerate() {
        out[found] = i as u32;
        found += usize::from(value <= limit);
    }
    found
}

/// The greatest value at most `limit`; −∞ if there is none.
#[inline(always)]
pub fn greatest_at_most(values: &[f32], limit: f32) -> f32 {
    let mut most = [f32::NEG_INFINITY; 32];
    let (chunks, rest) = values.as_chunks::<32>();
    for chunk in chunks {
        for (most, &value) in most.iter_mut().zip(chunk) {
            let value = if value <= limit { value } else { f32::NEG_INFINITY };
            *most = if value > *most { value } else { *most };
        }
    }
    let rest = rest.iter().copied().filter(|&value| value <= limit);
    most.into_iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// The least value (no NaN); +∞ if there is none.
#[inline(always)]
pub fn least(values: &[f32]) -> f32 {
    let mut least = [f32::INFINITY; 32];
    let (chunks, rest) = values.as_chunks::<32>();
    for chunk in chunks {
        for (least, &value) in least.iter_mut().zip(chunk) {
            *least = if value < *least { value } else { *least };
        }
    }
    least.into_iter().chain(rest.iter().copied()).fold(f32::INFINITY, |a, b| if b < a { b } else { a })
}
