//! What bounds the scans of 4-bit codes, for benchmarks: a loop that only reads, and one with nothing but the look-ups.

use super::isa::Isa;
use super::kernels::Kernels;
use super::operands::FACTOR_BYTES;
use std::arch::x86_64::*;

/// Folds all bytes with xor, in the widest registers of the instruction set: nothing but reading.
pub fn read(kernels: &Kernels, bytes: &[u8]) -> u64 {
    match kernels.isa() {
        // SAFETY: `Kernels` with this value are only made where the CPU has the features.
        Isa::Avx2 => unsafe { read_avx2(bytes) },
        // SAFETY: as above.
        Isa::Avx512 | Isa::Avx512Vnni => unsafe { read_avx512(bytes) },
        _ => bytes.iter().fold(0, |all, b| all ^ u64::from(*b)),
    }
}

/// The look-ups of `scan4` of N queries: every code byte is an index into the tables of its unit, results are folded.
///
/// `blocks` as `scan4` takes them; tables are m × 16 bytes.
pub fn lookups<const N: usize>(kernels: &Kernels, blocks: &[u8], tables: [&[u8]; N]) -> u64 {
    let length = tables[0].len();
    assert!(length > 0 && length.is_multiple_of(128) && tables.iter().all(|t| t.len() == length));
    match kernels.isa() {
        // SAFETY: `Kernels` with this value are only made where the CPU has the features.
        Isa::Avx2 => unsafe { lookups_avx2(blocks, tables) },
        // SAFETY: as above.
        Isa::Avx512 => unsafe { lookups_avx512(blocks, tables) },
        // SAFETY: as above.
        Isa::Avx512Vnni => unsafe { lookups_vbmi(blocks, tables) },
        _ => tables
            .iter()
            .fold(0, |all, t| blocks.iter().zip(t.iter().cycle()).fold(all, |all, (b, t)| all ^ u64::from(b & 15 ^ t))),
    }
}

/// The look-ups of `scan_levels` and, with N > 0, the products of N queries with what was looked up, without their loads.
///
/// `blocks` as `scan_levels` takes them, of entries of `width` coordinates.
pub fn levels<const N: usize>(kernels: &Kernels, blocks: &[u8], width: usize, levels: &[u8; 16]) -> u64 {
    assert!(width > 0 && width.is_multiple_of(128));
    match kernels.isa() {
        // SAFETY: `Kernels` with this value are only made where the CPU has the features.
        Isa::Avx512Vnni => unsafe { levels_vnni::<N>(blocks, width, levels) },
        // SAFETY: as above.
        Isa::Avx2 | Isa::Avx512 => unsafe { levels_avx2::<N>(blocks, width, levels) },
        _ => blocks.iter().fold(0, |all, b| all ^ u64::from(levels[usize::from(b & 15)])),
    }
}

#[target_feature(enable = "avx2")]
fn levels_avx2<const N: usize>(blocks: &[u8], width: usize, levels: &[u8; 16]) -> u64 {
    // SAFETY: the array holds 16 bytes.
    let levels = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(levels.as_ptr().cast()) });
    let ones = _mm256_set1_epi16(1);
    // Different ones, or the compiler would multiply once for all queries.
    let queries: [__m256i; N] = std::array::from_fn(|i| _mm256_set1_epi8(std::hint::black_box(i as i8 + 1)));
    let (mut folded, mut sums) = ([_mm256_setzero_si256(); 2], [[_mm256_setzero_si256(); 2]; N]);
    for block in blocks.chunks_exact(width * 8 + FACTOR_BYTES) {
        for unit in block.as_chunks::<64>().0[..width / 8].iter().map(|unit| unit.as_chunks::<32>().0) {
            for half in 0..2 {
                let codes = load256(&unit[half]);
                let low = _mm256_shuffle_epi8(levels, codes);
                let high = _mm256_shuffle_epi8(levels, _mm256_srli_epi16::<4>(codes));
                if N == 0 {
                    folded[half] = _mm256_xor_si256(folded[half], _mm256_xor_si256(low, high));
                }
                for (sums, &query) in sums.iter_mut().zip(&queries) {
                    let low = _mm256_madd_epi16(_mm256_maddubs_epi16(low, query), ones);
                    let high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, query), ones);
                    sums[half] = _mm256_add_epi32(sums[half], _mm256_add_epi32(low, high));
                }
            }
        }
    }
    let all = sums.as_flattened().iter().copied().chain(folded).reduce(|a, b| _mm256_xor_si256(a, b));
    fold256(all.unwrap_or(_mm256_setzero_si256()))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn levels_vnni<const N: usize>(blocks: &[u8], width: usize, levels: &[u8; 16]) -> u64 {
    // SAFETY: the array holds 16 bytes.
    let levels = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(levels.as_ptr().cast()) });
    // Different ones, or the compiler would multiply once for all queries.
    let queries: [__m512i; N] = std::array::from_fn(|i| _mm512_set1_epi8(std::hint::black_box(i as i8 + 1)));
    // One query alone needs eight sums, or each product would wait for the one before.
    let (mut folded, mut sums) = ([_mm512_setzero_si512(); 2], [[_mm512_setzero_si512(); 8]; N]);
    for block in blocks.chunks_exact(width * 8 + FACTOR_BYTES) {
        for units in block.as_chunks::<64>().0[..width / 8].as_chunks::<4>().0 {
            for (u, unit) in units.iter().enumerate() {
                let codes = load512(unit);
                let low = _mm512_shuffle_epi8(levels, codes);
                let high = _mm512_shuffle_epi8(levels, _mm512_srli_epi16::<4>(codes));
                if N == 0 {
                    folded = [_mm512_xor_si512(folded[0], low), _mm512_xor_si512(folded[1], high)];
                }
                let at = if N == 1 { 2 * u } else { 0 };
                for (sums, &query) in sums.iter_mut().zip(&queries) {
                    sums[at] = _mm512_dpbusd_epi32(sums[at], low, query);
                    sums[at + 1] = _mm512_dpbusd_epi32(sums[at + 1], high, query);
                }
            }
        }
    }
    let all = sums.as_flattened().iter().copied().chain(folded).reduce(|a, b| _mm512_xor_si512(a, b));
    _mm512_reduce_or_epi64(all.unwrap_or(_mm512_setzero_si512())) as u64
}

