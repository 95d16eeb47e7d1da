//! Kernels with AVX2, FMA and F16C.

use super::instantiate::{portable_choices, portable_kernels, portable_queries, portable_rows};
use super::operands::{
    ByteKeys, ByteQuery, FACTOR_BYTES, LANES, LevelQuery, ScanQuery, Scores, TILE_LANES, TILE_ROWS, Tile, targets,
};
use super::{portable, scalar};
use half::f16;
use std::arch::x86_64::*;

/// Rows of a register tile: 6 × 2 accumulators of 16 registers.
const ROWS: usize = 6;

/// See [`scalar::score_tile`].
#[target_feature(enable = "popcnt,avx2,fma,f16c")]
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
#[target_feature(enable = "popcnt,avx2,fma,f16c")]
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
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for t in 0..d {
        let keys = load16(&panel[t]);
        for i in 0..R {
            let x = _mm256_set1_ps(row[i][t]);
            sums[i][0] = _mm256_fmadd_ps(x, keys[0], sums[i][0]);
            sums[i][1] = _mm256_fmadd_ps(x, keys[1], sums[i][1]);
        }
    }
    let offsets = load16(&offsets.as_chunks::<LANES>().0[0]);
    let scale = _mm256_set1_ps(scale);
    for i in 0..R {
        let limit = _mm256_set1_ps(limits[part.first_row + i]);
        for half in 0..2 {
            let score = _mm256_add_ps(offsets[half], _mm256_mul_ps(scale, sums[i][half]));
            let lane = part.first_lane + 8 * half;
            store(score, &mut tile.scores[part.first_row + i][lane..]);
            let hits = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(score, limit)) as u32;
            tile.hits[part.first_row + i] |= hits << lane;
        }
    }
}

#[inline]
#[target_feature(enable = "popcnt,avx2")]
fn load16(x: &[f32; LANES]) -> [__m256; 2] {
    // SAFETY: the array holds 64 bytes; the loads are unaligned.
    unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
}

