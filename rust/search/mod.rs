//! Finds the nearest entries of queries: exact scan, list scan, re-scoring.
//!
//! In: a [`Corpus`] (views of mapped files) and queries; out: [`Hits`]. The answer does not depend on the batch that
//! a query came in nor on the number of threads. Equal distances are ordered by id.

mod approximate;
pub(crate) mod calibrate;
mod disk;
#[cfg(test)]
mod disk_tests;
pub(crate) mod exact;
pub mod filter;
mod finish;
mod places;
mod plan;
mod pool;
mod probes;
#[cfg(test)]
mod recall_tests;
mod rescore;
pub(crate) mod rows;
mod scan;
pub(crate) mod select;
mod sort;
pub(crate) mod sweep;
#[cfg(test)]
mod tests;
mod trials;
mod widen;
mod workspace;

use crate::error::Why;
use crate::index::{Codebook, FINE, Lists};
use crate::keys::KeyBlock;
use crate::simd::{Isa, Kernels};
use crate::{Error, Metric, Result};
use approximate::{Conditions, approximate};
pub use calibrate::{Protocol, Truth};
pub use disk::Disk;
pub(crate) use disk::has_read;
pub use filter::{Filter, IdSet};
pub(crate) use plan::most;
pub use plan::{Calibration, DEFAULT_RECALL, Measured, Setting};
use plan::{Plan, plan};
pub use pool::Pool;
use probes::Reach;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// What is searched.
pub struct Corpus<'a> {
    /// Dimension of keys and queries.
    pub d: usize,
    /// How keys are compared.
    pub metric: Metric,
    /// Raw keys of all entries that have them (indexed or not), ascending disjoint id ranges.
    pub keys: Vec<KeyBlock<'a>>,
    /// Codebook and one set of lists per list segment, if the store was built.
    pub index: Option<(Codebook<'a>, Vec<Lists<'a>>)>,
    /// Raw keys of the entries that are in no list: always scanned exactly.
    pub unindexed: Vec<KeyBlock<'a>>,
    /// Ids that are never returned, ascending and disjoint; lists know theirs.
    pub deleted: &'a [Range<u64>],
    /// What was measured of the index, if it was.
    pub measured: Option<Measured<'a>>,
    /// Where raw keys are asked of before they are read, if they are mapped.
    pub disk: Option<&'a dyn Disk>,
}

/// Whether and how candidates of the approximate search are scored again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Rerank {
    /// The best that the index has: `Code` where it has second-level codes, else `None`.
    #[default]
    Auto,
    /// Estimated distances are the answer.
    None,
    /// Candidates are scored again with second-level codes.
    Code,
    /// Candidates are scored again with their raw keys.
    Keys,
}

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Request<'a> {
    /// Neighbours per query, at least 1.
    pub k: usize,
    /// Lists to scan per query; `None` = as many as `recall` needs.
    pub nprobe: Option<usize>,
    /// Recall to aim at, above 0 and at most 1, from what was measured at build; `None` = [`DEFAULT_RECALL`].
    pub recall: Option<f32>,
    /// Candidates to score again; `None` = as many as `recall` needs, with `nprobe` 2 k and at least k + 128.
    pub depth: Option<usize>,
    /// Scoring candidates again.
    pub rerank: Rerank,
    /// Scan all raw keys.
    pub exact: bool,
    /// One half-open id range per query that must not be returned.
    pub exclude: Option<&'a [Range<u64>]>,
    /// One set of ids per query that alone may be returned.
    pub allow: Option<&'a [IdSet]>,
    /// One set of ids per query that must not be returned.
    pub deny: Option<&'a [IdSet]>,
    /// Instruction set, for tests and benchmarks; `None` = the best of this CPU.
    pub isa: Option<Isa>,
}

impl<'a> Request<'a> {
    /// What each query may return of a corpus.
    fn filter(&self, deleted: &'a [Range<u64>]) -> Filter<'a> {
        Filter { deleted, exclude: self.exclude, allow: self.allow, deny: self.deny }
    }
}

/// Neighbours of `q` queries, `q * k` each, best first; missing ones have id −1 and distance +∞ (inner product: −∞).
#[derive(Clone, Debug, PartialEq)]
pub struct Hits {
    /// Squared L2 distances or inner products.
    pub distances: Vec<f32>,
    /// Ids of the entries.
    pub ids: Vec<i64>,
}

/// Where neighbours are written: `q * k` of each.
pub struct HitsMut<'h> {
    /// See [`Hits`].
    pub distances: &'h mut [f32],
    /// See [`Hits`].
    pub ids: &'h mut [i64],
}

