//! A random rotation that costs d·log d: random signs and fast Hadamard transforms, three rounds, from a seed.
//!
//! Where d is no power of two, each round transforms two overlapping blocks of p = 2^⌊log₂ d⌋ coordinates, at the
//! beginning and at the end. Each step is orthonormal; only additions and one multiplication per coordinate and
//! transform occur, so all instruction sets give the same bits. (Ailon & Chazelle 2009; three rounds as in Andoni et
//! al. 2015, "Practical and optimal LSH for angular distance".)

use crate::simd::Kernels;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const ROUNDS: usize = 3;

/// An orthonormal d × d matrix, never written down.
pub struct Rotation {
    d: usize,
    signs: Vec<f32>,
}

impl Rotation {
    /// The rotation of dimension `d` that belongs to `seed`.
    pub fn new(d: usize, seed: u64) -> Rotation {
        let mut rng = ChaCha8Rng::from_seed(key(seed ^ 0x726f_7461_7465)); // its own stream: "rotate"
        let mut word = 0;
        let signs = (0..ROUNDS * d)
            .map(|i| {
                if i % 64 == 0 {
                    word = rng.next_u64();
                }
                if word >> (i % 64) & 1 == 1 { -1.0 } else { 1.0 }
            })
            .collect();
        Rotation { d, signs }
    }

    fn block(&self) -> usize {
        1 << self.d.max(1).ilog2()
    }

    /// Rotates `x` (d) in place.
    pub fn apply(&self, kernels: &Kernels, x: &mut [f32]) {
        let block = self.block();
        let scale = 1.0 / (block as f32).sqrt();
        for signs in self.signs.chunks_exact(self.d.max(1)) {
            kernels.multiply(x, signs);
            transform(kernels, &mut x[..block], scale);
            if block < self.d {
                transform(kernels, &mut x[self.d - block..], scale);
            }
        }
    }

    /// Undoes [`Self::apply`].
    pub fn undo(&self, kernels: &Kernels, x: &mut [f32]) {
        let block = self.block();
        let scale = 1.0 / (block as f32).sqrt();
        for signs in self.signs.chunks_exact(self.d.max(1)).rev() {
            if block < self.d {
                transform(kernels, &mut x[self.d - block..], scale);
            }
            transform(kernels, &mut x[..block], scale);
            kernels.multiply(x, signs);
        }
    }
}

/// Key of the stream of a seed: eight outputs of PCG-XSH-RR 64/32 (O'Neill 2014), little-endian. Part of the format: codes
/// of a store are codes of rotated keys, so that no library may change it.
fn key(mut state: u64) -> [u8; 32] {
    let mut key = [0; 32];
    for word in key.chunks_exact_mut(4) {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0xa176_54e4_6fbe_17f3);
        let shifted = (((state >> 18) ^ state) >> 27) as u32;
        word.copy_from_slice(&shifted.rotate_right((state >> 59) as u32).to_le_bytes());
    }
    key
}

fn transform(kernels: &Kernels, x: &mut [f32], scale: f32) {
    kernels.hadamard(x, scale);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;

    const SIGNS: [(u64, [u64; 3]); 4] = [
        (0, [0x293e_9766_e6c1_2718, 0xf0c4_351e_d603_11e6, 0x1234_1477_68a3_1273]),
        (1, [0xdde6_6711_3e1c_9c4d, 0x04a3_be92_52e9_f1e0, 0x4102_de29_a8e5_57a9]),
        (7, [0x9c74_4396_fd8d_d709, 0x88a0_145b_77d2_fb91, 0xb66e_a27c_bdb9_6ae6]),
        (u64::MAX, [0x87eb_3c8f_bc3e_b55b, 0x3040_e19d_9b68_ce55, 0xc9a7_2fa9_8228_bfec]),
    ];

    /// Every store that was ever written depends on these bits.
    #[test]
    fn signs_of_a_seed_never_change() {
        for (seed, first) in SIGNS {
            let word = |signs: &[f32]| signs.iter().enumerate().fold(0, |w, (i, s)| w | u64::from(*s < 0.0) << i);
            let signs = Rotation::new(100, seed).signs;
            assert_eq!([word(&signs[..64]), word(&signs[64..128]), word(&signs[236..])], first, "seed {seed}");
        }
    }

    #[test]
    fn keeps_lengths_mixes_and_can_be_undone() {
        for d in [1, 2, 8, 9, 100, 384, 1000, 8192] {
            let rotation = Rotation::new(d, 7);
            let kernels = Kernels::best();
            let mut x = vec![0f32; d];
            x[d / 2] = 3.0;
            let start = x.clone();
            rotation.apply(&kernels, &mut x);
            let norm: f32 = x.iter().map(|v| v * v).sum();
            assert!((norm - 9.0).abs() < 1e-3, "d={d}: {norm}");
            if d >= 100 {
                let largest = x.iter().fold(0f32, |a, v| a.max(v.abs()));
                assert!(largest < 3.0 * 6.0 / (d as f32).sqrt(), "d={d}: one coordinate of {largest} was not spread");
            }
            for isa in Isa::ALL.into_iter().filter_map(Kernels::of) {
                let mut y = start.clone();
                rotation.apply(&isa, &mut y);
                assert!(x == y, "{isa:?} d={d} differs in bits");
            }
            rotation.undo(&kernels, &mut x);
            assert!(x.iter().zip(&start).all(|(a, b)| (a - b).abs() < 1e-4), "d={d}");
        }
    }
}