#[inline]
#[target_feature(enable = "popcnt,avx2")]
fn load(x: &[f32; 8]) -> __m256 {
    // SAFETY: the array holds 32 bytes; the load is unaligned.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "popcnt,avx2,f16c")]
fn load_f16(x: &[f16; 8]) -> __m256 {
    // SAFETY: the array holds 16 bytes; the load is unaligned.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "popcnt,avx2")]
fn store(v: __m256, out: &mut [f32]) {
    assert!(out.len() >= 8);
    // SAFETY: at least 32 bytes, checked above; the store is unaligned.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) }
}

#[inline]
#[target_feature(enable = "popcnt,avx2")]
fn load_bytes(x: &[u8; 32]) -> __m256i {
    // SAFETY: the array holds 32 bytes; the load is unaligned.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "popcnt,avx2")]
fn fold(sums: [__m256; 8]) -> f32 {
    let mut out = [0f32; scalar::SUMS];
    for (part, sum) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
        store(sum, part);
    }
    scalar::fold(out)
}

macro_rules! direct {
    ($name:ident, $doc:literal, $key:ty, $load:expr, $term:expr) => {
        #[doc = $doc]
        #[target_feature(enable = "popcnt,avx2,fma,f16c")]
        pub fn $name(a: &[f32], b: &[$key]) -> f32 {
            let mut sums = [_mm256_setzero_ps(); 8];
            let (whole_a, rest_a) = a.as_chunks::<{ scalar::SUMS }>();
            let (whole_b, rest_b) = b.as_chunks::<{ scalar::SUMS }>();
            for (a, b) in whole_a.iter().zip(whole_b) {
                for ((sum, a), b) in sums.iter_mut().zip(a.as_chunks::<8>().0).zip(b.as_chunks::<8>().0) {
                    *sum = _mm256_add_ps(*sum, $term(load(a), $load(b)));
                }
            }
            if !rest_a.is_empty() && rest_a.len() == rest_b.len() {
                let (mut last_a, mut last_b) = ([0f32; scalar::SUMS], [<$key>::default(); scalar::SUMS]);
                last_a[..rest_a.len()].copy_from_slice(rest_a);
                last_b[..rest_b.len()].copy_from_slice(rest_b);
                for ((sum, a), b) in sums.iter_mut().zip(last_a.as_chunks::<8>().0).zip(last_b.as_chunks::<8>().0) {
                    *sum = _mm256_add_ps(*sum, $term(load(a), $load(b)));
                }
            }
            fold(sums)
        }
    };
}

#[inline]
#[target_feature(enable = "popcnt,avx2")]
fn square_of_difference(a: __m256, b: __m256) -> __m256 {
    let e = _mm256_sub_ps(a, b);
    _mm256_mul_ps(e, e)
}

#[inline]
#[target_feature(enable = "popcnt,avx2")]
fn product(a: __m256, b: __m256) -> __m256 {
    _mm256_mul_ps(a, b)
}

direct!(l2_f32, "See [`scalar::l2_f32`].", f32, load, square_of_difference);
direct!(l2_f16, "See [`scalar::l2_f16`].", f16, load_f16, square_of_difference);
direct!(ip_f32, "See [`scalar::ip_f32`].", f32, load, product);
direct!(ip_f16, "See [`scalar::ip_f16`].", f16, load_f16, product);

/// See [`super::Kernels::scan4_group`].
#[target_feature(enable = "popcnt,avx2,fma,f16c")]
pub fn scan4_group<const N: usize>(
    blocks: &[u8],
    queries: &[ScanQuery<u8>; N],
    first: u32,
    mut out: [(&mut [f32], &mut [u32]); N],
) -> [usize; N] {
    let units = queries[0].table.len() / 128;
    assert!(queries.iter().all(|q| q.table.len() == 128 * units));
    let tables: [*const u8; N] = std::array::from_fn(|i| queries[i].table.as_ptr());
    let to = targets(&mut out, blocks.len() / (units * 64 + FACTOR_BYTES));
    let mut found = [0; N];
    for (b, block) in blocks.chunks_exact(units * 64 + FACTOR_BYTES).enumerate() {
        let (codes, factors) = block.split_at(units * 64);
        // SAFETY: a table has 128 bytes for each of the units of a block, asserted above.
        let sums = unsafe { table_sums::<N>(codes, tables) };
        for i in 0..N {
            let (scale, bias) = (_mm256_set1_ps(queries[i].scale), _mm256_set1_ps(queries[i].bias));
            let sums = sums[i].map(|s| _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(s), scale), bias));
            let bounds = (queries[i].base, queries[i].limit);
            let to = (to[i].0.wrapping_add(found[i]), to[i].1.wrapping_add(found[i]));
            // SAFETY: every block before this one kept at most 16 entries, so 16 more fit what `targets` checked.
            found[i] += unsafe { keep_at(sums, factors, bounds, first + (b * LANES) as u32, to) };
        }
    }
    found
}

/// Units whose sums fit 16 bits: 64 of 2 × 127 per lane, four lanes: 65,024.
const UNITS: usize = 64;

