//! Sets of ids, as ascending disjoint ranges: documents are ranges.

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
pub(crate) fn contains(ranges: &[Range<u64>], id: u64) -> bool {
    let after = ranges.partition_point(|r| r.start <= id);
    after.checked_sub(1).is_some_and(|i| id < ranges[i].end)
}

/// Number of ids in ascending disjoint ranges.
pub(crate) fn size(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|r| r.end - r.start).fold(0, u64::saturating_add)
}

/// What is left of a range without ascending disjoint others.
pub(crate) fn without(ids: Range<u64>, gone: &[Range<u64>]) -> Vec<Range<u64>> {
    let first = gone.partition_point(|g| g.end <= ids.start);
    let mut left = Vec::new();
    let mut start = ids.start;
    for gone in gone[first..].iter().take_while(|g| g.start < ids.end) {
        if start < gone.start {
            left.push(start..gone.start);
        }
        start = gone.end;
    }
    if start < ids.end {
        left.push(start..ids.end);
    }
    left
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
