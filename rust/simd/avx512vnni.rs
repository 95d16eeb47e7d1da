//! Kernels with AVX-512 VBMI and VNNI: tables of 64 entries in a register, four byte products added in one step.
//!
//! What is not here is that of `avx512`. The scan turns the 4 × 16 bytes of a unit round, so that the four codes of an entry
//! lie in one 32-bit lane; then one look-up serves four sub-quantisers and `vpdpbusd` adds them: eight instructions a
//! unit for one query, four for each more.

use super::avx512::{keep_at, lanes_from, load, load_bytes, load_factors, store};
use super::operands::{
    ByteKeys, ByteQuery, FACTOR_BYTES, LANES, LevelQuery, RECORDS_AHEAD, ScanQuery, Scores, TILE_ROWS, targets,
};
use super::prefetch::prefetch;
use std::arch::x86_64::*;

pub use super::avx512::{
    count_at_most, count_borders, encode, find_at_most, greatest_at_most, greatest_distance, hadamard, ip_f16, ip_f32,
    keep_at_most, l2_f16, l2_f32, least, least_of_classes, multiply, pack_panel, round_bytes, scan8, score_tile,
    tables4, word_products,
};

/// Bytes of codes that are asked for ahead of their turn.
const BLOCKS_AHEAD: usize = 4096;

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

/// See [`super::Kernels::scan4_group`].
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
pub fn scan4_group<const N: usize>(
    blocks: &[u8],
    queries: &[ScanQuery<u8>; N],
    first: u32,
    mut out: [(&mut [f32], &mut [u32]); N],
) -> [usize; N] {
    let units = queries[0].table.len() / 128;
    assert!(queries.iter().all(|q| q.table.len() == 128 * units));
    let tables: [*const u8; N] = std::array::from_fn(|i| queries[i].table.as_ptr());
    let (turn, starts) = (load_bytes(&TURN), load_bytes(&TABLES));
    let (nibble, ones) = (_mm512_set1_epi8(15), _mm512_set1_epi8(1));
    let to = targets(&mut out, blocks.len() / (units * 64 + FACTOR_BYTES));
    let mut found = [0; N];
    for (b, block) in blocks.chunks_exact(units * 64 + FACTOR_BYTES).enumerate() {
        let (codes, factors) = block.split_at(units * 64);
        let ahead = (b + 1) * block.len() + BLOCKS_AHEAD <= blocks.len();
        let mut sums = [_mm512_setzero_si512(); N];
        for (u, unit) in codes.as_chunks::<64>().0.iter().enumerate() {
            if ahead {
                prefetch_ahead(unit);
            }
            let unit = _mm512_permutexvar_epi8(turn, load_bytes(unit));
            // (x & 15) | start of the table
            let low = _mm512_ternarylogic_epi32::<0xEA>(unit, nibble, starts);
            let high = _mm512_ternarylogic_epi32::<0xEA>(_mm512_srli_epi16::<4>(unit), nibble, starts);
            for i in 0..N {
                // SAFETY: a table has 128 bytes a unit, asserted above (a check here takes half of the time).
                let table = unsafe {
                    let table = tables[i].add(128 * u);
                    [_mm512_loadu_si512(table.cast()), _mm512_loadu_si512(table.add(64).cast())]
                };
                // Two entries of at most 127 add up within a byte.
                let both =
                    _mm512_add_epi8(_mm512_permutexvar_epi8(low, table[0]), _mm512_permutexvar_epi8(high, table[1]));
                sums[i] = _mm512_dpbusd_epi32(sums[i], both, ones);
            }
        }
        let (factors, lanes) = (load_factors(factors), lanes_from(first + (b * LANES) as u32));
        for i in 0..N {
            let (scale, bias) = (_mm512_set1_ps(queries[i].scale), _mm512_set1_ps(queries[i].bias));
            let sum = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums[i]), scale), bias);
            let bounds = (queries[i].base, queries[i].limit);
            // SAFETY: every block before this one kept at most 16 entries, so 16 more fit what `targets` checked.
            found[i] += unsafe { keep_at(sum, factors, bounds, lanes, (to[i].0.add(found[i]), to[i].1.add(found[i]))) };
        }
    }
    found
}

/// Asks for the line that lies [`BLOCKS_AHEAD`] of a unit, inside of the blocks or not: the line is never read.
#[inline]
#[target_feature(enable = "popcnt,avx512f")]
fn prefetch_ahead(unit: &[u8; 64]) {
    _mm_prefetch::<_MM_HINT_T0>(unit.as_ptr().wrapping_add(BLOCKS_AHEAD).cast())
}