/// What the tables of N queries say of the 16 entries of a block. A unit is two registers of 2 lanes of 16 bytes, a table per lane.
///
/// # Safety
/// Each table has 128 bytes for every 64 bytes of codes.
#[inline]
#[target_feature(enable = "popcnt,avx2,fma,f16c")]
unsafe fn table_sums<const N: usize>(codes: &[u8], tables: [*const u8; N]) -> [[__m256i; 2]; N] {
    let nibble = _mm256_set1_epi8(15);
    let mut sums = [[_mm256_setzero_si256(); 2]; N];
    for (part, codes) in codes.chunks(UNITS * 64).enumerate() {
        let (mut all, mut high) = ([_mm256_setzero_si256(); N], [_mm256_setzero_si256(); N]);
        for (u, unit) in codes.as_chunks::<64>().0.iter().enumerate() {
            for (half, unit) in unit.as_chunks::<32>().0.iter().enumerate() {
                let unit = load_bytes(unit);
                let (low, top) =
                    (_mm256_and_si256(unit, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(unit), nibble));
                for i in 0..N {
                    // SAFETY: the caller's; the loads are unaligned.
                    let table = unsafe {
                        let table = tables[i].add(128 * (part * UNITS + u) + 32 * half);
                        [_mm256_loadu_si256(table.cast()), _mm256_loadu_si256(table.add(64).cast())]
                    };
                    // Two entries of at most 127 add up within a byte.
                    let both = _mm256_add_epi8(_mm256_shuffle_epi8(table[0], low), _mm256_shuffle_epi8(table[1], top));
                    all[i] = _mm256_add_epi16(all[i], both);
                    high[i] = _mm256_add_epi16(high[i], _mm256_srli_epi16::<8>(both));
                }
            }
        }
        for i in 0..N {
            let part = lane_sums(all[i], high[i]);
            sums[i] = [_mm256_add_epi32(sums[i][0], part[0]), _mm256_add_epi32(sums[i][1], part[1])];
        }
    }
    sums
}

/// Sums of the two 128-bit lanes per vector of the block. `all` = Σ (even + 256 odd) modulo 2¹⁶, `high` = Σ odd.
#[inline]
#[target_feature(enable = "popcnt,avx2")]
fn lane_sums(all: __m256i, high: __m256i) -> [__m256i; 2] {
    let even = _mm256_sub_epi16(all, _mm256_slli_epi16::<8>(high));
    let fold = |x: __m256i| _mm_add_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let (even, odd) = (fold(even), fold(high));
    [_mm256_cvtepu16_epi32(_mm_unpacklo_epi16(even, odd)), _mm256_cvtepu16_epi32(_mm_unpackhi_epi16(even, odd))]
}

/// See [`super::Kernels::scan8`].
#[target_feature(enable = "popcnt,avx2,fma,f16c")]
pub fn scan8(blocks: &[u8], query: &ScanQuery<f32>, first: u32, scores: &mut [f32], entries: &mut [u32]) -> usize {
    let tables = query.table.as_chunks::<256>().0;
    let m = tables.len();
    let [to] = targets(&mut [(scores, entries)], blocks.len() / (m * LANES + FACTOR_BYTES));
    let mut found = 0;
    for (b, block) in blocks.chunks_exact(m * LANES + FACTOR_BYTES).enumerate() {
        let (codes, factors) = block.split_at(m * LANES);
        let mut sums = [_mm256_setzero_ps(); 2];
        for (codes, table) in codes.as_chunks::<8>().0.as_chunks::<2>().0.iter().zip(tables) {
            for (sum, codes) in sums.iter_mut().zip(codes) {
                // SAFETY: 8 bytes are read from an array of 8; gathers index a table of 256 by a byte.
                let terms = unsafe {
                    let index = _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.as_ptr().cast()));
                    _mm256_i32gather_ps::<4>(table.as_ptr(), index)
                };
                *sum = _mm256_add_ps(*sum, terms);
            }
        }
        let to = (to.0.wrapping_add(found), to.1.wrapping_add(found));
        // SAFETY: every block before this one kept at most 16 entries, so 16 more fit what `targets` checked.
        found += unsafe { keep_at(sums, factors, (query.base, query.limit), first + (b * LANES) as u32, to) };
    }
    found
}

