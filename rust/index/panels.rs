//! Vectors in 7 bits, packed for integer products: what the coarse step and k-means compare 8-bit rows with.
//!
//! A packed vector is a length of its own times numbers from −63 to 63, a row one of its own times numbers from −127 to 127.
//! Rotated vectors have no coordinate that stands out, so a length for all coordinates is enough; the error of a product is
//! about |x||c|·0.01/√d. A quarter of the bytes of f32 and, with VNNI, eight times the products per instruction.

use super::second::QueryBytes;
use crate::simd::{Kernels, LANES, Scores, TILE_LANES, TILE_ROWS};

/// What stands for zero in a packed number.
const MIDDLE: i32 = 64;
/// Bytes of panels that meet all rows before the next are read.
const BLOCK_BYTES: usize = 384 << 10;
/// From this dimension on, errors of single coordinates average out.
pub const LEAST_DIMENSION: usize = 97;

/// Packed vectors, in panels of 16: for every four dimensions 16 × 4 numbers; padded to whole tiles with ones that score +∞.
pub struct BytePanels {
    width: usize,
    panels: Vec<u8>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
}

impl BytePanels {
    /// Packs `n` vectors of dimension `d`: `fill(i, row)` writes vector i and returns its offset.
    pub fn pack(n: usize, d: usize, mut fill: impl FnMut(usize, &mut [f32]) -> f32) -> BytePanels {
        let (width, padded) = (d.next_multiple_of(4), n.next_multiple_of(TILE_LANES));
        let mut panels = vec![0u8; padded * width];
        let (mut scales, mut offsets) = (vec![0f32; padded], vec![f32::INFINITY; padded]);
        let mut row = vec![0f32; d];
        for i in 0..n {
            offsets[i] = fill(i, &mut row);
            let largest = row.iter().fold(0f32, |most, x| most.max(x.abs()));
            scales[i] = largest / 63.0;
            let inverse = if largest > 0.0 { 63.0 / largest } else { 0.0 };
            let panel = &mut panels[i / LANES * LANES * width..][..LANES * width];
            for (t, x) in row.iter().enumerate() {
                panel[t / 4 * 64 + i % LANES * 4 + t % 4] = (x * inverse + 64.5) as u8;
            }
        }
        BytePanels { width, panels, scales, offsets }
    }

    /// Number of scores of a row, padded.
    pub fn padded(&self) -> usize {
        self.offsets.len()
    }

    /// Scores rows, offset + sign · ⟨row, vector⟩: `take(row, first, scores)` gets 32 at a time, from vector `first` on.
    pub fn sweep(
        &self,
        kernels: &Kernels,
        rows: &[QueryBytes],
        sign: f32,
        mut take: impl FnMut(usize, usize, &[f32; TILE_LANES]),
    ) {
        let width = self.width;
        let mut numbers = Vec::with_capacity(rows.len() * width);
        rows.iter().for_each(|row| numbers.extend_from_slice(&row.numbers[..width]));
        let factors: Vec<(f32, i32)> = rows.iter().map(|row| (sign * row.scale, MIDDLE * row.sum)).collect();
        let tiles = (BLOCK_BYTES / (width * TILE_LANES)).max(1);
        let mut tile: Scores = [[0f32; TILE_LANES]; TILE_ROWS];
        for block in (0..self.padded() / TILE_LANES).step_by(tiles) {
            let end = (block + tiles).min(self.padded() / TILE_LANES);
            for (g, (numbers, factors)) in numbers.chunks(TILE_ROWS * width).zip(factors.chunks(TILE_ROWS)).enumerate()
            {
                for t in block..end {
                    let span = t * TILE_LANES..(t + 1) * TILE_LANES;
                    let panels = &self.panels[span.start * width..span.end * width];
                    let (scales, offsets) = (&self.scales[span.clone()], &self.offsets[span.clone()]);
                    kernels.score_tile8(numbers, width, panels, scales, offsets, factors, &mut tile);
                    for (i, scores) in tile[..factors.len()].iter().enumerate() {
                        take(g * TILE_ROWS + i, span.start, scores);
                    }
                }
            }
        }
    }

    /// The vector of the lowest score for every row, and that score; the first of equals.
    pub fn nearest(&self, kernels: &Kernels, rows: &[QueryBytes]) -> (Vec<u32>, Vec<f32>) {
        let (mut labels, mut least) = (vec![0u32; rows.len()], vec![f32::MAX; rows.len()]);
        self.sweep(kernels, rows, -2.0, |row, first, scores| {
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
        let bytes: Vec<QueryBytes> = rows
            .chunks(d)
            .map(|row| {
                let mut bytes = QueryBytes::default();
                bytes.fill(row);
                bytes
            })
            .collect();
        let kernels = Kernels::best();
        let mut seen = 0;
        panels.sweep(&kernels, &bytes, -2.0, |row, first, scores| {
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
        panels.sweep(&kernels, &bytes, -2.0, |row, first, scores| {
            assert!(scores.iter().all(|&s| s >= least[row]));
            let at = labels[row] as usize;
            assert!(!(first..first + TILE_LANES).contains(&at) || scores[at - first] == least[row]);
        });
    }
}