#[target_feature(enable = "avx2")]
fn read_avx2(bytes: &[u8]) -> u64 {
    let mut sums = [_mm256_setzero_si256(); 8];
    for chunk in bytes.as_chunks::<256>().0 {
        for (sum, part) in sums.iter_mut().zip(chunk.as_chunks::<32>().0) {
            *sum = _mm256_xor_si256(*sum, load256(part));
        }
    }
    let sum = sums.into_iter().reduce(|a, b| _mm256_xor_si256(a, b)).unwrap_or(_mm256_setzero_si256());
    fold256(sum)
}

#[target_feature(enable = "avx512f")]
fn read_avx512(bytes: &[u8]) -> u64 {
    let mut sums = [_mm512_setzero_si512(); 8];
    for chunk in bytes.as_chunks::<512>().0 {
        for (sum, part) in sums.iter_mut().zip(chunk.as_chunks::<64>().0) {
            *sum = _mm512_xor_si512(*sum, load512(part));
        }
    }
    let sum = sums.into_iter().reduce(|a, b| _mm512_xor_si512(a, b)).unwrap_or(_mm512_setzero_si512());
    _mm512_reduce_or_epi64(sum) as u64
}

/// Two registers of codes, two shuffles each (low and high nibbles), as `avx2::scan4`.
#[target_feature(enable = "avx2")]
fn lookups_avx2<const N: usize>(blocks: &[u8], tables: [&[u8]; N]) -> u64 {
    let tables = tables.map(|t| t.as_chunks::<32>().0.as_chunks::<4>().0);
    let units = tables[0].len();
    let mut sums = [[_mm256_setzero_si256(); 2]; N];
    for block in blocks.chunks_exact(units * 64 + FACTOR_BYTES) {
        for (u, unit) in block.as_chunks::<64>().0[..units].iter().enumerate() {
            let halves = unit.as_chunks::<32>().0;
            let codes = [load256(&halves[0]), load256(&halves[1])];
            for (sums, tables) in sums.iter_mut().zip(&tables) {
                for half in 0..2 {
                    let low = _mm256_shuffle_epi8(load256(&tables[u][half]), codes[half]);
                    let high = _mm256_shuffle_epi8(load256(&tables[u][2 + half]), codes[half]);
                    sums[0] = _mm256_xor_si256(sums[0], low);
                    sums[1] = _mm256_xor_si256(sums[1], high);
                }
            }
        }
    }
    let sum = sums.as_flattened().iter().copied().reduce(|a, b| _mm256_xor_si256(a, b));
    fold256(sum.unwrap_or(_mm256_setzero_si256()))
}

/// One register of codes, two look-ups a unit.
macro_rules! lookups512 {
    ($name:ident, $features:literal, $doc:literal, $look_up:expr) => {
        #[doc = $doc]
        #[target_feature(enable = $features)]
        fn $name<const N: usize>(blocks: &[u8], tables: [&[u8]; N]) -> u64 {
            let tables = tables.map(|t| t.as_chunks::<64>().0.as_chunks::<2>().0);
            let units = tables[0].len();
            let mut sums = [[_mm512_setzero_si512(); 2]; N];
            for block in blocks.chunks_exact(units * 64 + FACTOR_BYTES) {
                for (u, unit) in block.as_chunks::<64>().0[..units].iter().enumerate() {
                    let codes = load512(unit);
                    for (sums, tables) in sums.iter_mut().zip(&tables) {
                        for (sum, table) in sums.iter_mut().zip(&tables[u]) {
                            *sum = _mm512_xor_si512(*sum, $look_up(load512(table), codes));
                        }
                    }
                }
            }
            let sum = sums.as_flattened().iter().copied().reduce(|a, b| _mm512_xor_si512(a, b));
            _mm512_reduce_or_epi64(sum.unwrap_or(_mm512_setzero_si512())) as u64
        }
    };
}

lookups512!(lookups_avx512, "avx512f,avx512bw", "Shuffles, as `avx512::scan4`.", |t, c| _mm512_shuffle_epi8(t, c));
lookups512!(
    lookups_vbmi,
    "avx512f,avx512bw,avx512vbmi",
    "Permutations of 64 bytes, as `avx512vnni::scan4`.",
    |t, c| _mm512_permutexvar_epi8(c, t)
);

#[inline]
#[target_feature(enable = "avx2")]
fn load256(x: &[u8; 32]) -> __m256i {
    // SAFETY: the array holds 32 bytes; the load is unaligned.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load512(x: &[u8; 64]) -> __m512i {
    // SAFETY: the array holds 64 bytes; the load is unaligned.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn fold256(x: __m256i) -> u64 {
    let x = _mm_or_si128(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    (_mm_cvtsi128_si64(x) | _mm_extract_epi64::<1>(x)) as u64
}