/// The end of a block for one query: scores `(base + A) + B * sum`; those at most the limit go to `to` with their entries.
/// Returns how many.
///
/// # Safety
/// 16 scores and 16 entries can be written at `to`.
#[inline]
#[target_feature(enable = "popcnt,avx2")]
unsafe fn keep_at(
    sums: [__m256; 2],
    factors: &[u8],
    (base, limit): (f32, f32),
    first: u32,
    to: (*mut f32, *mut u32),
) -> usize {
    let factors = factors.as_chunks::<32>().0;
    let (mut lanes, mut hits) = ([0f32; LANES], 0);
    for (half, sum) in sums.into_iter().enumerate() {
        let a = _mm256_castsi256_ps(load_bytes(&factors[half]));
        let b = _mm256_castsi256_ps(load_bytes(&factors[2 + half]));
        let score = _mm256_add_ps(_mm256_add_ps(_mm256_set1_ps(base), a), _mm256_mul_ps(b, sum));
        let within = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(score, _mm256_set1_ps(limit)));
        hits |= (within as u32) << (8 * half);
        store(score, &mut lanes[8 * half..]);
    }
    let mut found = 0;
    while hits != 0 {
        let lane = hits.trailing_zeros();
        // SAFETY: the caller's; there are no more than 16 hits.
        unsafe {
            to.0.add(found).write(lanes[(lane & 15) as usize]);
            to.1.add(found).write(first + lane);
        }
        found += 1;
        hits &= hits - 1;
    }
    found
}

/// See [`super::Kernels::dot4`].
#[target_feature(enable = "popcnt,avx2")]
pub fn dot4(codes: &[u8], query: &[i8], levels: &[u8; 16]) -> i32 {
    // SAFETY: the array holds 16 bytes.
    let levels = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(levels.as_ptr().cast()) });
    let (nibble, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let query: &[u8] = bytemuck::cast_slice(query);
    let mut sums = [_mm256_setzero_si256(); 2];
    for (unit, query) in codes.as_chunks::<64>().0.iter().zip(query.as_chunks::<128>().0) {
        let query = query.as_chunks::<32>().0;
        for (half, codes) in unit.as_chunks::<32>().0.iter().enumerate() {
            let codes = load_bytes(codes);
            let low = _mm256_shuffle_epi8(levels, _mm256_and_si256(codes, nibble));
            let high = _mm256_shuffle_epi8(levels, _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble));
            // Levels are at most 127: two products fit 16 bits.
            let low = _mm256_madd_epi16(_mm256_maddubs_epi16(low, load_bytes(&query[half])), ones);
            let high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, load_bytes(&query[2 + half])), ones);
            sums[half] = _mm256_add_epi32(sums[half], _mm256_add_epi32(low, high));
        }
    }
    let sum = _mm256_add_epi32(sums[0], sums[1]);
    let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b0100_1110>(sum));
    _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<0b1011_0001>(sum)))
}

