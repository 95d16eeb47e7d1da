//! Which entries a query may return: what is deleted, and what it excludes, allows or denies itself.
//!
//! Asked inside the scans, of candidates that a query's limit lets pass only, so that k others still come back.

use std::ops::Range;
use std::sync::Arc;

/// Ascending, disjoint id ranges, shared by the queries that use them.
pub type IdSet = Arc<[Range<u64>]>;

/// Makes a set of ranges in any order; empty ones are dropped, touching ones joined.
pub fn id_set(mut ranges: Vec<Range<u64>>) -> IdSet {
    ranges.retain(|r| r.start < r.end);
    ranges.sort_unstable_by_key(|r| r.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined.into()
}

/// Whether ascending disjoint ranges hold an id.
pub fn contains(ranges: &[Range<u64>], id: u64) -> bool {
    let after = ranges.partition_point(|r| r.start <= id);
    after.checked_sub(1).is_some_and(|i| id < ranges[i].end)
}

/// Number of ids in ascending disjoint ranges.
pub fn size(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|r| r.end - r.start).fold(0, u64::saturating_add)
}

/// What the queries of one task may return. The slices have one element for each query.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter<'f> {
    /// Ids that no query returns.
    pub deleted: &'f [Range<u64>],
    /// An id range that a query leaves out.
    pub exclude: Option<&'f [Range<u64>]>,
    /// Ids that a query is confined to.
    pub allow: Option<&'f [IdSet]>,
    /// Ids that a query leaves out.
    pub deny: Option<&'f [IdSet]>,
}

impl<'f> Filter<'f> {
    /// The filter of some of the queries.
    pub fn of_queries(&self, span: &Range<usize>) -> Filter<'f> {
        Filter {
            deleted: self.deleted,
            exclude: self.exclude.map(|all| &all[span.clone()]),
            allow: self.allow.map(|all| &all[span.clone()]),
            deny: self.deny.map(|all| &all[span.clone()]),
        }
    }

    /// Whether it lets everything pass of some entries, of which some may be deleted or none are.
    pub fn is_open(&self, may_be_deleted: bool) -> bool {
        (!may_be_deleted || self.deleted.is_empty())
            && self.exclude.is_none()
            && self.allow.is_none()
            && self.deny.is_none()
    }

    /// Whether `query` may return the entry `id`.
    pub fn admits(&self, query: usize, id: u64) -> bool {
        !contains(self.deleted, id)
            && self.exclude.is_none_or(|all| !all[query].contains(&id))
            && self.allow.is_none_or(|all| contains(&all[query], id))
            && self.deny.is_none_or(|all| !contains(&all[query], id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_holds_what_its_ranges_hold(raw in prop::collection::vec((0u64..60, 0u64..12), 0..12)) {
            let ranges: Vec<Range<u64>> = raw.iter().map(|&(start, n)| start..start + n).collect();
            let set = id_set(ranges.clone());
            let held: Vec<u64> = (0..80).filter(|id| ranges.iter().any(|r| r.contains(id))).collect();
            prop_assert_eq!((0..80).filter(|&id| contains(&set, id)).collect::<Vec<_>>(), held.clone());
            prop_assert_eq!(size(&set), held.len() as u64);
            prop_assert!(set.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