/// Finds the `k` nearest entries of every query (`queries`: q × d, row-major, finite).
///
/// # Errors
/// `Argument` for k, nprobe or lengths that do not fit; `State` for `exact` or `rerank` without the raw keys;
/// `Format` for ids outside their segment; `Interrupted` once `cancel` is set.
pub fn search(corpus: &Corpus, queries: &[f32], request: &Request, pool: &Pool, cancel: &AtomicBool) -> Result<Hits> {
    check(corpus, queries, request)?;
    let n = queries.len() / corpus.d * request.k;
    let mut hits = Hits { distances: vec![0.0; n], ids: vec![0; n] };
    let out = HitsMut { distances: &mut hits.distances, ids: &mut hits.ids };
    search_into(corpus, queries, request, pool, cancel, out)?;
    Ok(hits)
}

/// [`search`] into memory of the caller.
///
/// # Errors
/// As [`search`]; `Argument` if the memory is not for `q * k` neighbours.
pub fn search_into(
    corpus: &Corpus,
    queries: &[f32],
    request: &Request,
    pool: &Pool,
    cancel: &AtomicBool,
    mut out: HitsMut,
) -> Result<()> {
    let kernels = check(corpus, queries, request)?;
    let (k, d, q) = (request.k, corpus.d, queries.len() / corpus.d);
    if out.distances.len() != q * k || out.ids.len() != q * k {
        let found = out.distances.len().min(out.ids.len());
        return Err(Error::Argument(format!("expected room for {q} × {k} neighbours, found room for {found}")));
    }
    let exact = |blocks: &[KeyBlock]| {
        let rows = rows::Rows::new(blocks);
        exact::scan(&kernels, corpus.metric, &rows, d, queries, k, request.filter(corpus.deleted), pool, cancel)
    };
    if request.exact {
        let rows = out.distances.chunks_exact_mut(k).zip(out.ids.chunks_exact_mut(k));
        exact(&corpus.keys)?.iter().zip(rows).for_each(|(found, (scores, ids))| finish::write(found, scores, ids));
    } else {
        let plan = planned(corpus, request)?;
        approximate(corpus, queries, request, &plan, &kernels, pool, cancel, &mut out, Conditions::now())?;
        widen::widen(corpus, queries, request, &plan, &kernels, pool, cancel, &mut out)?;
        if !corpus.unindexed.is_empty() {
            let rows = out.distances.chunks_exact_mut(k).zip(out.ids.chunks_exact_mut(k));
            exact(&corpus.unindexed)?.into_iter().zip(rows).for_each(|(more, (scores, ids))| join(more, scores, ids));
        }
    }
    match corpus.metric {
        Metric::Ip => out.distances.iter_mut().for_each(|score| *score = -*score),
        Metric::L2 => {
            let rows = out.distances.chunks_exact_mut(k).zip(out.ids.chunks_exact_mut(k));
            rows.for_each(|(scores, ids)| clamp(scores, ids));
        }
    }
    Ok(())
}

/// Makes distances of sorted estimates: none is below 0. That comes last: of estimates below 0 the lowest are still the likeliest
/// neighbours.
fn clamp(scores: &mut [f32], ids: &mut [i64]) {
    let n = scores.iter().take_while(|&&score| score <= 0.0).count();
    scores[..n].fill(0.0);
    ids[..n].sort_unstable();
}

/// How the lists of a corpus are searched for a request; anything for one without lists.
fn planned(corpus: &Corpus, request: &Request) -> Result<Plan> {
    let Some((codebook, lists)) = &corpus.index else {
        let reach = Reach { nprobe: 1, stop: None };
        return Ok(Plan { reach, candidates: request.k, rerank: Rerank::None });
    };
    let raw = corpus.keys.iter().map(KeyBlock::n).sum::<usize>();
    plan(codebook, corpus.measured, raw >= lists.iter().map(Lists::len).sum::<usize>(), request)
}

/// Puts further neighbours among sorted ones.
fn join(mut more: Found, scores: &mut [f32], ids: &mut [i64]) {
    let there = ids.iter().zip(&*scores).take_while(|&(&id, _)| id >= 0);
    more.extend(there.map(|(&id, &score)| (score, id as u64)));
    best(&mut more, scores.len());
    finish::write(&more, scores, ids);
}

/// Number of entries that an approximate search looks at, for each query: those of its lists, and those in no list.
///
/// # Errors
/// As [`search`].
pub fn entries_scanned(corpus: &Corpus, queries: &[f32], request: &Request) -> Result<Vec<u64>> {
    let kernels = check(corpus, queries, request)?;
    let waiting = corpus.unindexed.iter().map(|b| b.n() as u64).sum::<u64>();
    let n = queries.len() / corpus.d * request.k;
    let (mut distances, mut ids) = (vec![0.0; n], vec![0; n]);
    let mut out = HitsMut { distances: &mut distances, ids: &mut ids };
    let never = AtomicBool::new(false);
    let (plan, pool) = (planned(corpus, request)?, Pool::get(Some(1))?);
    let scanned = approximate(corpus, queries, request, &plan, &kernels, &pool, &never, &mut out, Conditions::now())?;
    Ok(scanned.into_iter().map(|n| n + waiting).collect())
}

