//! k-means for the lists: Lloyd's algorithm on a fused product and argmin, in 8 bits for rotated rows of many dimensions.
//!
//! Sums run over the members of a cluster in order, clusters are spread over the threads: the same bytes for any number
//! of threads. Exact duplicates may leave clusters empty; iterations are counted, nothing loops.

use super::bytes::ByteRows;
use super::panels::{BytePanels, LEAST_DIMENSION};
use crate::exact::sweep::{Closest, PanelBuffer, sweep};
use crate::simd::Kernels;
use crate::threads::Pool;
use crate::{Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows that a thread assigns at a time.
const CHUNK: usize = 1024;

/// `n × d` rows that own their memory.
#[derive(Clone, Default)]
pub struct Matrix {
    /// Dimension.
    pub d: usize,
    /// Rows, one after the other.
    pub data: Vec<f32>,
}

impl Matrix {
    /// Number of rows.
    pub fn n(&self) -> usize {
        self.data.len() / self.d
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.d..(i + 1) * self.d]
    }

    /// Rows `indices`, in that order.
    pub fn select(&self, indices: impl IntoIterator<Item = usize>) -> Matrix {
        Matrix { d: self.d, data: indices.into_iter().flat_map(|i| self.row(i)).copied().collect() }
    }
}

/// A number below `n`; the bias of the modulus is far below anything that matters here.
pub fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    (rng.next_u64() % n as u64) as usize
}

/// `k` distinct numbers below `n`, ascending (all, if k ≥ n): one from each of k equal parts.
pub fn stratified(rng: &mut ChaCha8Rng, n: usize, k: usize) -> Vec<usize> {
    if k >= n {
        return (0..n).collect();
    }
    let part = |i: usize| (i as u128 * n as u128 / k as u128) as usize;
    (0..k).map(|i| part(i) + below(rng, part(i + 1) - part(i))).collect()
}

/// Centroids packed for assignment: score = |c|² − 2⟨x, c⟩.
pub enum Packed {
    /// In 7 bits, for rotated rows of many dimensions.
    Bytes(BytePanels),
    /// In f32.
    Floats(PanelBuffer),
}

/// Packs centroids.
pub fn pack(kernels: &Kernels, centroids: &Matrix) -> Packed {
    if centroids.d >= LEAST_DIMENSION {
        return Packed::Bytes(BytePanels::pack(centroids.n(), centroids.d, |i, row| {
            row.copy_from_slice(centroids.row(i));
            kernels.ip_f32(row, row)
        }));
    }
    let mut packed = PanelBuffer::default();
    packed.fill(
        kernels,
        centroids.n(),
        &vec![0.0; centroids.d],
        |i, row| row.copy_from_slice(centroids.row(i)),
        |row| kernels.ip_f32(row, row),
    );
    Packed::Floats(packed)
}

impl Packed {
    /// Nearest centroid of each row (of dimension `d`), and its score.
    pub fn nearest(&self, kernels: &Kernels, rows: &[f32], d: usize) -> (Vec<u32>, Vec<f32>) {
        match self {
            Packed::Bytes(panels) => panels.nearest(kernels, &ByteRows::of(kernels, d, rows)),
            Packed::Floats(panels) => {
                let mut closest = Closest::new(rows.len() / d);
                sweep(kernels, rows, &panels.view(d, -2.0), &mut closest);
                (closest.labels, closest.scores)
            }
        }
    }
}

/// Nearest centroid of each row of dimension `d`, and its score.
pub fn assign(
    kernels: &Kernels,
    rows: &[f32],
    d: usize,
    packed: &Packed,
    pool: &Pool,
    cancel: &AtomicBool,
) -> Result<(Vec<u32>, Vec<f32>)> {
    let n = rows.len() / d;
    let parts = pool.map(n.div_ceil(CHUNK), |c| {
        let rows = &rows[c * CHUNK * d..(n.min((c + 1) * CHUNK)) * d];
        if cancel.load(Ordering::Relaxed) { (Vec::new(), Vec::new()) } else { packed.nearest(kernels, rows, d) }
    });
    if cancel.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    let (mut labels, mut scores) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for part in parts {
        labels.extend(part.0);
        scores.extend(part.1);
    }
    Ok((labels, scores))
}

/// Members of each cluster in ascending order: `(starts, members)`.
pub fn members(labels: &[u32], k: usize) -> (Vec<usize>, Vec<u32>) {
    let mut starts = vec![0usize; k + 1];
    for &l in labels {
        starts[l as usize + 1] += 1;
    }
    for i in 0..k {
        starts[i + 1] += starts[i];
    }
    let mut next = starts.clone();
    let mut members = vec![0u32; labels.len()];
    for (i, &l) in (0u32..).zip(labels) {
        members[next[l as usize]] = i;
        next[l as usize] += 1;
    }
    (starts, members)
}

/// Mean of each cluster; an empty one keeps its centroid.
pub fn means(rows: &Matrix, labels: &[u32], centroids: &mut Matrix, pool: &Pool) {
    let (d, k) = (rows.d, centroids.n());
    let (starts, members) = members(labels, k);
    let old = &*centroids;
    let new = pool.map(k, |c| {
        let members = &members[starts[c]..starts[c + 1]];
        if members.is_empty() {
            return old.row(c).to_vec();
        }
        let mut sum = vec![0f64; d];
        for &i in members {
            for (s, &x) in sum.iter_mut().zip(rows.row(i as usize)) {
                *s += f64::from(x);
            }
        }
        sum.into_iter().map(|s| (s / members.len() as f64) as f32).collect()
    });
    centroids.data = new.concat();
}

