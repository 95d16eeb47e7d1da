//! Turns raw keys into lists of short codes.
//!
//! [`train`] learns centroids and words from a sample and writes the codebook sections; [`write_lists`] assigns every
//! key to its nearest centroid, encodes its residual and writes the list sections; [`Codebook`] and [`Lists`] view
//! those sections for [`crate::search`].

mod block;
pub(crate) mod bytes;
mod calibration;
pub(crate) mod coarse;
mod codebook;
mod coding;
mod decode;
mod kmeans;
pub(crate) mod levels;
mod lists;
mod memory;
mod merge;
pub(crate) mod panels;
pub(crate) mod quantiser;
mod rotation;
pub(crate) mod second;
mod trainer;
mod writer;

use crate::Metric;
use crate::Result;
use crate::keys::KeyBlock;
use crate::search::Pool;
use crate::sections::SectionSink;
pub use codebook::{Codebook, KeptCodebook};
pub(crate) use coding::Coding;
pub use lists::{KeptLists, Lists};
pub use memory::Memory;
pub use merge::merge_lists;
use std::sync::atomic::AtomicBool;
pub(crate) use trainer::FINE;

/// What the caller may choose about an index.
#[derive(Clone, Debug, Default)]
pub struct Params {
    /// Number of lists; `None` = from the number of entries.
    pub nlist: Option<usize>,
    /// How keys are coded.
    pub code: CodeChoice,
    /// Seed of every random choice; `None` = 0 for a new codebook, that of the codebook if there is one.
    pub seed: Option<u64>,
    /// Number of entries that the lists are for, if the keys are a sample of them.
    pub expected: Option<usize>,
}

/// Size of the code of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CodeChoice {
    /// 4-bit words over up to 4 dimensions each (48 bytes at d = 384) and, for d > 96, a second level of 4 bits a dimension
    /// for scoring candidates again.
    #[default]
    Auto,
    /// 4-bit words over at least 4 dimensions each, at most 48 bytes.
    Small,
    /// 4 bits a dimension in one level: fewer bytes than [`CodeChoice::Auto`], but more of them read for each entry scanned.
    Flat,
    /// Product quantiser of `m` sub-quantisers of `bits` (4 or 8) each.
    Pq {
        /// Number of sub-quantisers, from 1 to d.
        m: usize,
        /// 4 (16 words) or 8 (256 words).
        bits: u8,
    },
}

/// What [`train`] would do for `n` keys of dimension `d`: lists aimed at, and keys sampled (held as float32).
pub fn plan(n: usize, d: usize, nlist: Option<usize>) -> (usize, usize) {
    trainer::plan(n, d, nlist)
}

/// What tells kinds of codes of one dimension apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeKind {
    /// Sub-quantisers of the words.
    pub m: usize,
    /// Their bits.
    pub bits: u8,
    /// Bits a dimension of the second level; 0: there is none.
    pub second_bits: u8,
    /// Whether entries are coded coordinate by coordinate instead.
    pub levels: bool,
}

/// Kind of a code for keys of dimension `d`.
///
/// # Errors
/// `Argument` for a code that does not fit.
pub fn code_kind(code: CodeChoice, d: usize) -> Result<CodeKind> {
    trainer::kind(code, d)
}

/// Called with (stage, done, total); total is 0 where it is not known.
pub type Progress<'p> = &'p (dyn Fn(&str, u64, u64) + Sync);

/// Learns a codebook from `keys` (ascending disjoint id ranges) and writes its sections (Parameters, Centroids,
/// Words, Derived).
///
/// # Errors
/// `Argument` for parameters out of range or no keys; `Interrupted` once `cancel` is set; whatever `sink` returns.
pub fn train(
    keys: &[KeyBlock],
    metric: Metric,
    params: &Params,
    pool: &Pool,
    progress: Progress,
    cancel: &AtomicBool,
    sink: &mut dyn SectionSink,
) -> Result<()> {
    trainer::train(keys, metric, params, pool, progress, cancel, sink)
}

/// Assigns and encodes `keys` (ascending disjoint id ranges) and writes the list sections (ListOffsets, ListIds,
/// Codes). Ids are stored relative to `keys[0].first_id`. Memory: 4 bytes per key and a bounded buffer.
///
/// # Errors
/// `Argument` for no keys, a wrong dimension or ids that span more than 2³² ; `Interrupted` once `cancel` is set;
/// whatever `sink` returns.
pub fn write_lists(
    codebook: &Codebook,
    keys: &[KeyBlock],
    pool: &Pool,
    progress: Progress,
    cancel: &AtomicBool,
    sink: &mut dyn SectionSink,
) -> Result<()> {
    writer::write_lists(codebook, keys, pool, progress, cancel, sink)
}

/// Decoded approximations of entries, `ids.len() × d`. Reads the ids section once: for many ids at a time.
///
/// # Errors
/// `Argument` names the first id that is in none of the lists; `Format` for damaged lists.
pub fn reconstruct(codebook: &Codebook, lists: &[Lists], ids: &[u64]) -> Result<Vec<f32>> {
    decode::reconstruct(codebook, lists, ids)
}