/// Refuses what cannot be searched; gives the kernels.
fn check(corpus: &Corpus, queries: &[f32], request: &Request) -> Result<Kernels> {
    let argument = |message: String| Err(Error::Argument(message));
    let (d, q) = (corpus.d, queries.len() / corpus.d.max(1));
    if d == 0 || !queries.len().is_multiple_of(d) {
        return argument(format!("queries: expected rows of {d} numbers, found {} numbers", queries.len()));
    }
    let largest = crate::keys::largest_coordinate(d);
    if let Some(i) = queries.iter().position(|x| x.is_nan() || x.abs() > largest) {
        return argument(format!(
            "queries must be finite and at most {largest:.1e} in size, found {} in query {}, dimension {}",
            queries[i],
            i / d,
            i % d
        ));
    }
    if request.k < 1 || q.checked_mul(request.k).is_none_or(|n| n > isize::MAX as usize / 8) {
        return argument(format!("k must be at least 1 and {q} × k must fit memory, found k = {}", request.k));
    }
    if request.nprobe == Some(0) || request.depth == Some(0) {
        return argument("nprobe and depth must be at least 1, found 0".into());
    }
    if let Some(found) = request.recall.filter(|r| !(*r > 0.0 && *r <= 1.0)) {
        return argument(format!("recall must be above 0 and at most 1, found {found}"));
    }
    if request.recall.is_some() && request.nprobe.is_some() {
        return argument("recall and nprobe: expected one of them, found both".into());
    }
    if request.recall.is_some() && request.depth.is_some() {
        return argument(
            "recall and depth: expected one of them, found both: recall chooses the depth that has it".into(),
        );
    }
    if request.rerank == Rerank::Code && !approximate::has_second(corpus.index.as_ref()) {
        return Err(Error::state(
            Why::NoSecondLevel,
            format!(
                "rerank by codes: expected codes of a second level, found a store of one level; leave rerank out, or retrain with the default code, which has two levels above dimension {FINE}, this store's is {d}"
            ),
        ));
    }
    let given = [
        ("exclude", request.exclude.map(<[_]>::len)),
        ("allow", request.allow.map(<[_]>::len)),
        ("deny", request.deny.map(<[_]>::len)),
    ];
    if let Some((name, Some(found))) = given.into_iter().find(|(_, n)| n.is_some_and(|n| n != q)) {
        return argument(format!("{name}: expected ids for each of {q} queries, found {found}"));
    }
    let blocks = corpus.keys.iter().chain(&corpus.unindexed);
    if let Some(block) = blocks.into_iter().find(|b| b.d != d || b.rows.len() % d != 0) {
        return argument(format!("keys: expected dimension {d}, found {}", block.d));
    }
    let indexed = corpus.index.iter().flat_map(|(_, lists)| lists).map(|l| l.len()).sum::<usize>();
    let waiting = corpus.unindexed.iter().map(KeyBlock::n).sum::<usize>();
    let raw = corpus.keys.iter().map(KeyBlock::n).sum::<usize>();
    if (request.exact && raw < indexed + waiting) || (request.rerank == Rerank::Keys && raw < indexed) {
        let what = if request.exact { "exact search" } else { "rerank by keys" };
        return Err(Error::state(
            Why::KeysNotKept,
            format!("{what}: expected raw keys of all {} entries, found {raw}", indexed + waiting),
        ));
    }
    match request.isa.map_or(Some(Kernels::best()), Kernels::of) {
        Some(kernels) => Ok(kernels),
        None => argument(format!("this CPU does not have {:?}", request.isa)),
    }
}

/// (score, id) of neighbours; scores are minimised (inner products are negated).
pub(crate) type Found = Vec<(f32, u64)>;

/// Sorts by (score, id) and keeps `k`.
pub(crate) fn best(found: &mut Found, k: usize) {
    if found.len() > k && k > 0 {
        let order = |a: &(f32, u64), b: &(f32, u64)| (a.0 + 0.0).total_cmp(&(b.0 + 0.0)).then(a.1.cmp(&b.1));
        found.select_nth_unstable_by(k - 1, order);
        found.truncate(k);
    }
    // Integers sort several times faster than pairs: score above, position below; then equal scores by id.
    let mut keys: Vec<u64> =
        found.iter().zip(0u64..).map(|(f, i)| u64::from(select::key(f.0 + 0.0)) << 32 | i).collect();
    if found.len() >= u32::MAX as usize {
        found.sort_unstable_by(|a, b| (a.0 + 0.0).total_cmp(&(b.0 + 0.0)).then(a.1.cmp(&b.1)));
        return;
    }
    keys.sort_unstable();
    let mut sorted: Found = keys.iter().map(|&key| found[key as u32 as usize]).collect();
    for equal in sorted.chunk_by_mut(|a, b| a.0 == b.0) {
        if equal.len() > 1 {
            equal.sort_unstable_by_key(|f| f.1);
        }
    }
    *found = sorted;
}
