//! What is searched: views of the mapped files of a store.

use super::plan::Measured;
use crate::Metric;
use crate::index::{Codebook, Lists};
use crate::keys::KeyBlock;
use crate::sections::Advise;
use std::ops::Range;

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
    pub advise: Option<&'a dyn Advise>,
}

impl Corpus<'_> {
    /// Whether every entry of the lists has what `rerank="code"` reads.
    pub(super) fn has_second(&self) -> bool {
        self.index.as_ref().is_none_or(|(_, lists)| lists.iter().all(Lists::has_second))
    }
}
