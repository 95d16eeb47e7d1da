//! Scores many rows against many packed keys: the matrix product behind exact scan, coarse step and k-means.
//!
//! Keys lie in panels of 16 (d × 16, dimension-major). A block of panels that fits the level-2 cache meets groups of 12
//! rows; what comes out of a tile is never stored as a matrix: each row has a limit, and only rows with a score within
//! it are shown to the [`Sieve`].

use crate::simd::{Kernels, LANES, TILE_LANES, TILE_ROWS, Tile};

/// Bytes of panels that meet all rows before the next block is read.
const BLOCK_BYTES: usize = 384 << 10;

/// Receives the scores that are within the limit of their row.
pub trait Sieve {
    /// Scores above it are not shown.
    fn limit(&self, row: usize) -> f32;
    /// Scores of `row` against keys `first .. first + 32`; bit j of `hits` = score j is within the limit.
    fn take(&mut self, row: usize, first: usize, scores: &[f32; TILE_LANES], hits: u32);
}

/// Keys packed for [`sweep`], padded to whole tiles with keys that never pass a limit.
pub struct Panels<'p> {
    /// Dimension.
    pub d: usize,
    /// Packed keys.
    pub data: &'p [f32],
    /// One number per key (padding: +∞); score = offset + scale * product.
    pub offsets: &'p [f32],
    /// Factor of the product.
    pub scale: f32,
}

/// Packed keys that own their memory, refilled block after block.
#[derive(Default)]
pub struct PanelBuffer {
    data: Vec<f32>,
    offsets: Vec<f32>,
    rows: Vec<f32>,
}

impl PanelBuffer {
    /// Packs `n` keys; `read(i, row)` gives key i, `mean` is subtracted, `offset(row)` makes the offset of the packed key.
    pub fn fill(
        &mut self,
        kernels: &Kernels,
        n: usize,
        mean: &[f32],
        read: impl Fn(usize, &mut [f32]),
        offset: impl Fn(&[f32]) -> f32,
    ) {
        let d = mean.len();
        let tiles = n.div_ceil(TILE_LANES);
        self.data.resize(tiles * TILE_LANES * d, 0.0);
        self.offsets.clear();
        self.rows.resize(LANES * d, 0.0);
        for (p, panel) in self.data.chunks_exact_mut(LANES * d).enumerate() {
            for (lane, row) in self.rows.chunks_exact_mut(d).enumerate() {
                let i = p * LANES + lane;
                if i < n {
                    read(i, row);
                    for (x, m) in row.iter_mut().zip(mean) {
                        *x -= m;
                    }
                    self.offsets.push(offset(row));
                } else {
                    row.fill(0.0);
                    self.offsets.push(f32::INFINITY);
                }
            }
            kernels.pack_panel(&self.rows, d, panel);
        }
    }

    /// Views them.
    pub fn view(&self, d: usize, scale: f32) -> Panels<'_> {
        Panels { d, data: &self.data, offsets: &self.offsets, scale }
    }

    /// The parts: packed keys and offsets.
    pub fn into_parts(self) -> (Vec<f32>, Vec<f32>) {
        (self.data, self.offsets)
    }
}

/// Number of keys of dimension `d` that make a block.
pub fn block_lanes(d: usize) -> usize {
    (BLOCK_BYTES / (4 * d.max(1)) / TILE_LANES).max(1) * TILE_LANES
}