/// See [`super::Kernels::scan_levels_group`]. Half a unit is a register: eight entries, four codes each.
#[target_feature(enable = "popcnt,avx2")]
pub fn scan_levels_group<const N: usize>(
    blocks: &[u8],
    queries: &[LevelQuery; N],
    first: u32,
    mut out: [(&mut [f32], &mut [u32]); N],
) -> [usize; N] {
    let units = queries[0].bytes.numbers.len() / 8;
    assert!(queries.iter().all(|q| q.bytes.numbers.len() == 8 * units && q.bytes.levels == queries[0].bytes.levels));
    let numbers: [*const i32; N] = std::array::from_fn(|i| queries[i].bytes.numbers.as_ptr().cast());
    // SAFETY: the array holds 16 bytes.
    let levels = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(queries[0].bytes.levels.as_ptr().cast()) });
    let (nibble, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let to = targets(&mut out, blocks.len() / (units * 64 + FACTOR_BYTES));
    let mut found = [0; N];
    for (b, block) in blocks.chunks_exact(units * 64 + FACTOR_BYTES).enumerate() {
        let (codes, factors) = block.split_at(units * 64);
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        for (u, unit) in codes.as_chunks::<32>().0.as_chunks::<2>().0.iter().enumerate() {
            for half in 0..2 {
                let codes = load_bytes(&unit[half]);
                let low = _mm256_shuffle_epi8(levels, _mm256_and_si256(codes, nibble));
                let high = _mm256_shuffle_epi8(levels, _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble));
                for i in 0..N {
                    // SAFETY: a query has 8 numbers a unit, asserted above.
                    let (a, b) = unsafe {
                        let numbers = numbers[i].add(2 * u);
                        (numbers.read_unaligned(), numbers.add(1).read_unaligned())
                    };
                    // Two products of at most 127 · 127 fit 16 bits.
                    let low = _mm256_madd_epi16(_mm256_maddubs_epi16(low, _mm256_set1_epi32(a)), ones);
                    let high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, _mm256_set1_epi32(b)), ones);
                    sums[i][half] = _mm256_add_epi32(sums[i][half], _mm256_add_epi32(low, high));
                }
            }
        }
        for i in 0..N {
            let ByteQuery { scale, bias, .. } = queries[i].bytes;
            let (scale, bias) = (_mm256_set1_ps(scale), _mm256_set1_epi32(bias));
            let sums = sums[i].map(|dots| _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_sub_epi32(dots, bias))));
            let bounds = (queries[i].base, queries[i].limit);
            let to = (to[i].0.wrapping_add(found[i]), to[i].1.wrapping_add(found[i]));
            // SAFETY: every block before this one kept at most 16 entries, so 16 more fit what `targets` checked.
            found[i] += unsafe { keep_at(sums, factors, bounds, first + (b * LANES) as u32, to) };
        }
    }
    found
}

/// See [`super::Kernels::score_tile8`].
#[target_feature(enable = "popcnt,avx2")]
pub fn score_tile8(rows: &[i8], width: usize, keys: ByteKeys, factors: &[(f32, i32)], tile: &mut Scores) {
    let q = rows.len() / width;
    let mut dots = [[0i32; TILE_LANES]; TILE_ROWS];
    for (p, panel) in keys.numbers.chunks_exact(LANES * width).enumerate() {
        for first in (0..q).step_by(4) {
            let out = &mut dots[first..];
            let rows = &rows.as_chunks::<4>().0[first..];
            match q - first {
                1 => integer_products::<1>(rows, q, panel, out, p),
                2 => integer_products::<2>(rows, q, panel, out, p),
                3 => integer_products::<3>(rows, q, panel, out, p),
                _ => integer_products::<4>(rows, q, panel, out, p),
            }
        }
    }
    for (i, dots) in dots[..q].iter().enumerate() {
        portable::scores_of(dots, keys, factors[i], &mut tile[i]);
    }
}

/// Products of R of q rows with panel `p` (16 keys): two registers of 8 keys a row.
#[inline]
#[target_feature(enable = "popcnt,avx2")]
fn integer_products<const R: usize>(rows: &[[i8; 4]], q: usize, panel: &[u8], out: &mut [[i32; TILE_LANES]], p: usize) {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for (t, keys) in panel.as_chunks::<32>().0.as_chunks::<2>().0.iter().enumerate() {
        let keys = [load_bytes(&keys[0]), load_bytes(&keys[1])];
        for i in 0..R {
            let query = _mm256_set1_epi32(i32::from_le_bytes(rows[t * q + i].map(|x| x as u8)));
            for half in 0..2 {
                let products = _mm256_madd_epi16(_mm256_maddubs_epi16(keys[half], query), ones);
                sums[i][half] = _mm256_add_epi32(sums[i][half], products);
            }
        }
    }
    for i in 0..R {
        for half in 0..2 {
            let to = &mut out[i][p * LANES + 8 * half..][..8];
            // SAFETY: the slice holds 32 bytes, cut above; the store is unaligned.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), sums[i][half]) };
        }
    }
}

portable_kernels!("popcnt,avx2,f16c", portable);
portable_queries!("popcnt,avx2,f16c", portable);
portable_rows!("popcnt,avx2,f16c", portable);
portable_choices!("popcnt,avx2", portable);
