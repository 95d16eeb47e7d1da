//! What is asked of a search, and what comes back.

use crate::exact::Filter;
use crate::ids::IdSet;
use crate::simd::Isa;
use std::ops::Range;

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
    /// Neighbors per query, at least 1.
    pub k: usize,
    /// Lists to scan per query; `None` = as many as `recall` needs.
    pub nprobe: Option<usize>,
    /// Recall to aim at, above 0 and at most 1, from what was measured at build; `None` = [`DEFAULT_RECALL`](super::DEFAULT_RECALL).
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
    #[doc(hidden)]
    pub isa: Option<Isa>,
}

impl<'a> Request<'a> {
    /// What each query may return of a corpus.
    pub(super) fn filter(&self, deleted: &'a [Range<u64>]) -> Filter<'a> {
        Filter { deleted, exclude: self.exclude, allow: self.allow, deny: self.deny }
    }
}

/// Neighbors of `q` queries, `q * k` each, best first; missing ones have id −1 and distance +∞ (inner product: −∞).
#[derive(Clone, Debug, PartialEq)]
pub struct Hits {
    /// Squared L2 distances or inner products.
    pub distances: Vec<f32>,
    /// Ids of the entries.
    pub ids: Vec<i64>,
}

/// Where neighbors are written: `q * k` of each.
pub struct HitsMut<'h> {
    /// See [`Hits`].
    pub distances: &'h mut [f32],
    /// See [`Hits`].
    pub ids: &'h mut [i64],
}
