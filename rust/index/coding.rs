//! How the entries of lists are coded: by a product quantiser, or coordinate by coordinate.

use super::levels;
use super::quantiser::{Shape, decode_words};
use crate::Metric;
use crate::simd::{FACTOR_BYTES, Kernels, LANES};

/// Kind and shape of the codes of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Words of a product quantiser.
    Product(Shape),
    /// 4-bit levels of `width` coordinates: a multiple of 128, those from d on are zero.
    Levels {
        /// Coordinates.
        width: usize,
    },
}

impl Coding {
    /// Length of a padded vector.
    pub fn padded(self) -> usize {
        match self {
            Coding::Product(shape) => shape.padded(),
            Coding::Levels { width } => width,
        }
    }

    /// Codes of an entry, one byte each before they are packed.
    pub fn codes(self) -> usize {
        match self {
            Coding::Product(shape) => shape.m,
            Coding::Levels { width } => width,
        }
    }

    /// Bytes of the packed code of an entry.
    pub fn code_bytes(self) -> usize {
        match self {
            Coding::Product(shape) => shape.code_bytes(),
            Coding::Levels { width } => width / 2,
        }
    }

    /// Bytes of a block of 16 entries: codes, then factors.
    pub fn block_bytes(self) -> usize {
        self.code_bytes() * LANES + FACTOR_BYTES
    }
}

/// Turns residuals into codes.
pub struct Encoder<'e> {
    /// Kernels.
    pub kernels: Kernels,
    /// Kind of the codes.
    pub coding: Coding,
    /// Words of a product quantiser, m × dsub × c.
    pub words: &'e [f32],
    /// Dimension of the keys.
    pub d: usize,
    /// How keys are compared.
    pub metric: Metric,
}

impl Encoder<'_> {
    /// Codes a rotated, padded residual, which is scaled to length one on the way; `centroid` is the rotated, padded
    /// centroid. `word` is what the codes stand for, of the padded length. Returns the factors (A, B).
    ///
    /// The estimate uses s = |r| / ⟨û, u⟩ instead of |r| (as RaBitQ does, Gao & Long 2024), which makes it unbiased.
    pub fn encode(&self, residual: &mut [f32], centroid: &[f32], codes: &mut [u8], word: &mut [f32]) -> (f32, f32) {
        let norm2 = self.kernels.ip_f32(residual, residual);
        let norm = norm2.sqrt();
        if norm > 0.0 {
            let inverse = 1.0 / norm;
            residual.iter_mut().for_each(|x| *x *= inverse);
        }
        match self.coding {
            Coding::Product(shape) if shape.bits == 4 => {
                self.kernels.encode::<16>(residual, shape.dsub, self.words, codes);
            }
            Coding::Product(shape) => self.kernels.encode::<256>(residual, shape.dsub, self.words, codes),
            Coding::Levels { .. } => {
                levels::encode(&self.kernels, residual, 1.0 / (self.d as f32).sqrt(), codes);
                codes[self.d..].fill(0);
            }
        }
        decode(self.coding, self.d, self.words, codes, word);
        let cosine = self.kernels.ip_f32(residual, word);
        // A code that points away from its residual carries nothing: fall back to the centroid.
        let s = if norm > 0.0 && cosine > 1e-3 { norm / cosine } else { 0.0 };
        match self.metric {
            Metric::L2 => (norm2 + 2.0 * s * self.kernels.ip_f32(centroid, word), -2.0 * s),
            Metric::Ip => (0.0, -s),
        }
    }
}

/// The coded direction û (padded length) of unpacked codes; zero from d on.
pub fn decode(coding: Coding, d: usize, words: &[f32], codes: &[u8], out: &mut [f32]) {
    match coding {
        Coding::Product(shape) => decode_words(shape, words, codes, out),
        Coding::Levels { .. } => {
            out.iter_mut().zip(codes).for_each(|(x, &code)| *x = levels::level(code));
            out[d..].fill(0.0);
        }
    }
}
