//! Damage of a segment file, and which entries the damaged bytes of a section belong to.

use crate::sections::{SectionKind, SectionSource, typed};
use crate::simd::LANES;
use std::ops::Range;

/// Damage found in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Section at fault, if one is.
    pub section: Option<DamagedSection>,
    /// What was expected and found.
    pub message: String,
}

/// Name of a damaged section and the bytes of it that are damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedSection {
    /// Number of its kind.
    pub number: u32,
    /// Name for messages.
    pub name: String,
    /// Damaged bytes, counted from the section's start.
    pub bytes: Range<u64>,
}

/// Rows of a section with the same number of bytes for each of `n` rows.
pub(crate) fn rows(file: &dyn SectionSource, damaged: &DamagedSection, n: u64) -> Option<Range<u64>> {
    let size = length(file, damaged.number)?.checked_div(n).filter(|&size| size > 0)?;
    Some((damaged.bytes.start / size).min(n)..damaged.bytes.end.div_ceil(size).min(n))
}

/// Positions, in list order, of entries of a lists file; none for its offsets, and for codes if these are damaged too.
pub(crate) fn positions(file: &dyn SectionSource, damaged: &DamagedSection) -> Option<Range<u64>> {
    let is = |kind: SectionKind| damaged.number == kind as u32;
    let n = length(file, SectionKind::ListIds as u32)? / size_of::<u32>() as u64;
    if is(SectionKind::ListIds) || is(SectionKind::SecondCodes) {
        return rows(file, damaged, n);
    }
    if !is(SectionKind::Codes) {
        return None;
    }
    // Codes lie in blocks of `LANES` entries, the last of each list filled up.
    let offsets: &[u64] = typed(file, SectionKind::ListOffsets).ok()?;
    if offsets.first() != Some(&0) || offsets.last() != Some(&n) || !offsets.is_sorted() {
        return None;
    }
    let lanes = LANES as u64;
    let blocks: u64 = offsets.windows(2).map(|list| (list[1] - list[0]).div_ceil(lanes)).sum();
    let hit = rows(file, damaged, blocks)?;
    let (mut first, mut found) = (0, None::<Range<u64>>);
    for list in offsets.windows(2) {
        let end = first + (list[1] - list[0]).div_ceil(lanes);
        let own = hit.start.max(first)..hit.end.min(end);
        if !own.is_empty() {
            let position = |block: u64| (list[0] + (block - first) * lanes).min(list[1]);
            let start = found.map_or(position(own.start), |found| found.start);
            found = Some(start..position(own.end));
        }
        first = end;
    }
    found
}

fn length(file: &dyn SectionSource, number: u32) -> Option<u64> {
    file.section(SectionKind::from_number(number)?).ok().map(|bytes| bytes.len() as u64)
}
