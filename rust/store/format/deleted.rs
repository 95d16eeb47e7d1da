//! Deleted documents whose bytes are still in the data and lists segments: hidden from every reader, removed by `compact`.

use super::files::Folder;
use super::layout::SegmentKind;
use super::records::DeletedRecord;
use super::segment::SegmentFile;
use super::segment_writer::SegmentWriter;
use crate::error::RESTORE;
use crate::ids::{contains, id_set};
use crate::sections::{Element, SectionKind, SectionSource, typed};
use crate::{Error, Result};
use bytemuck::{Pod, Zeroable};
use std::ops::Range;
use std::sync::Arc;

/// A deleted document as it lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Tombstone {
    /// Number of its record, counted over all data segments.
    pub record: u64,
    /// First id.
    pub start: u64,
    /// Id after the last.
    pub end: u64,
}

/// All deleted documents of a generation.
#[derive(Debug)]
pub struct Deleted {
    tombstones: Vec<Tombstone>,
    spans: Arc<[Range<u64>]>,
    /// The file that they were read from.
    file: Option<SegmentFile>,
}

impl Default for Deleted {
    fn default() -> Deleted {
        Deleted { tombstones: Vec::new(), spans: Arc::new([]), file: None }
    }
}

impl Deleted {
    /// Reads and checks the file that a manifest names; `records` and `next_id` bound what may be deleted.
    pub fn open(folder: &Folder, record: &DeletedRecord, records: u64, next_id: u64) -> Result<Deleted> {
        let file = SegmentFile::open(folder.path(), &record.name, SegmentKind::Deleted)?;
        let tombstones: &[Tombstone] = typed(&file, SectionKind::Deleted)?;
        file.check(bytemuck::cast_slice(tombstones))?;
        let wrong = |what: String| file.format_error(format!("deleted documents: {what}; {RESTORE}"));
        if tombstones.len() as u64 != record.documents {
            return Err(wrong(format!("expected {}, found {}", record.documents, tombstones.len())));
        }
        let deleted = Deleted::of(tombstones.to_vec());
        if let Some(fault) = deleted.fault(records, next_id) {
            return Err(wrong(fault));
        }
        Ok(Deleted { file: Some(file), ..deleted })
    }

    fn of(tombstones: Vec<Tombstone>) -> Deleted {
        let spans = id_set(tombstones.iter().map(|t| t.start..t.end).collect());
        Deleted { tombstones, spans, file: None }
    }

    /// What is wrong with them in a store of so many document records and ids, if anything.
    pub fn fault(&self, records: u64, next_id: u64) -> Option<String> {
        let (mut next_record, mut next_start) = (0, 0);
        for t in &self.tombstones {
            let in_order = t.record >= next_record && t.start >= next_start && t.end >= t.start;
            if !in_order || t.record >= records || t.end > next_id {
                return Some(format!(
                    "expected records from {next_record} to {records} and ids from {next_start} to {next_id}, found {t:?}"
                ));
            }
            (next_record, next_start) = (t.record + 1, t.end);
        }
        None
    }

    /// These and more, in order; documents that are deleted already are counted once.
    pub fn with(&self, more: impl IntoIterator<Item = Tombstone>) -> Deleted {
        let mut all = self.tombstones.clone();
        all.extend(more);
        all.sort_unstable_by_key(|t| t.record);
        all.dedup_by_key(|t| t.record);
        Deleted::of(all)
    }

    /// Writes the file of a generation; `entries`: how many deleted entries are still in data segments.
    pub fn write(&self, folder: &Folder, generation: u64, entries: u64) -> Result<DeletedRecord> {
        let name = SegmentKind::Deleted.file_name(generation);
        let mut segment = SegmentWriter::create(folder, &name, SegmentKind::Deleted)?;
        segment.section(SectionKind::Deleted, Element::U64, bytemuck::cast_slice(&self.tombstones))?;
        Ok(DeletedRecord { name: segment.finish()?, documents: self.tombstones.len() as u64, entries })
    }

    /// All of them, by record.
    pub fn tombstones(&self) -> &[Tombstone] {
        &self.tombstones
    }

    /// The file that they were read from.
    pub fn file(&self) -> Option<&SegmentFile> {
        self.file.as_ref()
    }

    /// Their ids, ascending and disjoint.
    pub fn spans(&self) -> &[Range<u64>] {
        &self.spans
    }

    /// Whether an entry is deleted.
    pub fn holds_id(&self, id: u64) -> bool {
        contains(&self.spans, id)
    }

    /// Whether a document is deleted.
    pub fn holds_record(&self, record: u64) -> bool {
        self.tombstones.binary_search_by_key(&record, |t| t.record).is_ok()
    }

    /// Number that readers give to a document that is not deleted: how many such come before it.
    pub fn index_of(&self, record: u64) -> u64 {
        record - self.tombstones.partition_point(|t| t.record < record) as u64
    }

    /// Record of the document that readers give a number to.
    pub fn record_of(&self, index: u64) -> Result<u64> {
        // The j-th tombstone (from 0) has record − j documents before it that are not deleted: that never falls.
        let (mut low, mut high) = (0, self.tombstones.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.tombstones[middle].record - middle as u64 <= index {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        index.checked_add(low as u64).ok_or_else(|| Error::Argument(format!("document index {index} is too large")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn indices_count_what_is_left(gone in prop::collection::btree_set(0u64..40, 0..30)) {
            let deleted = Deleted::default().with(gone.iter().map(|&r| Tombstone { record: r, start: 2 * r, end: 2 * r + 2 }));
            let left: Vec<u64> = (0..50).filter(|r| !gone.contains(r)).collect();
            for (index, &record) in left.iter().enumerate() {
                prop_assert_eq!(deleted.record_of(index as u64).expect("small"), record);
                prop_assert_eq!(deleted.index_of(record), index as u64);
                prop_assert!(!deleted.holds_record(record) && !deleted.holds_id(2 * record + 1));
            }
            prop_assert!(gone.iter().all(|&r| deleted.holds_record(r) && deleted.holds_id(2 * r)));
        }
    }
}