/// See [`super::Kernels::scan_levels_group`]. Levels of 16 entries and 4 coordinates lie in a register; `vpdpbusd` multiplies
/// them with 4 numbers of a query.
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
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
    let levels = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(queries[0].bytes.levels.as_ptr().cast()) });
    let nibble = _mm512_set1_epi8(15);
    let to = targets(&mut out, blocks.len() / (units * 64 + FACTOR_BYTES));
    let mut found = [0; N];
    for (b, block) in blocks.chunks_exact(units * 64 + FACTOR_BYTES).enumerate() {
        let (codes, factors) = block.split_at(units * 64);
        let ahead = (b + 1) * block.len() + BLOCKS_AHEAD <= blocks.len();
        let mut sums = [[_mm512_setzero_si512(); 2]; N];
        for (u, codes) in codes.as_chunks::<64>().0.iter().enumerate() {
            if ahead {
                prefetch_ahead(codes);
            }
            let codes = load_bytes(codes);
            let low = _mm512_shuffle_epi8(levels, _mm512_and_si512(codes, nibble));
            let high = _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16::<4>(codes), nibble));
            for i in 0..N {
                // SAFETY: a query has 8 numbers a unit, asserted above.
                let (a, b) = unsafe {
                    let numbers = numbers[i].add(2 * u);
                    (numbers.read_unaligned(), numbers.add(1).read_unaligned())
                };
                sums[i][0] = _mm512_dpbusd_epi32(sums[i][0], low, _mm512_set1_epi32(a));
                sums[i][1] = _mm512_dpbusd_epi32(sums[i][1], high, _mm512_set1_epi32(b));
            }
        }
        let (factors, lanes) = (load_factors(factors), lanes_from(first + (b * LANES) as u32));
        for i in 0..N {
            let bias = _mm512_set1_epi32(queries[i].bytes.bias);
            let dots = _mm512_sub_epi32(_mm512_add_epi32(sums[i][0], sums[i][1]), bias);
            let sum = _mm512_mul_ps(_mm512_set1_ps(queries[i].bytes.scale), _mm512_cvtepi32_ps(dots));
            let bounds = (queries[i].base, queries[i].limit);
            // SAFETY: every block before this one kept at most 16 entries, so 16 more fit what `targets` checked.
            found[i] += unsafe { keep_at(sum, factors, bounds, lanes, (to[i].0.add(found[i]), to[i].1.add(found[i]))) };
        }
    }
    found
}

/// See [`super::Kernels::dot4`].
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
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

/// See [`super::Kernels::add_corrections`], whose checks the caller has made. Four records at a time share the query.
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
pub fn add_corrections(
    records: &[u8],
    stride: usize,
    entries: &[u32],
    first: u32,
    query: &ByteQuery,
    scores: &mut [f32],
) {
    // SAFETY: the array holds 16 bytes.
    let levels = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(query.levels.as_ptr().cast()) });
    let nibble = _mm512_set1_epi8(15);
    let numbers: &[u8] = bytemuck::cast_slice(query.numbers);
    let halves = numbers.as_chunks::<64>().0.as_chunks::<2>().0;
    let (scale, bias) = (_mm_set1_ps(query.scale), _mm_set1_epi32(query.bias));
    for (i, (group, scores)) in entries.chunks(4).zip(scores.chunks_mut(4)).enumerate() {
        for &entry in entries.get(4 * i + RECORDS_AHEAD..).into_iter().flatten().take(4) {
            prefetch(&records[(entry - first) as usize * stride..][..stride]);
        }
        // The last group is filled up with its own last entry.
        let mut of = [&records[..0]; 4];
        for j in 0..4 {
            of[j] = &records[(group[j.min(group.len() - 1)] - first) as usize * stride..][..stride];
        }
        let mut sums = [_mm512_setzero_si512(); 4];
        for (u, half) in halves.iter().enumerate() {
            let (low_half, high_half) = (load_bytes(&half[0]), load_bytes(&half[1]));
            for j in 0..4 {
                // SAFETY: a record has a unit of 64 bytes for every two halves; the load is unaligned.
                let unit = unsafe { _mm512_loadu_si512(of[j].as_ptr().add(64 * u).cast()) };
                let low = _mm512_shuffle_epi8(levels, _mm512_and_si512(unit, nibble));
                let high = _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16::<4>(unit), nibble));
                sums[j] = _mm512_dpbusd_epi32(sums[j], low, low_half);
                sums[j] = _mm512_dpbusd_epi32(sums[j], high, high_half);
            }
        }
        let steps = _mm_mul_ps(scale, _mm_cvtepi32_ps(_mm_sub_epi32(four_sums(sums), bias)));
        let mut factors = [_mm_setzero_si128(); 4];
        for j in 0..4 {
            // SAFETY: a record ends with 8 bytes of factors; the load is unaligned.
            factors[j] = unsafe { _mm_loadl_epi64(of[j].as_ptr().add(stride - 8).cast()) };
        }
        // A B . . of each record, turned into A A A A and B B B B.
        let (ab01, ab23) = (_mm_unpacklo_epi32(factors[0], factors[1]), _mm_unpacklo_epi32(factors[2], factors[3]));
        let a = _mm_castsi128_ps(_mm_unpacklo_epi64(ab01, ab23));
        let b = _mm_castsi128_ps(_mm_unpackhi_epi64(ab01, ab23));
        let gain = _mm_add_ps(a, _mm_mul_ps(b, steps));
        let mut gains = [0f32; 4];
        // SAFETY: the array holds 16 bytes; the store is unaligned.
        unsafe { _mm_storeu_ps(gains.as_mut_ptr(), gain) };
        scores.iter_mut().zip(gains).for_each(|(score, gain)| *score += gain);
    }
}

