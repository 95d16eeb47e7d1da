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
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x726f_7461_7465); // its own stream: "rotate"
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

fn transform(kernels: &Kernels, x: &mut [f32], scale: f32) {
    kernels.hadamard(x, scale);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;

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
