//! A block of 16 coded entries: packing and unpacking.
//!
//! 4 bits: m/8 units of 64 bytes; byte v of lane j (16 bytes) of unit g holds entry v: low nibble = code of sub-quantiser
//! 8g + j, high nibble = 8g + 4 + j. 8 bits: m rows of 16 bytes. Levels: units of 64 bytes; byte 4v + j of unit g holds
//! entry v: low nibble = coordinate 8g + j, high nibble = 8g + 4 + j. Then the factors: 16 × A, 16 × B, f32.

use super::coding::Coding;
use crate::simd::{LANES, float_at};

/// Writes the codes (a byte each) and factors of entry `lane` into a zeroed block.
pub fn put(coding: Coding, block: &mut [u8], lane: usize, codes: &[u8], (a, b): (f32, f32)) {
    let end = coding.code_bytes() * LANES;
    match coding {
        Coding::Product(shape) if shape.bits == 4 => {
            for (unit, codes) in block[..end].chunks_exact_mut(64).zip(codes.chunks_exact(8)) {
                for j in 0..4 {
                    unit[j * LANES + lane] = codes[j] | codes[4 + j] << 4;
                }
            }
        }
        Coding::Product(_) => {
            for (row, &code) in block[..end].chunks_exact_mut(LANES).zip(codes) {
                row[lane] = code;
            }
        }
        Coding::Levels { .. } => {
            for (unit, codes) in block[..end].chunks_exact_mut(64).zip(codes.chunks_exact(8)) {
                for j in 0..4 {
                    unit[4 * lane + j] = codes[j] | codes[4 + j] << 4;
                }
            }
        }
    }
    block[end + 4 * lane..][..4].copy_from_slice(&a.to_le_bytes());
    block[end + 4 * (LANES + lane)..][..4].copy_from_slice(&b.to_le_bytes());
}

/// Marks entry `lane` as padding.
pub fn put_padding(coding: Coding, block: &mut [u8], lane: usize) {
    let end = coding.code_bytes() * LANES;
    block[end + 4 * lane..][..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
}

/// Reads what [`put`] wrote.
pub fn get(coding: Coding, block: &[u8], lane: usize, codes: &mut [u8]) -> (f32, f32) {
    let end = coding.code_bytes() * LANES;
    match coding {
        Coding::Product(shape) if shape.bits == 8 => {
            for (row, code) in block[..end].chunks_exact(LANES).zip(codes) {
                *code = row[lane];
            }
        }
        _ => {
            let at = |j: usize| match coding {
                Coding::Levels { .. } => 4 * lane + j,
                Coding::Product(_) => j * LANES + lane,
            };
            for (unit, codes) in block[..end].chunks_exact(64).zip(codes.chunks_exact_mut(8)) {
                for j in 0..4 {
                    (codes[j], codes[4 + j]) = (unit[at(j)] & 15, unit[at(j)] >> 4);
                }
            }
        }
    }
    let factors = &block[end..];
    (float_at(factors, lane), float_at(factors, LANES + lane))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::quantiser::Shape;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn get_undoes_put(units in 1usize..20, kind in 0..3, seed in any::<u64>()) {
            let (coding, most) = match kind {
                0 => (Coding::Product(Shape { m: units * 8, bits: 4, dsub: 1 }), 15),
                1 => (Coding::Product(Shape { m: units * 8, bits: 8, dsub: 1 }), 255),
                _ => (Coding::Levels { width: units * 128 }, 15),
            };
            let byte = |i: usize| ((i as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 & most;
            let mut block = vec![0u8; coding.block_bytes()];
            let m = coding.codes();
            let codes: Vec<Vec<u8>> = (0..LANES).map(|v| (0..m).map(|j| byte(v * m + j)).collect()).collect();
            for (v, codes) in codes.iter().enumerate() {
                put(coding, &mut block, v, codes, (v as f32, -1.5));
            }
            for (v, codes) in codes.iter().enumerate() {
                let mut got = vec![0u8; m];
                prop_assert_eq!(get(coding, &block, v, &mut got), (v as f32, -1.5));
                prop_assert_eq!(&got, codes);
            }
        }
    }
}