/// The sum of the lanes of each of four registers.
#[inline]
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
fn four_sums(sums: [__m512i; 4]) -> __m128i {
    let [a, b, c, d] = sums;
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    let all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
    _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half))
}

/// See [`super::Kernels::score_rows8`]. Four keys at a time share the query.
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
pub fn score_rows8(row: &[i8], keys: ByteKeys, picks: &[u32], (factor, bias): (f32, i32), out: &mut [f32]) {
    let width = row.len();
    let numbers: &[u8] = bytemuck::cast_slice(row);
    let numbers = numbers.as_chunks::<64>().0;
    for (i, (group, out)) in picks.chunks(4).zip(out.chunks_mut(4)).enumerate() {
        for &pick in picks.get(4 * i + RECORDS_AHEAD..).into_iter().flatten().take(4) {
            prefetch(&keys.numbers[pick as usize * width..][..width]);
        }
        let mut of = [&keys.numbers[..0]; 4];
        for j in 0..4 {
            of[j] = &keys.numbers[group[j.min(group.len() - 1)] as usize * width..][..width];
        }
        let mut sums = [_mm512_setzero_si512(); 4];
        for (t, query) in numbers.iter().enumerate() {
            let query = load_bytes(query);
            for j in 0..4 {
                // SAFETY: a key has 64 bytes for every 64 numbers of the row; the load is unaligned.
                let key = unsafe { _mm512_loadu_si512(of[j].as_ptr().add(64 * t).cast()) };
                sums[j] = _mm512_dpbusd_epi32(sums[j], key, query);
            }
        }
        let mut dots = [0i32; 4];
        // SAFETY: the array holds 16 bytes; the store is unaligned.
        unsafe { _mm_storeu_si128(dots.as_mut_ptr().cast(), four_sums(sums)) };
        for ((&pick, out), dot) in group.iter().zip(out).zip(dots) {
            *out = keys.offsets[pick as usize] + (factor * keys.scales[pick as usize]) * (dot - bias) as f32;
        }
    }
}

/// See [`super::Kernels::score_tile8`].
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
pub fn score_tile8(rows: &[i8], width: usize, keys: ByteKeys, factors: &[(f32, i32)], tile: &mut Scores) {
    macro_rules! by_rows {
        ($($r:literal)*) => {
            match rows.len() / width {
                $($r => integer_tile::<$r>(rows, width, keys, factors, tile),)*
                q => assert!(q <= TILE_ROWS, "at most {TILE_ROWS} rows in a tile, found {q}"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// R rows × 32 keys: 2 R accumulators.
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
fn integer_tile<const R: usize>(rows: &[i8], width: usize, keys: ByteKeys, factors: &[(f32, i32)], tile: &mut Scores) {
    let (left, right) = keys.numbers.split_at(LANES * width);
    let steps = width / 4;
    let (left, right) = (&left.as_chunks::<64>().0[..steps], &right.as_chunks::<64>().0[..steps]);
    let queries: &[[[i8; 4]; R]] = &rows.as_chunks::<4>().0.as_chunks::<R>().0[..steps];
    let mut sums = [[_mm512_setzero_si512(); 2]; R];
    for t in 0..steps {
        let (l, r) = (load_bytes(&left[t]), load_bytes(&right[t]));
        for i in 0..R {
            let query = _mm512_set1_epi32(i32::from_le_bytes(queries[t][i].map(|x| x as u8)));
            sums[i][0] = _mm512_dpbusd_epi32(sums[i][0], l, query);
            sums[i][1] = _mm512_dpbusd_epi32(sums[i][1], r, query);
        }
    }
    let (scales, offsets) = (keys.scales.as_chunks::<LANES>().0, keys.offsets.as_chunks::<LANES>().0);
    for i in 0..R {
        let (factor, bias) = (_mm512_set1_ps(factors[i].0), _mm512_set1_epi32(factors[i].1));
        for (half, out) in tile[i].as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let steps = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[i][half], bias));
            let scale = _mm512_mul_ps(factor, load(&scales[half]));
            store(_mm512_add_ps(load(&offsets[half]), _mm512_mul_ps(scale, steps)), out);
        }
    }
}