/// Scores every row (`rows`: q × d) against every key.
pub fn sweep(kernels: &Kernels, rows: &[f32], panels: &Panels, sieve: &mut impl Sieve) {
    let d = panels.d;
    let block = block_lanes(d);
    let mut tile = Tile::default();
    let mut limits = [0f32; TILE_ROWS];
    for (b, (data, offsets)) in panels.data.chunks(block * d).zip(panels.offsets.chunks(block)).enumerate() {
        for (g, group) in rows.chunks(TILE_ROWS * d).enumerate() {
            let q = group.len() / d;
            for (i, limit) in limits[..q].iter_mut().enumerate() {
                *limit = sieve.limit(g * TILE_ROWS + i);
            }
            let tiles = data.chunks_exact(TILE_LANES * d).zip(offsets.chunks_exact(TILE_LANES));
            for (t, (keys, offsets)) in tiles.enumerate() {
                kernels.score_tile(group, d, keys, offsets, panels.scale, &limits[..q], &mut tile);
                for (i, limit) in limits[..q].iter_mut().enumerate().filter(|(i, _)| tile.hits[*i] != 0) {
                    let row = g * TILE_ROWS + i;
                    sieve.take(row, b * block + t * TILE_LANES, &tile.scores[i], tile.hits[i]);
                    *limit = sieve.limit(row);
                }
            }
        }
    }
}

/// Keeps the nearest key of each row: the sieve of k-means. Equal scores: the first key.
pub struct Closest {
    /// Lowest score of each row.
    pub scores: Vec<f32>,
    /// Its key.
    pub labels: Vec<u32>,
}

impl Closest {
    /// For `n` rows.
    pub fn new(n: usize) -> Closest {
        Closest { scores: vec![f32::MAX; n], labels: vec![0; n] }
    }
}

impl Sieve for Closest {
    fn limit(&self, row: usize) -> f32 {
        self.scores[row]
    }

    fn take(&mut self, row: usize, first: usize, scores: &[f32; TILE_LANES], hits: u32) {
        let mut hits = hits;
        while hits != 0 {
            let lane = hits.trailing_zeros() as usize;
            hits &= hits - 1;
            if scores[lane] < self.scores[row] {
                self.scores[row] = scores[lane];
                self.labels[row] = (first + lane) as u32;
            }
        }
    }
}

/// Writes all scores down (rows × n): the sieve of the coarse step.
pub struct ScoreRows<'m> {
    /// Number of keys without padding.
    pub n: usize,
    /// Scores, row-major.
    pub scores: &'m mut [f32],
}

impl Sieve for ScoreRows<'_> {
    fn limit(&self, _row: usize) -> f32 {
        f32::INFINITY
    }

    fn take(&mut self, row: usize, first: usize, scores: &[f32; TILE_LANES], _hits: u32) {
        let n = TILE_LANES.min(self.n - first.min(self.n));
        self.scores[row * self.n + first..][..n].copy_from_slice(&scores[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closest_and_matrix_equal_a_loop() {
        let (d, q, n) = (5, 30, 77);
        let value = |i: usize| ((i * 7919) % 23) as f32 - 11.0;
        let rows: Vec<f32> = (0..q * d).map(value).collect();
        let keys: Vec<f32> = (0..n * d).map(|i| value(i + 1000)).collect();
        let kernels = Kernels::best();
        let mut buffer = PanelBuffer::default();
        let norm = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>();
        buffer.fill(&kernels, n, &vec![0.0; d], |i, row| row.copy_from_slice(&keys[i * d..(i + 1) * d]), norm);
        let mut scores = vec![0.0; q * n];
        let mut matrix = ScoreRows { n, scores: &mut scores };
        sweep(&kernels, &rows, &buffer.view(d, -2.0), &mut matrix);
        let mut closest = Closest::new(q);
        sweep(&kernels, &rows, &buffer.view(d, -2.0), &mut closest);
        for i in 0..q {
            let scores: Vec<f32> = (0..n)
                .map(|j| {
                    let key = &keys[j * d..(j + 1) * d];
                    norm(key) - 2.0 * rows[i * d..(i + 1) * d].iter().zip(key).map(|(a, b)| a * b).sum::<f32>()
                })
                .collect();
            assert_eq!(&matrix.scores[i * n..(i + 1) * n], &scores[..]);
            let best = scores.iter().copied().fold(f32::MAX, f32::min);
            assert_eq!(closest.labels[i] as usize, scores.iter().position(|&s| s == best).expect("some key"));
        }
    }
}
