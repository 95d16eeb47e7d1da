//! The kernels in plain Rust: they define the answer of every other instruction set.
//!
//! The first-level scan, `scan4`, is what most of a search's time goes into. A block has 16 entries: units of 64 bytes, each for
//! 8 sub-quantisers, then 16 factors A and 16 factors B. A query has a table of 16 numbers from 0 to 127 for each sub-quantiser.
//!
//! ```text
//! for each block:
//!     sum[0..16] = 0
//!     for each unit g, with the tables of its 8 sub-quantisers:
//!         for lane j in 0..4, entry v in 0..16:
//!             byte    = unit[16 j + v]                     low nibble: sub-quantiser 8 g + j, high: 8 g + 4 + j
//!             sum[v] += table[8 g + j][byte & 15] + table[8 g + 4 + j][byte >> 4]
//!     for each entry v:
//!         score = (base + A[v]) + B[v] * (scale * sum[v] + bias)
//!         if score <= limit: append (score, first + v)
//! ```
//!
//! Sums are integers, so that any order of additions gives the same; the last lines are floats and have one order everywhere.
//! Departures:
//!
//! 1. `neon`: a lane is a register and a table look-up an instruction (`vqtbl1q`); sums have 16 bits and are folded after 64
//!    units, before they could overflow.
//! 2. `avx2`: two lanes a register (`vpshufb` looks up within each), so that the halves are added at the end of a block. Up to
//!    six queries share the codes of a block, here and below.
//! 3. `avx512`: a unit is one register, four lanes with four tables. Scores of a block are compared at once, and those that pass
//!    are compressed to where they go: no branch on an entry.
//! 4. `avx512vnni`: the bytes of a unit are turned from 16 j + v to 4 v + j, so that the four codes of an entry lie in one 32-bit
//!    lane. A look-up in 64 bytes (`vpermb`) then serves four tables, and `vpdpbusd` adds the four numbers to 32-bit sums,
//!    which never overflow.
//!
//! An entry of `scan_levels` lies turned already; instead of a table its levels are multiplied with the query in 8 bits.

use super::operands::{LANES, ScanQuery, TILE_LANES, Tile};
use super::portable::keep;
use half::f16;

/// Partial sums of the direct distances; fixed so that every instruction set adds in the same order.
pub const SUMS: usize = 64;

/// Scores `rows` (q × d, q ≤ 12) against two panels (each d × 16): `offsets[j] + scale * ⟨row_i, key_j⟩`.
pub fn score_tile(
    rows: &[f32],
    d: usize,
    panels: &[f32],
    offsets: &[f32],
    scale: f32,
    limits: &[f32],
    tile: &mut Tile,
) {
    let (left, right) = panels.split_at(d * LANES);
    for (i, row) in rows.chunks_exact(d).enumerate() {
        let mut products = [0f32; TILE_LANES];
        for ((&x, l), r) in row.iter().zip(left.as_chunks::<LANES>().0).zip(right.as_chunks::<LANES>().0) {
            for j in 0..LANES {
                products[j] += x * l[j];
                products[j + LANES] += x * r[j];
            }
        }
        let mut hits = 0;
        for j in 0..TILE_LANES {
            let score = offsets[j] + scale * products[j];
            tile.scores[i][j] = score;
            hits |= u32::from(score <= limits[i]) << j;
        }
        tile.hits[i] = hits;
    }
}

/// Adds the 64 partial sums in a fixed tree.
#[inline(always)]
pub fn fold(mut sums: [f32; SUMS]) -> f32 {
    let mut half = SUMS / 2;
    while half >= 1 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

#[inline(always)]
fn sum_terms<T: Copy>(a: &[f32], b: &[T], term: impl Fn(f32, T) -> f32) -> f32 {
    let mut sums = [0f32; SUMS];
    for (a, b) in a.chunks(SUMS).zip(b.chunks(SUMS)) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += term(a, b);
        }
    }
    fold(sums)
}

/// Squared L2 distance.
#[inline(always)]
pub fn l2_f32(a: &[f32], b: &[f32]) -> f32 {
    sum_terms(a, b, |a, b| (a - b) * (a - b))
}

/// Squared L2 distance to an f16 key.
#[inline(always)]
pub fn l2_f16(a: &[f32], b: &[f16]) -> f32 {
    sum_terms(a, b, |a, b| (a - b.to_f32()) * (a - b.to_f32()))
}

/// Inner product.
#[inline(always)]
pub fn ip_f32(a: &[f32], b: &[f32]) -> f32 {
    sum_terms(a, b, |a, b| a * b)
}

/// Inner product with an f16 key.
#[inline(always)]
pub fn ip_f16(a: &[f32], b: &[f16]) -> f32 {
    sum_terms(a, b, |a, b| a * b.to_f32())
}

/// Scans blocks of 4-bit codes; see [`super::Kernels::scan4`].
pub fn scan4(blocks: &[u8], query: &ScanQuery<u8>, first: u32, scores: &mut [f32], entries: &mut [u32]) -> usize {
    let units = query.table.len() / 128;
    let mut found = 0;
    for (b, block) in blocks.chunks_exact(units * 64 + 128).enumerate() {
        let (codes, factors) = block.split_at(units * 64);
        let mut sums = [0u32; LANES];
        for (unit, tables) in codes.chunks_exact(64).zip(query.table.chunks_exact(128)) {
            for lane in 0..4 {
                let (low, high) = (&tables[lane * 16..][..16], &tables[64 + lane * 16..][..16]);
                for v in 0..LANES {
                    let byte = usize::from(unit[lane * 16 + v]);
                    sums[v] += u32::from(low[byte & 15]) + u32::from(high[byte >> 4]);
                }
            }
        }
        let sums = sums.map(|s| s as f32 * query.scale + query.bias);
        found += keep(
            &sums,
            factors,
            query.base,
            query.limit,
            first + (b * LANES) as u32,
            &mut scores[found..],
            &mut entries[found..],
        );
    }
    found
}

/// Scans blocks of 8-bit codes; see [`super::Kernels::scan8`].
#[inline(always)]
pub fn scan8(blocks: &[u8], query: &ScanQuery<f32>, first: u32, scores: &mut [f32], entries: &mut [u32]) -> usize {
    let m = query.table.len() / 256;
    let mut found = 0;
    for (b, block) in blocks.chunks_exact(m * LANES + 128).enumerate() {
        let (codes, factors) = block.split_at(m * LANES);
        let mut sums = [0f32; LANES];
        for (codes, table) in codes.as_chunks::<LANES>().0.iter().zip(query.table.chunks_exact(256)) {
            for (sum, &code) in sums.iter_mut().zip(codes) {
                *sum += table[usize::from(code)];
            }
        }
        found += keep(
            &sums,
            factors,
            query.base,
            query.limit,
            first + (b * LANES) as u32,
            &mut scores[found..],
            &mut entries[found..],
        );
    }
    found
}

pub use super::portable::{
    count_at_most, count_borders, dot4, encode, find_at_most, greatest_at_most, greatest_distance, hadamard,
    keep_at_most, least, least_of_classes, multiply, pack_panel, round_bytes, scan_levels, score_rows8, score_tile8,
    tables4, word_products,
};
