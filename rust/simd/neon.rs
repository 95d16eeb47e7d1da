//! Kernels with NEON (every aarch64 has it).

use super::instantiate::{portable_choices, portable_integers, portable_kernels, portable_queries, portable_rows};
use super::operands::{ByteKeys, LANES, LevelQuery, ScanQuery, Scores, TILE_ROWS, Tile};
use super::{portable, scalar};
use half::f16;
use std::arch::aarch64::*;

/// Rows of a register tile: 6 × 4 accumulators of 32 registers.
const ROWS: usize = 6;

/// See [`scalar::score_tile`].
#[target_feature(enable = "neon")]
pub fn score_tile(
    rows: &[f32],
    d: usize,
    panels: &[f32],
    offsets: &[f32],
    scale: f32,
    limits: &[f32],
    tile: &mut Tile,
) {
    assert!(rows.len() / d <= TILE_ROWS, "at most {TILE_ROWS} rows in a tile, found {}", rows.len() / d);
    tile.hits = [0; TILE_ROWS];
    for half in 0..2 {
        let panel = &panels[half * d * LANES..(half + 1) * d * LANES];
        let offsets = &offsets[half * LANES..(half + 1) * LANES];
        for (g, group) in rows.chunks(ROWS * d).enumerate() {
            let part = Part { first_row: g * ROWS, first_lane: half * LANES };
            macro_rules! by_rows {
                ($($r:literal)*) => {
                    match group.len() / d {
                        $($r => tile_of::<$r>(group, d, panel, offsets, scale, limits, part, tile),)*
                        q => unreachable!("{q} rows in a chunk of {ROWS}"),
                    }
                };
            }
            by_rows!(1 2 3 4 5 6);
        }
    }
}

/// Where a register tile lies in the tile.
#[derive(Clone, Copy)]
struct Part {
    first_row: usize,
    first_lane: usize,
}

#[allow(clippy::too_many_arguments)]
#[target_feature(enable = "neon")]
fn tile_of<const R: usize>(
    rows: &[f32],
    d: usize,
    panel: &[f32],
    offsets: &[f32],
    scale: f32,
    limits: &[f32],
    part: Part,
    tile: &mut Tile,
) {
    let panel = &panel.as_chunks::<LANES>().0[..d];
    let row: [&[f32]; R] = std::array::from_fn(|i| &rows[i * d..(i + 1) * d]);
    let mut sums = [[vdupq_n_f32(0.0); 4]; R];
    for t in 0..d {
        let keys = load16(&panel[t]);
        for i in 0..R {
            for (sum, key) in sums[i].iter_mut().zip(keys) {
                *sum = vfmaq_n_f32(*sum, key, row[i][t]);
            }
        }
    }
    for i in 0..R {
        let out = &mut tile.scores[part.first_row + i][part.first_lane..part.first_lane + LANES];
        for (quarter, (out, sum)) in out.as_chunks_mut::<4>().0.iter_mut().zip(sums[i]).enumerate() {
            let mut products = [0f32; 4];
            // SAFETY: the array holds 16 bytes.
            unsafe { vst1q_f32(products.as_mut_ptr(), sum) };
            for lane in 0..4 {
                let score = offsets[4 * quarter + lane] + scale * products[lane];
                out[lane] = score;
                let hit = u32::from(score <= limits[part.first_row + i]);
                tile.hits[part.first_row + i] |= hit << (part.first_lane + 4 * quarter + lane);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load16(x: &[f32; LANES]) -> [float32x4_t; 4] {
    // SAFETY: the array holds 64 bytes.
    unsafe { std::array::from_fn(|i| vld1q_f32(x.as_ptr().add(4 * i))) }
}

/// See [`scalar::l2_f32`]; the compiler vectorises the scalar body.
#[target_feature(enable = "neon")]
pub fn l2_f32(a: &[f32], b: &[f32]) -> f32 {
    scalar::l2_f32(a, b)
}

/// See [`scalar::l2_f16`].
#[target_feature(enable = "neon")]
pub fn l2_f16(a: &[f32], b: &[f16]) -> f32 {
    scalar::l2_f16(a, b)
}

/// See [`scalar::ip_f32`].
#[target_feature(enable = "neon")]
pub fn ip_f32(a: &[f32], b: &[f32]) -> f32 {
    scalar::ip_f32(a, b)
}

/// See [`scalar::ip_f16`].
#[target_feature(enable = "neon")]
pub fn ip_f16(a: &[f32], b: &[f16]) -> f32 {
    scalar::ip_f16(a, b)
}

/// See [`super::Kernels::scan4`]. A unit is four registers, a table each.
#[target_feature(enable = "neon")]
pub fn scan4(blocks: &[u8], query: &ScanQuery<u8>, first: u32, scores: &mut [f32], entries: &mut [u32]) -> usize {
    let tables = query.table.as_chunks::<16>().0;
    let units = tables.len() / 8;
    let nibble = vdupq_n_u8(15);
    let mut found = 0;
    for (b, block) in blocks.chunks_exact(units * 64 + 128).enumerate() {
        let (codes, factors) = block.split_at(units * 64);
        let mut sums = [0u32; LANES];
        // 64 units of 4 lanes of 2 × 127: 65,024 fits 16 bits.
        for (codes, tables) in codes.as_chunks::<16>().0.chunks(256).zip(tables.chunks(512)) {
            let (mut left, mut right) = (vdupq_n_u16(0), vdupq_n_u16(0));
            for (unit, table) in codes.as_chunks::<4>().0.iter().zip(tables.as_chunks::<8>().0) {
                for lane in 0..4 {
                    let code = load_bytes(&unit[lane]);
                    let low = vqtbl1q_u8(load_bytes(&table[lane]), vandq_u8(code, nibble));
                    let both = vaddq_u8(low, vqtbl1q_u8(load_bytes(&table[4 + lane]), vshrq_n_u8::<4>(code)));
                    left = vaddw_u8(left, vget_low_u8(both));
                    right = vaddw_high_u8(right, both);
                }
            }
            let mut part = [0u16; LANES];
            // SAFETY: the array holds 32 bytes, 16 for each store.
            unsafe {
                vst1q_u16(part.as_mut_ptr(), left);
                vst1q_u16(part.as_mut_ptr().add(8), right);
            }
            for (sum, part) in sums.iter_mut().zip(part) {
                *sum += u32::from(part);
            }
        }
        let sums = sums.map(|s| s as f32 * query.scale + query.bias);
        let to = first + (b * LANES) as u32;
        found +=
            portable::keep(&sums, factors, query.base, query.limit, to, &mut scores[found..], &mut entries[found..]);
    }
    found
}

#[inline]
#[target_feature(enable = "neon")]
fn load_bytes(x: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the array holds 16 bytes.
    unsafe { vld1q_u8(x.as_ptr()) }
}

/// See [`super::Kernels::scan8`]: NEON has no gather, the scalar body is as good.
#[target_feature(enable = "neon")]
pub fn scan8(blocks: &[u8], query: &ScanQuery<f32>, first: u32, scores: &mut [f32], entries: &mut [u32]) -> usize {
    scalar::scan8(blocks, query, first, scores, entries)
}

portable_kernels!("neon", portable);
portable_queries!("neon", portable);
portable_rows!("neon", portable);
portable_choices!("neon", portable);
portable_integers!("neon", portable);
