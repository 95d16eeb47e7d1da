//! Places: entries counted in list order through all segments.

use crate::error::Why;
use crate::index::Lists;
use crate::simd::LANES;
use crate::{Error, Result};

/// Place of the first entry of each segment, counted through all segments.
pub fn starts(lists: &[Lists]) -> Result<Vec<u32>> {
    let mut sum = 0usize;
    let mut starts = Vec::with_capacity(lists.len());
    for lists in lists {
        starts.push(sum as u32);
        sum += lists.len();
        // The padding of the last block lies behind the last entry.
        if sum > u32::MAX as usize - LANES {
            return Err(Error::state(
                Why::Full,
                format!("expected less than 2^32 − 16 indexed entries in one store, found {sum}; use several stores"),
            ));
        }
    }
    Ok(starts)
}

/// Segment of a place, and the position in it.
pub fn locate(starts: &[u32], place: u32) -> (usize, u32) {
    let segment = starts.partition_point(|&s| s <= place).max(1) - 1;
    (segment, place - starts.get(segment).copied().unwrap_or(0))
}

/// Id of the entry at a place, for ordering: damaged ones give a large number.
pub fn order(lists: &[Lists], starts: &[u32], place: u32) -> u64 {
    if let [lists] = lists {
        return lists.order(place);
    }
    let (segment, position) = locate(starts, place);
    lists.get(segment).map_or(u64::MAX, |lists| lists.order(position))
}
