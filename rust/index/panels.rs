//! Vectors in 7 bits, packed for integer products: what the coarse step and k-means compare 8-bit rows with.
//!
//! A packed vector is a length of its own times numbers from −63 to 63, a row one of its own times numbers from −127 to 127.
//! Rotated vectors have no coordinate that stands out, so a length for all coordinates is enough; the error of a product is
//! about |x||c|·0.01/√d. A quarter of the bytes of f32 and, with VNNI, eight times the products per instruction.

use super::bytes::{ByteRows, padded};
use crate::aligned::Aligned;
use crate::simd::{ByteKeys, Kernels, LANES, Scores, TILE_LANES, TILE_ROWS};
use std::ops::Range;

/// What stands for zero in a packed number.
pub const ZERO: i32 = 64;
/// Bytes of panels that meet all rows before the next are read.
const BLOCK_BYTES: usize = 384 << 10;
/// From this dimension on, errors of single coordinates average out.
pub const LEAST_DIMENSION: usize = 97;

/// Packed vectors, in panels of 16: for every four dimensions 16 × 4 numbers; padded to whole tiles with ones that score +∞.
pub struct BytePanels {
    width: usize,
    panels: Aligned<u8>,
    scales: Aligned<f32>,
    offsets: Aligned<f32>,
}

impl BytePanels {
    /// Packs `n` vectors of dimension `d`: `fill(i, row)` writes vector i and returns its offset.
    pub fn pack(n: usize, d: usize, mut fill: impl FnMut(usize, &mut [f32]) -> f32) -> BytePanels {
        let (width, lanes) = (padded(d), n.next_multiple_of(TILE_LANES));
        let mut panels = Aligned::zeros(lanes * width);
        let (mut scales, mut offsets) = (Aligned::zeros(lanes), Aligned::zeros(lanes));
        offsets.fill(f32::INFINITY);
        let mut row = vec![0f32; d];
        for i in 0..n {
            offsets[i] = fill(i, &mut row);
            let panel = &mut panels[i / LANES * LANES * width..][..LANES * width];
            scales[i] = round(&row, |t, number| panel[t / 4 * 64 + i % LANES * 4 + t % 4] = number);
        }
        BytePanels { width, panels, scales, offsets }
    }

    /// Number of scores of a row, padded.
    pub fn padded(&self) -> usize {
        self.offsets.len()
    }

    /// Scores the rows of a span, offset + sign · ⟨row, vector⟩: `take(row, first, scores)` gets 32 at a
    /// time, from vector `first` on; rows count from the beginning of the span.
    pub fn sweep(
        &self,
        kernels: &Kernels,
        rows: &ByteRows,
        span: Range<usize>,
        sign: f32,
        mut take: impl FnMut(usize, usize, &[f32; TILE_LANES]),
    ) {
        let width = self.width;
        debug_assert_eq!(width, rows.width());
        let packed: Vec<Vec<i8>> = (span.clone().step_by(TILE_ROWS))
            .map(|first| rows.interleaved(first..span.end.min(first + TILE_ROWS)))
            .collect();
        let factor = |i: usize| {
            let (scale, sum) = rows.scale_and_sum(i);
            (sign * scale, ZERO * sum)
        };
        let tiles = (BLOCK_BYTES / (width * TILE_LANES)).max(1);
        let mut tile: Scores = [[0f32; TILE_LANES]; TILE_ROWS];
        for block in (0..self.padded() / TILE_LANES).step_by(tiles) {
            let end = (block + tiles).min(self.padded() / TILE_LANES);
            for (g, numbers) in packed.iter().enumerate() {
                let q = numbers.len() / width;
                let mut factors = [(0f32, 0i32); TILE_ROWS];
                factors[..q].iter_mut().zip(span.start + g * TILE_ROWS..).for_each(|(f, i)| *f = factor(i));
                for t in block..end {
                    let lanes = t * TILE_LANES..(t + 1) * TILE_LANES;
                    let keys = ByteKeys {
                        numbers: &self.panels[lanes.start * width..lanes.end * width],
                        scales: &self.scales[lanes.clone()],
                        offsets: &self.offsets[lanes.clone()],
                    };
                    kernels.score_tile8(numbers, width, keys, &factors[..q], &mut tile);
                    for (i, scores) in tile[..q].iter().enumerate() {
                        take(g * TILE_ROWS + i, lanes.start, scores);
                    }
                }
            }
        }
    }

    /// The vector of the lowest score for every row, and that score; the first of equals.
    pub fn nearest(&self, kernels: &Kernels, rows: &ByteRows) -> (Vec<u32>, Vec<f32>) {
        let (mut labels, mut least) = (vec![0u32; rows.len()], vec![f32::MAX; rows.len()]);
        self.sweep(kernels, rows, 0..rows.len(), -2.0, |row, first, scores| {
            let mut lowest = f32::MAX;
            for &score in scores {
                lowest = if score < lowest { score } else { lowest };
            }
            if lowest < least[row] {
                least[row] = lowest;
                labels[row] = (first + scores.iter().position(|&s| s == lowest).unwrap_or(0)) as u32;
            }
        });
        (labels, least)
    }
}

/// Rounds to 127 steps about [`ZERO`]: x ≈ scale · (number − 64); returns the scale.
pub fn round(row: &[f32], mut put: impl FnMut(usize, u8)) -> f32 {
    let largest = row.iter().fold(0f32, |most, x| most.max(x.abs()));
    let inverse = if largest > 0.0 { 63.0 / largest } else { 0.0 };
    row.iter().enumerate().for_each(|(t, x)| put(t, (x * inverse + 64.5) as u8));
    largest / 63.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_close_to_products() {
        let (d, n, q) = (130, 75, 40);
        let value = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) % 2001) as f32 / 1000.0 - 1.0;
        let vectors: Vec<f32> = (0..n * d).map(value).collect();
        let rows: Vec<f32> = (0..q * d).map(|i| value(i + 77_777)).collect();
        let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
        let panels = BytePanels::pack(n, d, |i, row| {
            row.copy_from_slice(&vectors[i * d..(i + 1) * d]);
            norm(row)
        });
        let kernels = Kernels::best();
        let bytes = ByteRows::of(&kernels, d, &rows);
        let mut seen = 0;
        panels.sweep(&kernels, &bytes, 0..q, -2.0, |row, first, scores| {
            for (j, &score) in scores.iter().enumerate() {
                if first + j >= n {
                    assert_eq!(score, f32::INFINITY);
                    continue;
                }
                let x = &vectors[(first + j) * d..][..d];
                let exact = norm(x) - 2.0 * x.iter().zip(&rows[row * d..]).map(|(a, b)| a * b).sum::<f32>();
                assert!((score - exact).abs() < 0.5, "{score} {exact}");
                seen += 1;
            }
        });
        assert_eq!(seen, n * q);
        let (labels, least) = panels.nearest(&kernels, &bytes);
        panels.sweep(&kernels, &bytes, 0..q, -2.0, |row, first, scores| {
            assert!(scores.iter().all(|&s| s >= least[row]));
            let at = labels[row] as usize;
            assert!(!(first..first + TILE_LANES).contains(&at) || scores[at - first] == least[row]);
        });
    }
}
