//! Scalar code: 4 bits a coordinate, one table of levels for all of them.
//!
//! After a random rotation the coordinates of a unit residual are nearly Gaussian with variance 1/d; each takes the nearest
//! of the 16 levels that are best for that (Lloyd 1982, Max 1960). The levels are bytes, so that the product of a code
//! with a query in 8 bits is a sum of integers.

use crate::simd::Kernels;

/// Levels in units of 1 / [`SPREAD`] standard deviations, plus [`MIDDLE`].
pub const LEVELS: [u8; 16] = [1, 16, 27, 35, 42, 49, 55, 61, 67, 73, 79, 86, 93, 101, 112, 127];
/// What stands for zero in [`LEVELS`].
pub const MIDDLE: i32 = 64;
/// Level units of one standard deviation: the outermost level, 2.7326, becomes 63.
const SPREAD: f32 = 23.055;

/// Where the nearest level changes, in level units.
const BORDERS: [f32; 15] = {
    let mut borders = [0f32; 15];
    let mut i = 0;
    while i < 15 {
        borders[i] = (LEVELS[i] as f32 + LEVELS[i + 1] as f32) / 2.0 - MIDDLE as f32;
        i += 1;
    }
    borders
};

/// Codes of coordinates of the standard deviation `spread`: the nearest level of each, from 0 to 15.
pub fn encode(kernels: &Kernels, x: &[f32], spread: f32, codes: &mut [u8]) {
    let inverse = if spread > 0.0 { SPREAD / spread } else { 0.0 };
    kernels.count_borders(x, inverse, &BORDERS, codes);
}

/// What a code stands for, in level units.
pub fn level(code: u8) -> f32 {
    f32::from(LEVELS[usize::from(code & 15)]) - MIDDLE as f32
}
