//! Approximate search: candidates from the lists, scored again with second-level codes or raw keys.

use super::lists::{Scan, Scanned, locate, order, starts};
use super::plan::{Plan, plan};
use super::rows::Rows;
use super::{Corpus, Found, Pool, Request, Rerank, best};
use crate::index::second::{QueryBytes, correction};
use crate::index::{Codebook, Lists};
use crate::simd::{Kernels, prefetch};
use crate::{Error, Metric, Result};
use std::sync::atomic::AtomicBool;

/// Queries that share the codes of a list.
const QUERY_TILE: usize = 512;
/// From which amount of work on threads pay.
#[derive(Clone, Copy, Debug)]
pub struct Sharing {
    /// Searches that take less on one thread stay on the caller's.
    pub nanoseconds: f64,
    /// Entries to scan from which several threads share one query.
    pub entries: f64,
}

/// Starting a thread takes some ten microseconds; the nearest lists are scanned by every thread that shares a query.
pub const SHARING: Sharing = Sharing { nanoseconds: 150_000.0, entries: 400_000.0 };

/// Records that are asked for ahead of their turn.
const AHEAD: usize = 16;

/// What approximate search found.
pub struct Approximate {
    /// The best `k` of each query, in no order.
    pub found: Vec<Found>,
    /// Number of entries in the lists of each query.
    pub scanned: Vec<u64>,
}

/// Candidates from the lists, scored again if asked.
pub fn approximate(
    corpus: &Corpus,
    queries: &[f32],
    request: &Request,
    kernels: &Kernels,
    pool: &Pool,
    cancel: &AtomicBool,
) -> Result<Approximate> {
    approximate_shared(corpus, queries, request, kernels, pool, cancel, SHARING)
}

/// [`approximate`] that decides otherwise when threads pay; the answer is the same.
pub fn approximate_shared(
    corpus: &Corpus,
    queries: &[f32],
    request: &Request,
    kernels: &Kernels,
    pool: &Pool,
    cancel: &AtomicBool,
    sharing: Sharing,
) -> Result<Approximate> {
    let (d, q) = (corpus.d, queries.len() / corpus.d);
    let Some((codebook, lists)) = corpus.index.as_ref().filter(|_| q > 0) else {
        return Ok(Approximate { found: vec![Found::new(); q], scanned: vec![0; q] });
    };
    let Plan { reach, candidates, rerank } = plan(codebook, request)?;
    let filter = request.filter(corpus.deleted);
    let entries = lists.iter().map(Lists::len).sum::<usize>();
    let finish = Finish { kernels, metric: corpus.metric, lists, rows: Rows::new(&corpus.keys), rerank, k: request.k };
    // Starting a thread takes longer than little work: roughly a nanosecond per entry, 100 products per nanosecond.
    let probed = entries as f64
        * (reach.nprobe as f64 / codebook.nlist() as f64).min(if reach.stop.is_some() { 0.05 } else { 1.0 });
    let nanoseconds = q as f64 * (probed + (codebook.nlist() * d) as f64 / 100.0 + 20.0 * candidates as f64);
    let threads = if nanoseconds < sharing.nanoseconds { 1 } else { pool.threads() };
    let tile = QUERY_TILE.min(q.div_ceil(threads));
    let tiles = q.div_ceil(tile);
    // Few queries and much to scan: the threads share the lists of a query.
    let parts = if tiles < threads && probed * tile as f64 > sharing.entries { threads / tiles } else { 1 };
    let tasks = pool.map(tiles * parts, |task| -> Result<(Vec<Scanned>, Vec<Found>)> {
        let (t, part) = (task / parts, task % parts);
        let span = t * tile..q.min((t + 1) * tile);
        let queries = &queries[span.start * d..span.end * d];
        let scan = Scan {
            kernels,
            codebook,
            lists,
            queries,
            k: candidates.min(entries.max(1)),
            reach,
            filter: filter.of_queries(&span),
            part,
            parts,
            cancel,
        };
        let mut scanned = scan.run()?;
        if parts > 1 {
            return Ok((scanned, Vec::new()));
        }
        let pairs = queries.chunks_exact(d).zip(&mut scanned);
        let found = pairs.map(|(query, scanned)| finish.run(query, scanned)).collect::<Result<_>>()?;
        Ok((scanned, found))
    });
    let mut all = Approximate { found: Vec::with_capacity(q), scanned: Vec::with_capacity(q) };
    let mut tasks = tasks.into_iter();
    while let Some(task) = tasks.next() {
        let (mut scanned, mut found) = task?;
        for more in tasks.by_ref().take(parts - 1) {
            for (scanned, more) in scanned.iter_mut().zip(more?.0) {
                scanned.nearest.append_all(&more.nearest);
            }
        }
        if parts > 1 {
            // Only the best of all parts together may be scored again: the answer must not depend on the threads.
            let starts = starts(lists)?;
            for (scanned, query) in scanned.iter_mut().zip(queries[all.found.len() * d..].chunks_exact(d)) {
                scanned.nearest.cut(kernels, |p| order(lists, &starts, p));
                found.push(finish.run(query, scanned)?);
            }
        }
        all.scanned.extend(scanned.iter().map(|s| s.entries));
        all.found.append(&mut found);
    }
    Ok(all)
}

