//! Defaults from the store's own neighbors: how many lists to scan, and the temperature before tuning.
//!
//! Sampled stored keys serve as queries, their own entries left out. One exact scan gives their neighbors. nprobe is the
//! smallest number of lists that holds 95 % of those neighbors on average, unless it would scan more than a tenth of the
//! entries; small stores scan all lists. The temperature is median(d_k − d_1) / 6: the last neighbor then weighs e⁻⁶ of
//! the first.

use super::kmeans::{Matrix, assign, pack, stratified};
use super::rotation::Rotation;
use crate::exact::sweep::{PanelBuffer, ScoreRows, sweep};
use crate::exact::{Filter, Rows, scan, smallest};
use crate::simd::Kernels;
use crate::threads::Pool;
use crate::{Metric, Result};
use rand_chacha::ChaCha8Rng;
use std::sync::atomic::AtomicBool;

const QUERIES: usize = 128;
const NEIGHBORS: usize = 1024;
/// Every how many-th neighbor is looked up in the lists: all would cost more than the exact scan.
const EVERY: usize = 8;
const GOAL: f64 = 0.95;
/// Stores up to this size scan all lists.
const SMALL: usize = 20_000;
/// Most of the entries that the default scans, as a fraction.
const MOST_SCANNED: f64 = 0.1;
/// Rows that queries are compared with; in a larger store, an evenly spread part.
const MOST_ROWS: usize = 4 << 20;

/// What was found.
pub struct Defaults {
    /// Lists to scan.
    pub nprobe: usize,
    /// Softmax temperature.
    pub temperature: f32,
}

/// Finds them; `centroids` are rotated, `packed` are not (less `mean`), with the offsets of the coarse step.
#[allow(clippy::too_many_arguments)]
pub fn run(
    kernels: &Kernels,
    rows: &Rows,
    metric: Metric,
    mean: &[f32],
    rotation: &Rotation,
    centroids: &Matrix,
    packed: &PanelBuffer,
    rng: &mut ChaCha8Rng,
    pool: &Pool,
    progress: &dyn Fn(u64, u64),
    cancel: &AtomicBool,
) -> Result<Defaults> {
    progress(0, 3);
    let (n, d) = (rows.len(), mean.len());
    let part = rows.part(MOST_ROWS);
    let chosen = stratified(rng, n, QUERIES);
    let mut queries = vec![0f32; chosen.len() * d];
    chosen.iter().zip(queries.chunks_exact_mut(d)).for_each(|(&i, row)| rows.read(i, row));
    let own: Vec<_> = chosen.iter().map(|&i| rows.id(i)..rows.id(i) + 1).collect();
    let fraction = part.len() as f64 / n as f64;
    let k = ((NEIGHBORS.min(n / 10) as f64 * fraction).ceil() as usize).max(1);
    let filter = Filter { exclude: Some(&own), ..Filter::default() };
    let found = scan(kernels, metric, &part, d, &queries, k, filter, pool, cancel)?;
    progress(1, 3);

    let mut gaps: Vec<f32> = found.iter().filter(|f| !f.is_empty()).map(|f| f[f.len() - 1].0 - f[0].0).collect();
    gaps.sort_by(f32::total_cmp);
    let gap = gaps.get(gaps.len() / 2).copied().unwrap_or(0.0);
    let temperature = if gap > 0.0 && gap.is_finite() { (gap / 6.0).max(f32::MIN_POSITIVE) } else { 1.0 };

    let nlist = centroids.n();
    if n <= SMALL || nlist == 1 {
        return Ok(Defaults { nprobe: nlist, temperature });
    }
    let centred = |row: &mut [f32]| row.iter_mut().zip(mean).for_each(|(x, m)| *x -= m);
    let lists = pack(kernels, centroids);
    let label = |data: &mut Vec<f32>| {
        for row in data.chunks_exact_mut(d) {
            centred(row);
            rotation.apply(kernels, row);
        }
        assign(kernels, data, d, &lists, pool, cancel).map(|(labels, _)| labels)
    };
    // Lengths of the lists, from a sample.
    let mut data = vec![0f32; n.min(16 * nlist) * d];
    let sampled = stratified(rng, n, n.min(16 * nlist));
    data.chunks_exact_mut(d).zip(&sampled).for_each(|(row, &i)| rows.read(i, row));
    let mut share = vec![0f64; nlist];
    label(&mut data)?.iter().for_each(|&l| share[l as usize] += 1.0 / sampled.len() as f64);
    progress(2, 3);

    // Rank of each neighbor's list in the order of its query's lists.
    let (mut at_rank, mut scanned) = (vec![0f64; nlist], vec![0f64; nlist]);
    let mut total = 0f64;
    for (query, found) in queries.chunks_exact(d).zip(&found) {
        let found = found.iter().step_by(EVERY);
        let mut neighbors = vec![0f32; found.len() * d];
        for (row, (_, id)) in neighbors.chunks_exact_mut(d).zip(found) {
            part.find(*id).into_iter().for_each(|i| part.read(i, row));
        }
        let labels = label(&mut neighbors)?;
        let mut query = query.to_vec();
        centred(&mut query);
        let mut row = vec![f32::INFINITY; nlist];
        let mut scores = ScoreRows { n: nlist, scores: &mut row };
        sweep(kernels, &query, &packed.view(d, if metric == Metric::L2 { -2.0 } else { -1.0 }), &mut scores);
        let mut rank = vec![0usize; nlist];
        for (r, &list) in smallest(kernels, scores.scores, nlist).iter().enumerate() {
            rank[list as usize] = r;
            scanned[r] += share[list as usize] / chosen.len() as f64;
        }
        labels.iter().for_each(|&l| at_rank[rank[l as usize]] += 1.0);
        total += labels.len() as f64;
    }
    progress(3, 3);
    let (mut held, mut read, mut nprobe) = (0.0, 0.0, 0);
    while nprobe < nlist && held < GOAL * total {
        read += scanned[nprobe];
        if read > MOST_SCANNED && nprobe > 0 {
            break;
        }
        held += at_rank[nprobe];
        nprobe += 1;
    }
    Ok(Defaults { nprobe: nprobe.max(1), temperature })
}
