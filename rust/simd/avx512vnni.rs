//! Kernels with AVX-512 VBMI and VNNI: tables of 64 entries in a register, four byte products added in one step.
//!
//! What is not here is that of `avx512`. The scan turns the 4 × 16 bytes of a unit round, so that the four codes of an entry
//! lie in one 32-bit lane; then one look-up serves four sub-quantisers and `vpdpbusd` adds them: eight instructions a
//! unit for one query, four for each more.

use super::avx512::{keep, load_bytes};
use super::{GROUP, LANES, ScanQuery, Scores, TILE_LANES, TILE_ROWS, portable};
use std::arch::x86_64::*;

pub use super::avx512::{
    count_at_most, encode, find_at_most, greatest_at_most, hadamard, ip_f16, ip_f32, keep_at_most, l2_f16, l2_f32,
    least, pack_panel, scan8, score_tile, word_products,
};

/// Byte 4v + j of the result is byte 16j + v.
const TURN: [u8; 64] = {
    let mut order = [0u8; 64];
    let mut i = 0;
    while i < 64 {
        order[i] = (16 * (i % 4) + i / 4) as u8;
        i += 1;
    }
    order
};

/// Byte 4v + j is 16j: where the table of sub-quantiser j begins.
const TABLES: [u8; 64] = {
    let mut starts = [0u8; 64];
    let mut i = 0;
    while i < 64 {
        starts[i] = (16 * (i % 4)) as u8;
        i += 1;
    }
    starts
};

/// See [`super::Kernels::scan4`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
pub fn scan4(blocks: &[u8], query: &ScanQuery<u8>, first: u32, scores: &mut [f32], entries: &mut [u32]) -> usize {
    scan_group(blocks, &[*query], first, [(scores, entries)])[0]
}

/// See [`super::Kernels::scan4_group`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
pub fn scan4_group(
    blocks: &[u8],
    queries: &[ScanQuery<u8>; GROUP],
    first: u32,
    out: [(&mut [f32], &mut [u32]); GROUP],
) -> [usize; GROUP] {
    scan_group(blocks, queries, first, out)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
fn scan_group<const N: usize>(
    blocks: &[u8],
    queries: &[ScanQuery<u8>; N],
    first: u32,
    mut out: [(&mut [f32], &mut [u32]); N],
) -> [usize; N] {
    let tables: [&[[u8; 64]]; N] = std::array::from_fn(|i| queries[i].table.as_chunks::<64>().0);
    let units = tables[0].len() / 2;
    let (turn, starts) = (load_bytes(&TURN), load_bytes(&TABLES));
    let (nibble, ones) = (_mm512_set1_epi8(15), _mm512_set1_epi8(1));
    let mut found = [0; N];
    for (b, block) in blocks.chunks_exact(units * 64 + 128).enumerate() {
        let (codes, factors) = block.split_at(units * 64);
        let mut sums = [_mm512_setzero_si512(); N];
        for (u, unit) in codes.as_chunks::<64>().0.iter().enumerate() {
            let unit = _mm512_permutexvar_epi8(turn, load_bytes(unit));
            // (x & 15) | start of the table
            let low = _mm512_ternarylogic_epi32::<0xEA>(unit, nibble, starts);
            let high = _mm512_ternarylogic_epi32::<0xEA>(_mm512_srli_epi16::<4>(unit), nibble, starts);
            for i in 0..N {
                let low = _mm512_permutexvar_epi8(low, load_bytes(&tables[i][2 * u]));
                let high = _mm512_permutexvar_epi8(high, load_bytes(&tables[i][2 * u + 1]));
                // Two entries of at most 127 add up within a byte.
                sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_add_epi8(low, high), ones);
            }
        }
        for i in 0..N {
            let (scale, bias) = (_mm512_set1_ps(queries[i].scale), _mm512_set1_ps(queries[i].bias));
            let sum = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums[i]), scale), bias);
            let (scores, entries) = &mut out[i];
            let at = found[i];
            found[i] +=
                keep(sum, factors, &queries[i], first + (b * LANES) as u32, &mut scores[at..], &mut entries[at..]);
        }
    }
    found
}

/// See [`super::Kernels::dot4`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
pub fn dot4(codes: &[u8], query: &[i8], levels: &[u8; 16]) -> i32 {
    // SAFETY: the array holds 16 bytes.
    let levels = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(levels.as_ptr().cast()) });
    let nibble = _mm512_set1_epi8(15);
    let query: &[u8] = bytemuck::cast_slice(query);
    let mut sums = [_mm512_setzero_si512(); 2];
    for (unit, query) in codes.as_chunks::<64>().0.iter().zip(query.as_chunks::<64>().0.as_chunks::<2>().0) {
        let unit = load_bytes(unit);
        let low = _mm512_shuffle_epi8(levels, _mm512_and_si512(unit, nibble));
        let high = _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16::<4>(unit), nibble));
        sums[0] = _mm512_dpbusd_epi32(sums[0], low, load_bytes(&query[0]));
        sums[1] = _mm512_dpbusd_epi32(sums[1], high, load_bytes(&query[1]));
    }
    _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]))
}

/// See [`super::Kernels::score_tile8`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
pub fn score_tile8(
    rows: &[i8],
    width: usize,
    panels: &[u8],
    scales: &[f32],
    offsets: &[f32],
    factors: &[(f32, i32)],
    tile: &mut Scores,
) {
    macro_rules! by_rows {
        ($($r:literal)*) => {
            match rows.len() / width {
                $($r => integer_tile::<$r>(rows, width, panels, scales, offsets, factors, tile),)*
                q => assert!(q <= TILE_ROWS, "at most {TILE_ROWS} rows in a tile, found {q}"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// R rows × 32 keys: 2 R accumulators.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
fn integer_tile<const R: usize>(
    rows: &[i8],
    width: usize,
    panels: &[u8],
    scales: &[f32],
    offsets: &[f32],
    factors: &[(f32, i32)],
    tile: &mut Scores,
) {
    let (left, right) = panels.split_at(LANES * width);
    let steps = width / 4;
    let (left, right) = (&left.as_chunks::<64>().0[..steps], &right.as_chunks::<64>().0[..steps]);
    let row: [&[[i8; 4]]; R] = std::array::from_fn(|i| &rows[i * width..(i + 1) * width].as_chunks::<4>().0[..steps]);
    let mut sums = [[_mm512_setzero_si512(); 2]; R];
    for t in 0..steps {
        let (l, r) = (load_bytes(&left[t]), load_bytes(&right[t]));
        for i in 0..R {
            let query = _mm512_set1_epi32(i32::from_le_bytes(row[i][t].map(|x| x as u8)));
            sums[i][0] = _mm512_dpbusd_epi32(sums[i][0], l, query);
            sums[i][1] = _mm512_dpbusd_epi32(sums[i][1], r, query);
        }
    }
    for i in 0..R {
        let mut dots = [0i32; TILE_LANES];
        for (half, sum) in sums[i].into_iter().enumerate() {
            let to = &mut dots[half * LANES..(half + 1) * LANES];
            // SAFETY: the slice holds 64 bytes, cut above; the store is unaligned.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), sum) };
        }
        portable::scores_of(&dots, scales, offsets, factors[i], &mut tile[i]);
    }
}
