//! Exact scan of raw keys: equal to brute force, at the speed of a matrix product.
//!
//! Many queries: blocks of keys, less their mean (L2), are packed and swept with `|x|² − 2⟨q, x⟩`; its rounding error is
//! at most ε = 2γ|q||x| (+ the norm's), γ = min(d, 8√d)·2⁻²⁴ (Higham & Mary 2019, eq. 1.2 with λ = 8). Every key within 2ε
//! of the k-th score is kept and scored again directly, Σ(q−x)² in f32; those scores decide. So the outcome is that
//! of the direct scan, which few queries use at once.

use super::filter::Filter;
use super::found::{Found, best};
use super::rows::Rows;
use super::select::{Nearest, kth_smallest};
use super::sweep::{PanelBuffer, Sieve, block_lanes, sweep};
use crate::disk::Meter;
use crate::simd::{Kernels, TILE_LANES};
use crate::threads::Pool;
use crate::{Error, Metric, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Up to this many queries are scanned directly: packing would cost more.
const DIRECT_QUERIES: usize = 3;
/// Queries that one packed block meets.
const QUERY_TILE: usize = 1024;
/// Scans of fewer products stay on the caller's thread: some 100 microseconds.
const BRIEF_PRODUCTS: usize = 2_000_000;
/// Rows per task, so that positions fit 32 bits.
const MOST_ROWS: usize = 1 << 30;

/// The `k` nearest rows of every query, by direct score and id, for each query in order.
#[allow(clippy::too_many_arguments)]
pub fn scan(
    kernels: &Kernels,
    metric: Metric,
    rows: &Rows,
    d: usize,
    queries: &[f32],
    k: usize,
    filter: Filter,
    pool: &Pool,
    cancel: &AtomicBool,
) -> Result<Vec<Found>> {
    let q = queries.len() / d;
    let n = rows.len();
    if n == 0 || q == 0 {
        return Ok(vec![Found::new(); q]);
    }
    let mean = match metric {
        Metric::L2 => mean(rows, d),
        Metric::Ip => vec![0.0; d],
    };
    // Little work stays on the caller's thread: starting others takes longer.
    let threads = if q * d < BRIEF_PRODUCTS / n { 1 } else { pool.threads() };
    let tile = QUERY_TILE.min(q.div_ceil(threads)).max(DIRECT_QUERIES.min(q));
    let tiles = q.div_ceil(tile);
    let parts =
        if threads == 1 { 1 } else { 2 * threads }.div_ceil(tiles).min(n.div_ceil(4096)).max(n.div_ceil(MOST_ROWS));
    let tasks = pool.map(tiles * parts, |task| {
        let (t, part) = (task / parts, task % parts);
        let _meter = Meter::start();
        let span = t * tile..q.min((t + 1) * tile);
        let job = Job {
            kernels,
            metric,
            rows,
            range: n * part / parts..n * (part + 1) / parts,
            d,
            mean: &mean,
            queries: &queries[span.start * d..span.end * d],
            k,
            filter: filter.of_queries(&span),
            cancel,
        };
        if job.queries.len() / d <= DIRECT_QUERIES { job.direct() } else { job.swept() }
    });
    let mut found = vec![Found::new(); q];
    for (task, result) in tasks.into_iter().enumerate() {
        for (i, part) in result?.into_iter().enumerate() {
            found[task / parts * tile + i].extend(part);
        }
    }
    for f in &mut found {
        best(f, k);
    }
    Ok(found)
}

/// Mean of up to 4096 rows at equal distances: subtracting it makes the products small; any vector would be right.
fn mean(rows: &Rows, d: usize) -> Vec<f32> {
    let n = rows.len().min(4096);
    let mut row = vec![0f32; d];
    let mut sum = vec![0f64; d];
    for i in 0..n {
        rows.read(i * rows.len() / n, &mut row);
        for (s, &x) in sum.iter_mut().zip(&row) {
            *s += f64::from(x);
        }
    }
    sum.into_iter().map(|s| (s / n as f64) as f32).collect()
}

struct Job<'j, 'k> {
    kernels: &'j Kernels,
    metric: Metric,
    rows: &'j Rows<'k>,
    range: Range<usize>,
    d: usize,
    mean: &'j [f32],
    queries: &'j [f32],
    k: usize,
    filter: Filter<'j>,
    cancel: &'j AtomicBool,
}

impl Job<'_, '_> {
    fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn id(&self, position: u32) -> u64 {
        self.rows.id(self.range.start + position as usize)
    }

    fn is_excluded(&self, query: usize, position: u32) -> bool {
        !self.filter.is_open(!self.filter.deleted.is_empty()) && !self.filter.admits(query, self.id(position))
    }

    fn direct(&self) -> Result<Vec<Found>> {
        let mut nearest: Vec<Nearest> = self.queries.chunks(self.d).map(|_| Nearest::new(self.k, f32::MAX)).collect();
        for row in self.range.clone() {
            if row % 4096 == 0 {
                self.check()?;
            }
            let position = (row - self.range.start) as u32;
            for (i, (query, nearest)) in self.queries.chunks(self.d).zip(&mut nearest).enumerate() {
                let score = self.rows.score(self.kernels, self.metric, query, row);
                if score <= nearest.limit() && !self.is_excluded(i, position) {
                    nearest.push(self.kernels, score, position, u64::from);
                }
            }
        }
        Ok(nearest
            .into_iter()
            .map(|mut nearest| {
                nearest.cut(self.kernels, u64::from);
                let pairs = nearest.scores().iter().zip(nearest.entries());
                pairs.map(|(&score, &position)| (score, self.id(position))).collect()
            })
            .collect())
    }

    fn swept(&self) -> Result<Vec<Found>> {
        let d = self.d;
        let mut rows = self.queries.to_vec();
        for row in rows.chunks_exact_mut(d) {
            for (x, m) in row.iter_mut().zip(self.mean) {
                *x -= m;
            }
        }
        let gamma = (d as f32).min(8.0 * (d as f32).sqrt()) * f32::EPSILON / 2.0 + 4.0 * f32::EPSILON;
        let norms = rows.chunks_exact(d).map(|row| self.kernels.ip_f32(row, row));
        let margins: Vec<Margin> = norms
            .map(|norm| Margin { norm, nearest: Nearest::new(self.k, f32::MAX), limit: f32::MAX, kth: f32::MAX })
            .collect();
        let mut sieve = Margins { job: self, gamma, longest: 0.0, first: 0, margins };
        let mut packed = PanelBuffer::default();
        let (block, scale) = (block_lanes(d), if self.metric == Metric::L2 { -2.0 } else { -1.0 });
        for start in self.range.clone().step_by(block) {
            self.check()?;
            let n = block.min(self.range.end - start);
            let longest = std::cell::Cell::new(sieve.longest);
            let offset = |row: &[f32]| {
                let norm = self.kernels.ip_f32(row, row);
                longest.set(longest.get().max(norm));
                if self.metric == Metric::L2 { norm } else { 0.0 }
            };
            packed.fill(self.kernels, n, self.mean, |i, row| self.rows.read(start + i, row), offset);
            sieve.longest = longest.get();
            sieve.first = (start - self.range.start) as u32;
            sieve.widen();
            sweep(self.kernels, &rows, &packed.view(d, scale), &mut sieve);
        }
        (0..sieve.margins.len()).for_each(|query| sieve.cut(query));
        let finished = sieve.margins.iter().zip(self.queries.chunks_exact(d)).map(|(margin, query)| {
            let mut found: Found = margin.nearest.entries().iter().map(|&p| (0.0, self.id(p))).collect();
            let rows = margin.nearest.entries().iter().map(|&p| self.range.start + p as usize);
            self.rows.score_all(self.kernels, self.metric, query, rows, &mut found);
            best(&mut found, self.k);
            found
        });
        Ok(finished.collect())
    }
}

/// Candidates of one query.
struct Margin {
    /// |q|² less the mean.
    norm: f32,
    nearest: Nearest,
    /// k-th score plus both rounding errors.
    limit: f32,
    kth: f32,
}

struct Margins<'j, 'k> {
    job: &'j Job<'j, 'k>,
    gamma: f32,
    /// Longest |x|² so far.
    longest: f32,
    first: u32,
    margins: Vec<Margin>,
}

impl Margins<'_, '_> {
    /// Twice the error of a score.
    fn slack(&self, norm: f32) -> f32 {
        let (q, x) = (norm.sqrt(), self.longest.sqrt());
        2.0 * self.gamma * (2.0 * q * x + x * x + q * q)
    }

    /// Limits grow with the longest key.
    fn widen(&mut self) {
        for i in 0..self.margins.len() {
            let slack = self.slack(self.margins[i].norm);
            let margin = &mut self.margins[i];
            margin.limit = if margin.kth == f32::MAX { f32::MAX } else { margin.kth + slack };
        }
    }

    /// Finds the k-th score and drops what is further than the margin from it. Where too much lies within the margin
    /// (duplicates), direct scores decide at once.
    fn cut(&mut self, query: usize) {
        let (job, slack) = (self.job, self.slack(self.margins[query].norm));
        let margin = &mut self.margins[query];
        if margin.nearest.len() < job.k {
            return;
        }
        margin.kth = kth_smallest(job.kernels, margin.nearest.scores(), job.k);
        margin.limit = margin.kth + slack;
        margin.nearest.drop_above(margin.limit);
        if margin.nearest.len() > job.k + job.k / 2 + 1024 {
            let norm = if job.metric == Metric::L2 { margin.norm } else { 0.0 };
            let q = &job.queries[query * job.d..(query + 1) * job.d];
            margin.nearest.rescore(|p| job.rows.score(job.kernels, job.metric, q, job.range.start + p as usize) - norm);
            margin.nearest.cut(job.kernels, u64::from);
            margin.kth = margin.nearest.limit();
            margin.limit = margin.kth + slack;
        }
    }
}

impl Sieve for Margins<'_, '_> {
    fn limit(&self, row: usize) -> f32 {
        self.margins[row].limit
    }

    fn take(&mut self, row: usize, first: usize, scores: &[f32; TILE_LANES], hits: u32) {
        if self.margins[row].nearest.len() + TILE_LANES > 2 * self.job.k + 2048 {
            self.cut(row);
        }
        let (job, limit) = (self.job, self.margins[row].limit);
        let nearest = &mut self.margins[row].nearest;
        let mut hits = hits;
        while hits != 0 {
            let lane = hits.trailing_zeros() as usize;
            hits &= hits - 1;
            let position = self.first + (first + lane) as u32;
            if scores[lane] <= limit && scores[lane] < f32::MAX && !job.is_excluded(row, position) {
                nearest.append(scores[lane], position);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyBlock, KeyRows};
    use crate::simd::Isa;
    use half::f16;
    use proptest::prelude::*;

    /// Brute force in f64.
    fn oracle(metric: Metric, keys: &[f32], d: usize, query: &[f32]) -> Vec<(f64, u64)> {
        let mut all: Vec<(f64, u64)> = keys
            .chunks(d)
            .enumerate()
            .map(|(i, key)| {
                let terms = query.iter().zip(key).map(|(&q, &x)| (f64::from(q), f64::from(x)));
                let score = match metric {
                    Metric::L2 => terms.map(|(q, x)| (q - x) * (q - x)).sum(),
                    Metric::Ip => -terms.map(|(q, x)| q * x).sum::<f64>(),
                };
                (score, i as u64)
            })
            .collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn equals_brute_force(
            seed in any::<u64>(), d in 1usize..70, n in 1usize..1500, q in 1usize..30, k in 1usize..80,
            l2: bool, half: bool, shift in prop::sample::select(vec![0f32, 30.0]), distinct in 1usize..2000, threads in 1usize..3,
        ) {
            let metric = if l2 { Metric::L2 } else { Metric::Ip };
            let value = |i: usize| {
                let x = (i as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                f16::from_f32((x >> 40) as f32 / 8_388_608.0 - 1.0 + shift).to_f32()
            };
            let keys: Vec<f32> = (0..n).flat_map(|i| (0..d).map(move |t| value((i % distinct) * d + t))).collect();
            let queries: Vec<f32> = (0..q * d).map(|i| value(i + 1_000_003)).collect();
            let halves: Vec<f16> = keys.iter().map(|&x| f16::from_f32(x)).collect();
            let cut = n / 3 * d;
            let block = |from: usize, to: usize| KeyBlock {
                first_id: (from / d) as u64, d,
                rows: if half { KeyRows::F16(&halves[from..to]) } else { KeyRows::F32(&keys[from..to]) },
            };
            let rows = Rows::new(&[block(0, cut), block(cut, n * d)]);
            let exclude: Vec<Range<u64>> = (0..q as u64).map(|i| i..i + 5).collect();
            let gone = [3u64..7, 20..21];
            let filter = Filter { deleted: &gone, exclude: Some(&exclude), ..Filter::default() };
            let pool = Pool::get(Some(threads)).expect("threads start");
            let mut first: Option<Vec<Found>> = None;
            // Products of either sign may cancel, squares cannot.
            let least = if l2 { 1e-3 } else { 0.1 };
            for isa in Isa::ALL.into_iter().filter_map(Kernels::of) {
                let found = scan(&isa, metric, &rows, d, &queries, k, filter, &pool, &AtomicBool::new(false))
                    .expect("not interrupted");
                for (i, found) in found.iter().enumerate() {
                    let mut want = oracle(metric, &keys, d, &queries[i * d..(i + 1) * d]);
                    want.retain(|w| !exclude[i].contains(&w.1) && !gone.iter().any(|r| r.contains(&w.1)));
                    want.truncate(k);
                    prop_assert_eq!(found.len(), want.len());
                    for (f, w) in found.iter().zip(&want) {
                        prop_assert!((f64::from(f.0) - w.0).abs() <= 1e-4 * w.0.abs().max(least), "{:?} {:?}", f, w);
                    }
                }
                prop_assert!(found.iter().all(|f| f.is_sorted_by(|a, b| (a.0, a.1) < (b.0, b.1))));
                prop_assert!(first.get_or_insert_with(|| found.clone()) == &found, "{:?} differs", isa);
            }
        }
    }

    #[test]
    fn cancel_stops() {
        let keys = vec![0f32; 100 * 8];
        let rows = Rows::new(&[KeyBlock { first_id: 0, d: 8, rows: KeyRows::F32(&keys) }]);
        let pool = Pool::get(Some(1)).expect("one thread");
        for q in [1, 20] {
            let result = scan(
                &Kernels::best(),
                Metric::L2,
                &rows,
                8,
                &keys[..q * 8],
                3,
                Filter::default(),
                &pool,
                &AtomicBool::new(true),
            );
            assert!(matches!(result, Err(Error::Interrupted)));
        }
    }
}
