//! The document table of a segment: fixed-size records in id order, found by binary search.
//!
//! A document that goes on in the next segment has a record in both; the later one has the full range, so that a
//! reader takes the latest record of a document.

use super::segment::SegmentFile;
use crate::sections::{SectionKind, SectionSource, typed};
use crate::{Error, Result};
use bytemuck::{Pod, Zeroable};

/// A contiguous range of entries with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Name; none for entries added without one.
    pub name: Option<String>,
    /// First id.
    pub start: u64,
    /// Id after the last.
    pub end: u64,
    /// JSON text, if any was given.
    pub metadata: Option<String>,
}

/// A record as it lies in the file.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Record {
    /// First id.
    pub start: u64,
    /// Id after the last.
    pub end: u64,
    /// Byte of the text section where the name starts; the metadata follows it.
    pub text: u64,
    /// Bytes of the name.
    pub name: u32,
    /// Bytes of the metadata; 0 = none.
    pub metadata: u32,
    /// Bit 0: has a name.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// Flag of a record that has a name.
pub const NAMED: u32 = 1;

/// The table of one segment, as it lies in the file.
#[derive(Clone, Copy, Debug)]
pub struct DocumentTable<'a> {
    file: &'a SegmentFile,
    records: &'a [Record],
    text: &'a [u8],
    names: &'a [u32],
}

impl<'a> DocumentTable<'a> {
    /// Views the table of a segment.
    pub fn open(file: &'a SegmentFile) -> Result<DocumentTable<'a>> {
        let records = typed(file, SectionKind::Documents)?;
        Ok(DocumentTable {
            file,
            records,
            text: file.section(SectionKind::DocumentText)?,
            names: typed(file, SectionKind::DocumentNames)?,
        })
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Number of named records.
    pub fn named(&self) -> usize {
        self.names.len()
    }

    fn error(&self, i: usize, message: &str) -> Error {
        self.file
            .format_error(format!("document record {i} of {}: {message}; restore the file from a copy", self.len()))
    }

    fn record(&self, i: usize) -> Result<&'a Record> {
        self.records.get(i).ok_or_else(|| self.error(i, "expected a record, found none"))
    }

    fn bytes(&self, i: usize, offset: u64, length: u32) -> Result<&'a [u8]> {
        let start = usize::try_from(offset).ok();
        let span = start.and_then(|start| Some(start..start.checked_add(length as usize)?));
        span.and_then(|span| self.text.get(span)).ok_or_else(|| {
            self.error(i, &format!("expected text within {} bytes, found {length} at {offset}", self.text.len()))
        })
    }

    fn name_bytes(&self, i: usize) -> Result<&'a [u8]> {
        let record = self.record(i)?;
        self.bytes(i, record.text, record.name)
    }

    /// Record `i`.
    pub fn get(&self, i: usize) -> Result<Document> {
        let record = self.record(i)?;
        if record.start > record.end {
            return Err(self.error(i, &format!("expected start ≤ end, found {} and {}", record.start, record.end)));
        }
        let utf8 = |bytes: &[u8]| {
            std::str::from_utf8(bytes)
                .map(str::to_owned)
                .map_err(|e| self.error(i, &format!("expected UTF-8, found {e}")))
        };
        let name = utf8(self.name_bytes(i)?)?;
        let offset =
            record.text.checked_add(u64::from(record.name)).ok_or_else(|| self.error(i, "text offset overflows"))?;
        let metadata = utf8(self.bytes(i, offset, record.metadata)?)?;
        Ok(Document {
            name: (record.flags & NAMED != 0).then_some(name),
            start: record.start,
            end: record.end,
            metadata: (record.metadata > 0).then_some(metadata),
        })
    }

    /// The record that an id of this segment lies in.
    pub fn record_of(&self, id: u64) -> Result<usize> {
        // Empty documents share their start with the next one: the last record that starts at or before id holds it.
        let after = self.records.partition_point(|r| r.start <= id);
        after
            .checked_sub(1)
            .ok_or_else(|| self.error(0, &format!("expected a document that holds id {id}, found none")))
    }

    /// The records of a name; several, if documents of that name were deleted before.
    pub fn find(&self, name: &str) -> Result<&'a [u32]> {
        let bound = |below: fn(std::cmp::Ordering) -> bool| -> Result<usize> {
            let (mut low, mut high) = (0, self.names.len());
            while low < high {
                let middle = low + (high - low) / 2;
                if below(self.name_bytes(self.names[middle] as usize)?.cmp(name.as_bytes())) {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            Ok(low)
        };
        let (start, end) = (bound(std::cmp::Ordering::is_lt)?, bound(std::cmp::Ordering::is_le)?);
        Ok(self.names.get(start..end).unwrap_or(&[]))
    }
}
