//! Approximate search: candidates from the lists, scored again with second-level codes or raw keys.

use super::corpus::Corpus;
use super::finish::Finish;
use super::places::{order, starts};
use super::plan::Plan;
use super::probes::LEAST_KEPT;
use super::request::{HitsMut, Request};
use super::scan::Scan;
use super::workspace::Loan;
use crate::Result;
use crate::disk::{self, Meter};
use crate::exact::{Filter, Rows};
use crate::index::Lists;
use crate::simd::Kernels;
use crate::threads::Pool;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

/// Queries that share the codes of a list, at most.
const QUERY_TILE: usize = 2048;
/// Bytes of a tile's candidates and lists, at most.
const TILE_BYTES: usize = 96 << 20;

/// What does not change an answer, only how fast it comes.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Searches that take less on one thread stay on the caller's.
    pub nanoseconds: f64,
    /// Entries to scan from which several threads share one query.
    pub entries: f64,
    /// Lists and records are likely to be on disk.
    pub cold: bool,
}

impl Conditions {
    /// Starting a thread takes some ten microseconds; the nearest lists are scanned by every thread that shares a query.
    pub fn now() -> Conditions {
        Conditions { nanoseconds: 150_000.0, entries: 400_000.0, cold: disk::is_cold() }
    }
}

/// Where a task writes the neighbors of its queries.
type Slot<'s> = Mutex<(&'s mut [f32], &'s mut [i64], &'s mut [u64])>;

/// Candidates from the lists, scored again if asked: scores (minimised, +∞ for missing neighbors) and ids (−1), best first,
/// into `out`. Of the request only k and the filters count: how, `plan` says. Returns the number of entries in the lists of each query. The answer is the same whatever `conditions` are.
#[allow(clippy::too_many_arguments)]
pub fn approximate(
    corpus: &Corpus,
    queries: &[f32],
    request: &Request,
    plan: &Plan,
    kernels: &Kernels,
    pool: &Pool,
    cancel: &AtomicBool,
    out: &mut HitsMut,
    conditions: Conditions,
) -> Result<Vec<u64>> {
    let (d, q, k) = (corpus.d, queries.len() / corpus.d, request.k);
    let Some((codebook, lists)) = corpus.index.as_ref().filter(|_| q > 0) else {
        out.distances.fill(f32::INFINITY);
        out.ids.fill(-1);
        return Ok(vec![0; q]);
    };
    let mut scanned = vec![0; q];
    let Plan { reach, candidates, rerank } = *plan;
    let (filter, cold) = (request.filter(corpus.deleted), conditions.cold);
    let entries = lists.iter().map(Lists::len).sum::<usize>();
    let starts = starts(lists)?;
    let (rows, advise) = (Rows::new(&corpus.keys), corpus.advise);
    let finish = Finish { kernels, metric: corpus.metric, lists, starts: &starts, rows, rerank, k, cold, advise };
    // Starting a thread takes longer than little work: roughly a nanosecond per entry, 100 products per nanosecond.
    let probed = entries as f64
        * (reach.nprobe as f64 / codebook.nlist() as f64).min(if reach.stop.is_some() { 0.05 } else { 1.0 });
    let nanoseconds = q as f64 * (probed + (codebook.nlist() * d) as f64 / 100.0 + 20.0 * candidates as f64);
    let threads = if nanoseconds < conditions.nanoseconds { 1 } else { pool.threads() };
    // A query holds its candidates, and its near lists twice over as lists and as probes, of both rounds.
    let near = if reach.stop.is_some() { codebook.nlist() / 32 } else { reach.nprobe } + LEAST_KEPT;
    let held = candidates.max(1).saturating_mul(20).saturating_add(near.min(codebook.nlist()) * 32);
    let tile = (TILE_BYTES / held).clamp(64, QUERY_TILE).min(q.div_ceil(threads));
    let tiles = q.div_ceil(tile);
    // Few queries and much to scan: the threads share the lists of a query.
    let parts = if tiles < threads && probed * tile as f64 > conditions.entries { threads / tiles } else { 1 };
    let scan = |filter: Filter<'_>, t: usize, part: usize, loan: &mut Loan| -> Result<()> {
        let span = t * tile..q.min((t + 1) * tile);
        let queries = &queries[span.start * d..span.end * d];
        let (k, filter) = (candidates.min(entries.max(1)), filter.of_queries(&span));
        let starts = &starts;
        Scan { kernels, codebook, lists, starts, queries, k, reach, filter, part, parts, cold, cancel }.run(loan)
    };
    let slots: Vec<Slot> = out
        .distances
        .chunks_mut(tile * k)
        .zip(out.ids.chunks_mut(tile * k))
        .zip(scanned.chunks_mut(tile))
        .map(|((scores, ids), scanned)| Mutex::new((scores, ids, scanned)))
        .collect();
    let finished = |t: usize, loan: &mut Loan| -> Result<()> {
        let mut slot = slots[t].lock().unwrap_or_else(PoisonError::into_inner);
        let (scores, ids, scanned) = &mut *slot;
        scanned.copy_from_slice(&loan.entries[..scanned.len()]);
        finish.run(&queries[t * tile * d..q.min((t + 1) * tile) * d], loan, scores, ids)
    };
    let tasks = pool.map(tiles * parts, |task| -> Result<Option<Loan>> {
        let (_meter, mut loan) = (Meter::start(), Loan::take());
        scan(filter, task / parts, task % parts, &mut loan)?;
        if parts > 1 {
            return Ok(Some(loan));
        }
        finished(task, &mut loan)?;
        Ok(None)
    });
    let mut tasks = tasks.into_iter();
    for t in 0..tiles {
        let mut of_tile = tasks.by_ref().take(parts);
        let Some(mut loan) = of_tile.next().transpose()?.flatten() else { continue };
        // Only the best of all parts together may be scored again: the answer must not depend on the threads.
        let here = tile.min(q - t * tile);
        for more in of_tile {
            let more = more?;
            for (nearest, more) in loan.nearest[..here].iter_mut().zip(more.iter().flat_map(|more| &more.nearest)) {
                nearest.append_all(more);
            }
        }
        loan.nearest[..here].iter_mut().for_each(|nearest| nearest.cut(kernels, |p| order(lists, &starts, p)));
        loan.rounds.iter_mut().for_each(Vec::clear);
        finished(t, &mut loan)?;
    }
    drop(slots);
    Ok(scanned)
}