/// What k-means works with.
pub struct Lloyd<'l> {
    /// Kernels.
    pub kernels: &'l Kernels,
    /// Threads.
    pub pool: &'l Pool,
    /// Set to stop.
    pub cancel: &'l AtomicBool,
    /// Called with the number of iterations done.
    pub step: &'l (dyn Fn(usize) + Sync),
}

impl Lloyd<'_> {
    /// `k` centroids of `rows` after `iterations`. Begins with random rows; an empty cluster restarts at a random row.
    pub fn run(&self, rows: &Matrix, k: usize, iterations: usize, rng: &mut ChaCha8Rng) -> Result<Matrix> {
        let mut centroids = rows.select(stratified(rng, rows.n(), k));
        while centroids.n() < k {
            let again = rows.row(below(rng, rows.n())).to_vec();
            centroids.data.extend(again);
        }
        for i in 0..iterations {
            let packed = pack(self.kernels, &centroids);
            let (labels, _) = assign(self.kernels, &rows.data, rows.d, &packed, self.pool, self.cancel)?;
            means(rows, &labels, &mut centroids, self.pool);
            let mut counts = vec![0u32; k];
            labels.iter().for_each(|&l| counts[l as usize] += 1);
            if i + 1 < iterations {
                for c in (0..k).filter(|&c| counts[c] == 0) {
                    let again = below(rng, rows.n());
                    centroids.data[c * rows.d..(c + 1) * rows.d].copy_from_slice(rows.row(again));
                }
            }
            (self.step)(i + 1);
        }
        Ok(centroids)
    }

    /// Splits each cluster of more than `cap` rows into parts of about `cap / 2` by a k-means of its own.
    ///
    /// Identical rows cannot be split and stay together. Long lists are where queries fall, so this saves more
    /// scanning than as many lists more from the start.
    pub fn split(&self, rows: &Matrix, centroids: &Matrix, cap: usize, seed: u64) -> Result<Matrix> {
        use rand_chacha::rand_core::SeedableRng;
        let packed = pack(self.kernels, centroids);
        let (labels, _) = assign(self.kernels, &rows.data, rows.d, &packed, self.pool, self.cancel)?;
        let (starts, members) = members(&labels, centroids.n());
        let alone = Pool::get(Some(1))?;
        let parts = self.pool.map(centroids.n(), |c| {
            let members = &members[starts[c]..starts[c + 1]];
            if members.len() <= cap {
                return Ok(Matrix { d: rows.d, data: centroids.row(c).to_vec() });
            }
            let rows = rows.select(members.iter().map(|&i| i as usize));
            let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (c as u64) << 20);
            let local = Lloyd { pool: &alone, step: &|_| (), ..*self };
            let pieces = local.run(&rows, members.len().div_ceil(cap / 2), 5, &mut rng)?;
            let packed = pack(self.kernels, &pieces);
            let (labels, _) = assign(self.kernels, &rows.data, rows.d, &packed, &alone, self.cancel)?;
            let mut used = vec![false; pieces.n()];
            labels.iter().for_each(|&l| used[l as usize] = true);
            Ok(pieces.select((0..pieces.n()).filter(|&p| used[p])))
        });
        let mut all = Matrix { d: rows.d, data: Vec::new() };
        for part in parts {
            all.data.extend(part?.data);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    fn lloyd<T>(threads: usize, f: impl FnOnce(&Lloyd) -> T) -> T {
        let (kernels, pool) = (Kernels::best(), Pool::get(Some(threads)).expect("threads"));
        f(&Lloyd { kernels: &kernels, pool: &pool, cancel: &AtomicBool::new(false), step: &|_| () })
    }

    /// Points at integers ± 0.25: the clusters are known.
    fn clustered(clusters: usize, each: usize) -> Matrix {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let data = (0..clusters * each).flat_map(|i| {
            let c = (i % clusters) as f32 * 10.0;
            [c + below(&mut rng, 100) as f32 / 200.0 - 0.25, -c]
        });
        Matrix { d: 2, data: data.collect() }
    }

    #[test]
    fn finds_clear_clusters_with_any_number_of_threads() {
        let rows = clustered(8, 40);
        let run = |threads| {
            lloyd(threads, |l| {
                let first = l.run(&rows, 3, 5, &mut ChaCha8Rng::seed_from_u64(1)).expect("not cancelled");
                let mut all = l.split(&rows, &first, 50, 9).expect("not cancelled");
                let packed = pack(l.kernels, &all);
                let (labels, _) = assign(l.kernels, &rows.data, 2, &packed, l.pool, l.cancel).expect("runs");
                means(&rows, &labels, &mut all, l.pool);
                all.data
            })
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert!(one.len() / 2 >= 6, "long clusters were split: {} centroids", one.len() / 2);
    }

    #[test]
    fn identical_rows_do_not_loop() {
        let rows = Matrix { d: 3, data: vec![1.5; 3 * 500] };
        lloyd(2, |l| {
            let centroids = l.run(&rows, 20, 6, &mut ChaCha8Rng::seed_from_u64(1)).expect("runs");
            assert!(centroids.data.iter().all(|&x| x == 1.5));
            let split = l.split(&rows, &centroids.select([0]), 100, 1).expect("runs");
            assert_eq!(split.n(), 1, "identical rows stay together");
        });
    }

    #[test]
    fn stratified_is_distinct_and_ascending() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for (n, k) in [(10, 10), (10, 3), (1000, 999), (5, 9)] {
            let chosen = stratified(&mut rng, n, k);
            assert_eq!(chosen.len(), k.min(n));
            assert!(chosen.is_sorted_by(|a, b| a < b) && chosen.iter().all(|&i| i < n));
        }
    }
}