/// What turns candidates into neighbours.
struct Finish<'f, 'a> {
    kernels: &'f Kernels,
    metric: Metric,
    lists: &'f [Lists<'a>],
    rows: Rows<'f>,
    rerank: Rerank,
    k: usize,
}

impl Finish<'_, '_> {
    /// The best `k` of the candidates.
    fn run(&self, query: &[f32], scanned: &mut Scanned) -> Result<Found> {
        let starts = starts(self.lists)?;
        let Scanned { nearest, bytes, .. } = scanned;
        if self.rerank == Rerank::Code {
            let (scores, entries) = nearest.parts_mut();
            self.score_codes(&starts, bytes, scores, entries)?;
            nearest.narrow(self.k);
            nearest.cut(self.kernels, |p| order(self.lists, &starts, p));
        }
        let mut found = Found::with_capacity(nearest.len());
        for (&score, &place) in nearest.scores().iter().zip(nearest.entries()) {
            let (segment, position) = locate(&starts, place);
            found.push((score, self.lists[segment].id(position)?));
        }
        if self.rerank == Rerank::Keys {
            self.score_keys(query, &mut found)?;
            best(&mut found, self.k);
        }
        Ok(found)
    }

    /// Adds what the second level knows; the records of a list lie together.
    fn score_codes(&self, starts: &[u32], query: &QueryBytes, scores: &mut [f32], entries: &[u32]) -> Result<()> {
        let record = |place: u32| {
            let (segment, position) = if starts.len() == 1 { (0, place) } else { locate(starts, place) };
            self.lists[segment].record(position)
        };
        entries.iter().take(AHEAD).for_each(|&place| prefetch(record(place)));
        for (i, score) in scores.iter_mut().enumerate() {
            if let Some(&place) = entries.get(i + AHEAD) {
                prefetch(record(place));
            }
            let record = record(entries[i]);
            if record.is_empty() {
                let (segment, position) = locate(starts, entries[i]);
                return Err(self.lists[segment].wrong(format!("entry {position} in list order has no second code")));
            }
            *score += correction(self.kernels, query, record);
        }
        Ok(())
    }

    /// Scores candidates with their raw keys, in the order of their ids: that is how the keys lie.
    fn score_keys(&self, query: &[f32], found: &mut Found) -> Result<()> {
        found.sort_unstable_by_key(|f| f.1);
        let mut at = Vec::with_capacity(found.len());
        for f in found.iter() {
            at.push(self.rows.find(f.1).ok_or_else(|| {
                Error::State(format!("rerank=\"keys\": the raw key of entry {} is missing; verify the store", f.1))
            })?);
        }
        self.rows.score_all(self.kernels, self.metric, query, at.iter().copied(), found);
        Ok(())
    }
}

/// Whether every entry has what `rerank="code"` reads.
pub fn has_second(index: Option<&(Codebook, Vec<Lists>)>) -> bool {
    index.is_none_or(|(_, lists)| lists.iter().all(Lists::has_second))
}
