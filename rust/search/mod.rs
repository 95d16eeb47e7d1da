//! Finds the nearest entries of queries: exact scan, list scan, re-scoring.
//!
//! In: a [`Corpus`] (views of mapped files) and queries; out: [`Hits`]. The answer does not depend on the batch that
//! a query came in nor on the number of threads. Equal distances are ordered by id.

pub(crate) mod exact;
mod pool;
pub(crate) mod select;
pub(crate) mod sweep;

use crate::index::{Codebook, Lists};
use crate::keys::KeyBlock;
use crate::simd::Isa;
use crate::{Metric, Result};
pub use pool::Pool;
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
}

/// Whether and how candidates of the approximate search are scored again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Rerank {
    /// Estimated distances are the answer.
    #[default]
    None,
    /// The best candidates (at least 2 k) are scored with their raw keys.
    Keys,
}

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Request<'a> {
    /// Neighbours per query, at least 1.
    pub k: usize,
    /// Lists to scan per query; `None` = the default chosen at build.
    pub nprobe: Option<usize>,
    /// Scoring candidates again.
    pub rerank: Rerank,
    /// Scan all raw keys.
    pub exact: bool,
    /// One half-open id range per query that must not be returned.
    pub exclude: Option<&'a [Range<u64>]>,
    /// Instruction set, for tests and benchmarks; `None` = the best of this CPU.
    pub isa: Option<Isa>,
}

/// Neighbours of `q` queries, `q * k` each, best first; missing ones have id −1 and distance +∞ (inner product: −∞).
#[derive(Clone, Debug, PartialEq)]
pub struct Hits {
    /// Squared L2 distances or inner products.
    pub distances: Vec<f32>,
    /// Ids of the entries.
    pub ids: Vec<i64>,
}

/// Finds the `k` nearest entries of every query (`queries`: q × d, row-major, finite).
///
/// # Errors
/// `Argument` for k, nprobe or lengths that do not fit; `State` for `exact` or `rerank` without the raw keys;
/// `Format` for ids outside their segment; `Interrupted` once `cancel` is set.
pub fn search(corpus: &Corpus, queries: &[f32], request: &Request, pool: &Pool, cancel: &AtomicBool) -> Result<Hits> {
    let _ = (corpus, queries, request, pool, cancel);
    unimplemented!()
}

/// (score, id) of neighbours; scores are minimised (inner products are negated).
pub(crate) type Found = Vec<(f32, u64)>;

/// Sorts by (score, id) and keeps `k`.
pub(crate) fn best(found: &mut Found, k: usize) {
    let order = |a: &(f32, u64), b: &(f32, u64)| (a.0 + 0.0).total_cmp(&(b.0 + 0.0)).then(a.1.cmp(&b.1));
    if found.len() > k && k > 0 {
        found.select_nth_unstable_by(k - 1, order);
        found.truncate(k);
    }
    found.sort_unstable_by(order);
}
