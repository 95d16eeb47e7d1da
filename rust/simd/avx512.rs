//! Kernels with AVX-512 F, BW, DQ and VL.

use super::instantiate::{portable_kernels, portable_rows};
use super::operands::{ByteKeys, FACTOR_BYTES, LANES, ScanQuery, TILE_LANES, TILE_ROWS, Tile, targets};
use super::{portable, scalar};
use half::f16;
use std::arch::x86_64::*;

/// See [`scalar::score_tile`].
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl,fma")]
pub fn score_tile(
    rows: &[f32],
    d: usize,
    panels: &[f32],
    offsets: &[f32],
    scale: f32,
    limits: &[f32],
    tile: &mut Tile,
) {
    macro_rules! by_rows {
        ($($r:literal)*) => {
            match rows.len() / d {
                $($r => tile_of::<$r>(rows, d, panels, offsets, scale, limits, tile),)*
                q => assert!(q <= TILE_ROWS, "at most {TILE_ROWS} rows in a tile, found {q}"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// R rows × 32 keys: 2 R accumulators (24 of 32 registers at R = 12).
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl,fma")]
fn tile_of<const R: usize>(
    rows: &[f32],
    d: usize,
    panels: &[f32],
    offsets: &[f32],
    scale: f32,
    limits: &[f32],
    tile: &mut Tile,
) {
    let (left, right) = panels.split_at(d * LANES);
    let (left, right) = (&left.as_chunks::<LANES>().0[..d], &right.as_chunks::<LANES>().0[..d]);
    let row: [&[f32]; R] = std::array::from_fn(|i| &rows[i * d..(i + 1) * d]);
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for t in 0..d {
        let (l, r) = (load(&left[t]), load(&right[t]));
        for i in 0..R {
            let x = _mm512_set1_ps(row[i][t]);
            sums[i][0] = _mm512_fmadd_ps(x, l, sums[i][0]);
            sums[i][1] = _mm512_fmadd_ps(x, r, sums[i][1]);
        }
    }
    let offsets = offsets.as_chunks::<LANES>().0;
    let (o0, o1) = (load(&offsets[0]), load(&offsets[1]));
    let scale = _mm512_set1_ps(scale);
    for i in 0..R {
        let limit = _mm512_set1_ps(limits[i]);
        let s0 = _mm512_add_ps(o0, _mm512_mul_ps(scale, sums[i][0]));
        let s1 = _mm512_add_ps(o1, _mm512_mul_ps(scale, sums[i][1]));
        let (out0, out1) = tile.scores[i].split_at_mut(LANES);
        store(s0, out0);
        store(s1, out1);
        let h0 = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(s0, limit);
        let h1 = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(s1, limit);
        tile.hits[i] = u32::from(h0) | u32::from(h1) << LANES;
    }
    const { assert!(TILE_LANES == 2 * LANES) };
}

#[inline]
#[target_feature(enable = "popcnt,avx512f")]
pub(super) fn load(x: &[f32; LANES]) -> __m512 {
    // SAFETY: the array holds 64 bytes; the load is unaligned.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "popcnt,avx512f")]
pub(super) fn store(v: __m512, out: &mut [f32]) {
    assert!(out.len() >= LANES);
    // SAFETY: at least 64 bytes, checked above; the store is unaligned.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
}

#[inline]
#[target_feature(enable = "popcnt,avx512f")]
pub(super) fn load_bytes(x: &[u8; 64]) -> __m512i {
    // SAFETY: the array holds 64 bytes; the load is unaligned.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

/// The four partial sums of 16 lanes each, folded as [`scalar::fold`] does.
#[inline]
#[target_feature(enable = "popcnt,avx512f")]
fn fold(sums: [__m512; 4]) -> f32 {
    let mut out = [0f32; scalar::SUMS];
    let s0 = _mm512_add_ps(_mm512_add_ps(sums[0], sums[2]), _mm512_add_ps(sums[1], sums[3]));
    store(s0, &mut out[..LANES]);
    let mut half = LANES / 2;
    while half >= 1 {
        for i in 0..half {
            out[i] += out[i + half];
        }
        half /= 2;
    }
    out[0]
}

macro_rules! direct {
    ($name:ident, $doc:literal, $key:ty, $load:expr, $term:expr) => {
        #[doc = $doc]
        #[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
        pub fn $name(a: &[f32], b: &[$key]) -> f32 {
            let mut sums = [_mm512_setzero_ps(); 4];
            let (whole_a, rest_a) = a.as_chunks::<{ scalar::SUMS }>();
            let (whole_b, rest_b) = b.as_chunks::<{ scalar::SUMS }>();
            for (a, b) in whole_a.iter().zip(whole_b) {
                for ((sum, a), b) in sums.iter_mut().zip(a.as_chunks::<LANES>().0).zip(b.as_chunks::<LANES>().0) {
                    *sum = _mm512_add_ps(*sum, $term(load(a), $load(b)));
                }
            }
            if !rest_a.is_empty() && rest_a.len() == rest_b.len() {
                let (mut last_a, mut last_b) = ([0f32; scalar::SUMS], [<$key>::default(); scalar::SUMS]);
                last_a[..rest_a.len()].copy_from_slice(rest_a);
                last_b[..rest_b.len()].copy_from_slice(rest_b);
                for ((sum, a), b) in
                    sums.iter_mut().zip(last_a.as_chunks::<LANES>().0).zip(last_b.as_chunks::<LANES>().0)
                {
                    *sum = _mm512_add_ps(*sum, $term(load(a), $load(b)));
                }
            }
            fold(sums)
        }
    };
}

#[inline]
#[target_feature(enable = "popcnt,avx512f")]
fn load_f16(x: &[f16; LANES]) -> __m512 {
    // SAFETY: the array holds 32 bytes; the load is unaligned.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "popcnt,avx512f")]
fn square_of_difference(a: __m512, b: __m512) -> __m512 {
    let e = _mm512_sub_ps(a, b);
    _mm512_mul_ps(e, e)
}

#[inline]
#[target_feature(enable = "popcnt,avx512f")]
fn product(a: __m512, b: __m512) -> __m512 {
    _mm512_mul_ps(a, b)
}

direct!(l2_f32, "See [`scalar::l2_f32`].", f32, load, square_of_difference);
direct!(l2_f16, "See [`scalar::l2_f16`].", f16, load_f16, square_of_difference);
direct!(ip_f32, "See [`scalar::ip_f32`].", f32, load, product);
direct!(ip_f16, "See [`scalar::ip_f16`].", f16, load_f16, product);

/// See [`super::Kernels::scan4_group`].
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
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

/// Units whose sums fit 16 bits: 64 of 2 × 127 per lane, four lanes: 65,024.
const UNITS: usize = 64;

/// What the tables of N queries say of the 16 entries of a block. A unit is one register: 4 lanes of 16 bytes, a table per lane.
///
/// # Safety
/// Each table has 128 bytes for every 64 bytes of codes.
#[inline]
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn table_sums<const N: usize>(codes: &[u8], tables: [*const u8; N]) -> [__m512i; N] {
    let nibble = _mm512_set1_epi8(15);
    let mut sums = [_mm512_setzero_si512(); N];
    for (part, codes) in codes.chunks(UNITS * 64).enumerate() {
        let (mut all, mut high) = ([_mm512_setzero_si512(); N], [_mm512_setzero_si512(); N]);
        for (u, unit) in codes.as_chunks::<64>().0.iter().enumerate() {
            let unit = load_bytes(unit);
            let (low, top) = (_mm512_and_si512(unit, nibble), _mm512_and_si512(_mm512_srli_epi16::<4>(unit), nibble));
            for i in 0..N {
                // SAFETY: the caller's; the loads are unaligned.
                let table = unsafe {
                    let table = tables[i].add(128 * (part * UNITS + u));
                    [_mm512_loadu_si512(table.cast()), _mm512_loadu_si512(table.add(64).cast())]
                };
                // Two entries of at most 127 add up within a byte.
                let both = _mm512_add_epi8(_mm512_shuffle_epi8(table[0], low), _mm512_shuffle_epi8(table[1], top));
                all[i] = _mm512_add_epi16(all[i], both);
                high[i] = _mm512_add_epi16(high[i], _mm512_srli_epi16::<8>(both));
            }
        }
        for i in 0..N {
            sums[i] = _mm512_add_epi32(sums[i], lane_sums(all[i], high[i]));
        }
    }
    sums
}

/// Sums of the four 128-bit lanes per vector of the block. `all` = Σ (even + 256 odd) modulo 2¹⁶, `high` = Σ odd.
#[inline]
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
fn lane_sums(all: __m512i, high: __m512i) -> __m512i {
    let even = _mm512_sub_epi16(all, _mm512_slli_epi16::<8>(high));
    let fold = |x: __m512i| -> __m128i {
        let half = _mm256_add_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64::<1>(x));
        _mm_add_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half))
    };
    let (even, odd) = (fold(even), fold(high));
    let order = _mm256_set_m128i(_mm_unpackhi_epi16(even, odd), _mm_unpacklo_epi16(even, odd));
    _mm512_cvtepu16_epi32(order)
}

/// See [`super::Kernels::scan8`].
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn scan8(blocks: &[u8], query: &ScanQuery<f32>, first: u32, scores: &mut [f32], entries: &mut [u32]) -> usize {
    let tables = query.table.as_chunks::<256>().0;
    let m = tables.len();
    let [to] = targets(&mut [(scores, entries)], blocks.len() / (m * LANES + FACTOR_BYTES));
    let mut found = 0;
    for (b, block) in blocks.chunks_exact(m * LANES + FACTOR_BYTES).enumerate() {
        let (codes, factors) = block.split_at(m * LANES);
        let mut sums = _mm512_setzero_ps();
        for (codes, table) in codes.as_chunks::<LANES>().0.iter().zip(tables) {
            // SAFETY: 16 bytes are read from an array of 16; gathers index a table of 256 by a byte.
            let terms = unsafe {
                let index = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
                _mm512_i32gather_ps::<4>(index, table.as_ptr())
            };
            sums = _mm512_add_ps(sums, terms);
        }
        let (factors, lanes) = (load_factors(factors), lanes_from(first + (b * LANES) as u32));
        let to = (to.0.wrapping_add(found), to.1.wrapping_add(found));
        // SAFETY: every block before this one kept at most 16 entries, so 16 more fit what `targets` checked.
        found += unsafe { keep_at(sums, factors, (query.base, query.limit), lanes, to) };
    }
    found
}

/// The end of a block for one query: scores `(base + A) + B * sum`; those at most the limit are compressed to `to` with
/// their lanes. Returns how many. Writing them always is cheaper than a branch that is not foreseen.
///
/// # Safety
/// 16 scores and 16 entries can be written at `to`.
#[inline]
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn keep_at(
    sum: __m512,
    [a, b]: [__m512; 2],
    (base, limit): (f32, f32),
    lanes: __m512i,
    to: (*mut f32, *mut u32),
) -> usize {
    let score = _mm512_add_ps(_mm512_add_ps(_mm512_set1_ps(base), a), _mm512_mul_ps(b, sum));
    let hits = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(score, _mm512_set1_ps(limit));
    // SAFETY: the caller's; the stores are unaligned.
    unsafe {
        _mm512_storeu_ps(to.0, _mm512_maskz_compress_ps(hits, score));
        _mm512_storeu_si512(to.1.cast(), _mm512_maskz_compress_epi32(hits, lanes));
    }
    hits.count_ones() as usize
}

/// The entry of each lane of the block that begins with `first`.
#[inline]
#[target_feature(enable = "popcnt,avx512f")]
pub(super) fn lanes_from(first: u32) -> __m512i {
    let order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_add_epi32(_mm512_set1_epi32(first as i32), order)
}

/// The two factors of each entry of a block.
#[inline]
#[target_feature(enable = "popcnt,avx512f")]
pub(super) fn load_factors(factors: &[u8]) -> [__m512; 2] {
    let factors = factors.as_chunks::<64>().0;
    [_mm512_castsi512_ps(load_bytes(&factors[0])), _mm512_castsi512_ps(load_bytes(&factors[1]))]
}

pub use super::avx2::{dot4, scan_levels_group, score_tile8};

/// See [`super::Kernels::keep_at_most`].
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn keep_at_most(scores: &mut [f32], entries: &mut [u32], limit: f32) -> usize {
    let n = scores.len().min(entries.len());
    let bound = _mm512_set1_ps(limit);
    let (mut kept, mut i) = (0, 0);
    while i + LANES <= n {
        // SAFETY: 16 scores and entries from i on are there; stores begin at kept ≤ i, so they end where the loads did.
        unsafe {
            let score = _mm512_loadu_ps(scores.as_ptr().add(i));
            let entry = _mm512_loadu_si512(entries.as_ptr().add(i).cast());
            let hits = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(score, bound);
            _mm512_storeu_ps(scores.as_mut_ptr().add(kept), _mm512_maskz_compress_ps(hits, score));
            _mm512_storeu_si512(entries.as_mut_ptr().add(kept).cast(), _mm512_maskz_compress_epi32(hits, entry));
            kept += hits.count_ones() as usize;
        }
        i += LANES;
    }
    for i in i..n {
        let (score, entry) = (scores[i], entries[i]);
        (scores[kept], entries[kept]) = (score, entry);
        kept += usize::from(score <= limit);
    }
    kept
}

/// See [`super::Kernels::find_at_most`].
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn find_at_most(values: &[f32], limit: f32, out: &mut [u32]) -> usize {
    let bound = _mm512_set1_ps(limit);
    let mut lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut found = 0;
    for chunk in chunks {
        let hits = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(load(chunk), bound);
        if hits != 0 {
            let to = &mut out[found..found + LANES];
            // SAFETY: the slice holds 16 numbers, cut above; the store is unaligned.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(hits, lanes)) };
            found += hits.count_ones() as usize;
        }
        lanes = _mm512_add_epi32(lanes, _mm512_set1_epi32(LANES as i32));
    }
    for (i, &value) in rest.iter().enumerate() {
        if value <= limit {
            out[found] = (chunks.len() * LANES + i) as u32;
            found += 1;
        }
    }
    found
}

/// See [`super::Kernels::hadamard`]. The last four levels stay within a register.
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn hadamard(x: &mut [f32], scale: f32) {
    if x.len() < LANES {
        return portable::hadamard(x, scale);
    }
    let mut half = x.len() / 2;
    while half >= LANES {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.as_chunks_mut::<LANES>().0.iter_mut().zip(high.as_chunks_mut::<LANES>().0) {
                let (l, h) = (load(a), load(b));
                store(_mm512_add_ps(l, h), a);
                store(_mm512_sub_ps(l, h), b);
            }
        }
        half /= 2;
    }
    // Partner + x in the lower half of a pair, partner − x in the upper.
    let minus = |lanes: u16| _mm512_maskz_mov_ps(lanes, _mm512_set1_ps(-0.0));
    let (m8, m4, m2, m1) = (minus(0xff00), minus(0xf0f0), minus(0xcccc), minus(0xaaaa));
    for part in x.as_chunks_mut::<LANES>().0 {
        let mut v = load(part);
        v = _mm512_add_ps(_mm512_shuffle_f32x4::<0x4e>(v, v), _mm512_xor_ps(v, m8));
        v = _mm512_add_ps(_mm512_shuffle_f32x4::<0xb1>(v, v), _mm512_xor_ps(v, m4));
        v = _mm512_add_ps(_mm512_permute_ps::<0x4e>(v), _mm512_xor_ps(v, m2));
        v = _mm512_add_ps(_mm512_permute_ps::<0xb1>(v), _mm512_xor_ps(v, m1));
        store(_mm512_mul_ps(v, _mm512_set1_ps(scale)), part);
    }
}

/// See [`super::Kernels::tables4`]. A sub-quantiser's 16 words are a register.
#[target_feature(enable = "popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn tables4(query: &[f32], words: &[f32], products: &mut [f32], table: &mut [u8]) -> (f32, f32) {
    let products = products.as_chunks_mut::<LANES>().0;
    let dsub = query.len() / products.len();
    let (mut span, mut bias) = (0f32, 0f32);
    let rows = words.as_chunks::<LANES>().0.chunks_exact(dsub);
    for ((out, part), words) in products.iter_mut().zip(query.chunks_exact(dsub)).zip(rows) {
        let mut sums = _mm512_setzero_ps();
        for (&x, row) in part.iter().zip(words) {
            sums = _mm512_add_ps(sums, _mm512_mul_ps(_mm512_set1_ps(x), load(row)));
        }
        let low = _mm512_reduce_min_ps(sums);
        let width = _mm512_reduce_max_ps(sums) - low;
        span = if width > span { width } else { span };
        bias += low;
        store(_mm512_sub_ps(sums, _mm512_set1_ps(low)), out);
    }
    let inverse = _mm512_set1_ps(if span > 0.0 { 127.0 / span } else { 0.0 });
    for (out, products) in table.as_chunks_mut::<LANES>().0.iter_mut().zip(products) {
        let steps = _mm512_add_ps(_mm512_mul_ps(load(products), inverse), _mm512_set1_ps(0.5));
        let bytes = _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(steps));
        // SAFETY: the array holds 16 bytes; the store is unaligned.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) };
    }
    (span / 127.0, bias)
}

portable_kernels!("popcnt,avx512f,avx512bw,avx512dq,avx512vl", portable);
portable_rows!("popcnt,avx512f,avx512bw,avx512dq,avx512vl", portable);
