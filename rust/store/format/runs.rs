//! Which row of a data segment an id has: rows follow the ids, except where ids are gone.

use super::records::DataRecord;
use super::segment::SegmentFile;
use crate::Result;
use crate::error::RESTORE;
use crate::sections::{SectionKind, SectionSource, typed};
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// The start of rows whose ids follow each other, as it lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Run {
    /// Id of its first row.
    pub(crate) id: u64,
    /// Number of that row.
    pub(crate) row: u64,
}

/// All runs of a segment, ascending by id and by row.
#[derive(Debug)]
pub(crate) struct Runs {
    runs: Vec<Run>,
    entries: u64,
}

impl Runs {
    /// The runs of a data segment, checked against its record.
    pub(crate) fn read(file: &SegmentFile, record: &DataRecord) -> Result<Runs> {
        if record.end_id.is_none() {
            let runs = if record.entries == 0 { Vec::new() } else { vec![Run { id: record.first_id, row: 0 }] };
            return Ok(Runs { runs, entries: record.entries });
        }
        let runs = typed(file, SectionKind::Runs)?;
        file.check(bytemuck::cast_slice(runs))?;
        Runs::of(runs, record.entries, record.ids()).ok_or_else(|| {
            file.format_error(format!(
                "runs: expected {} rows with ascending ids within {:?}, found others; {RESTORE}",
                record.entries,
                record.ids()
            ))
        })
    }

    /// Checked runs of `entries` rows with ids in `ids`; none if they are not.
    fn of(runs: &[Run], entries: u64, ids: Range<u64>) -> Option<Runs> {
        let mut next = ids.start;
        for (i, run) in runs.iter().enumerate() {
            let end = runs.get(i + 1).map_or(entries, |next| next.row);
            let length = end.checked_sub(run.row).filter(|&n| n > 0 && end <= entries)?;
            if (i == 0 && run.row != 0) || run.id < next {
                return None;
            }
            next = run.id.checked_add(length).filter(|&end| end <= ids.end)?;
        }
        (entries == 0 || !runs.is_empty()).then(|| Runs { runs: runs.to_vec(), entries })
    }

    /// Number of rows.
    pub(crate) fn entries(&self) -> usize {
        self.entries as usize
    }

    fn row_end(&self, i: usize) -> u64 {
        self.runs.get(i + 1).map_or(self.entries, |next| next.row)
    }

    /// Whether rows have the ids from `first` on, without a gap.
    pub(crate) fn count_from(&self, first: u64) -> bool {
        matches!(&self.runs[..], [run] if run.id == first)
    }

    /// Row of an id, if it has one.
    pub(crate) fn row_of(&self, id: u64) -> Option<usize> {
        let i = self.runs.partition_point(|run| run.id <= id).checked_sub(1)?;
        let row = self.runs[i].row + (id - self.runs[i].id);
        (row < self.row_end(i)).then_some(row as usize)
    }

    /// The ids of a range of rows and what lies between them.
    pub(crate) fn ids_of(&self, rows: Range<u64>) -> Option<Range<u64>> {
        let id = |row: u64| {
            let i = self.runs.partition_point(|run| run.row <= row).checked_sub(1)?;
            (row < self.entries).then(|| self.runs[i].id + (row - self.runs[i].row))
        };
        Some(id(rows.start)?..id(rows.end.checked_sub(1)?)? + 1)
    }

    /// First id and rows of each run within a range of ids.
    pub(crate) fn spans(&self, ids: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> + '_ {
        let first = self.runs.partition_point(|run| run.id <= ids.start).saturating_sub(1);
        let until = self.runs.partition_point(|run| run.id < ids.end).max(first);
        (first..until).filter_map(move |i| {
            let run = self.runs[i];
            let start = ids.start.max(run.id);
            let end = ids.end.min(run.id + (self.row_end(i) - run.row));
            let row = |id: u64| (run.row + (id - run.id)) as usize;
            (start < end).then(|| (start, row(start)..row(end)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ids_have_the_rows_that_counting_gives(kept in prop::collection::btree_set(10u64..60, 0..40), from in 0u64..70, n in 0u64..70) {
            let ids: Vec<u64> = kept.into_iter().collect();
            let starts = (0..ids.len()).filter(|&i| i == 0 || ids[i - 1] + 1 != ids[i]);
            let list: Vec<Run> = starts.map(|i| Run { id: ids[i], row: i as u64 }).collect();
            let runs = Runs::of(&list, ids.len() as u64, 10..60).expect("sound");
            for id in 0..80 {
                prop_assert_eq!(runs.row_of(id), ids.iter().position(|&x| x == id));
            }
            for (row, &id) in (0u64..).zip(&ids) {
                prop_assert_eq!(runs.ids_of(row..ids.len() as u64), Some(id..ids[ids.len() - 1] + 1));
            }
            prop_assert_eq!(runs.ids_of(0..ids.len() as u64 + 1), None);
            let range = from..from + n;
            let spans = runs.spans(range.clone());
            let found: Vec<(u64, usize)> = spans.flat_map(|(id, rows)| (id..).zip(rows)).collect();
            let want: Vec<(u64, usize)> = ids.iter().enumerate().filter(|(_, id)| range.contains(id)).map(|(i, &id)| (id, i)).collect();
            prop_assert_eq!(found, want);
        }

        #[test]
        fn forged_runs_are_refused_or_stay_within_their_rows(raw in prop::collection::vec((any::<u64>(), 0u64..12), 0..6), entries in 0u64..12) {
            let list: Vec<Run> = raw.iter().map(|&(id, row)| Run { id: if id % 3 == 0 { id } else { id % 70 }, row }).collect();
            if let Some(runs) = Runs::of(&list, entries, 10..60) {
                let rows: Vec<usize> = runs.spans(0..u64::MAX).flat_map(|(_, rows)| rows).collect();
                prop_assert_eq!(rows, (0..entries as usize).collect::<Vec<_>>());
            }
        }
    }
}
