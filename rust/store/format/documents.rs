//! The document table of a segment: fixed-size records in id order, found by binary search.
//!
//! A document that goes on in the next segment has a record in both; the later one has the full range, so that a
//! reader takes the latest record of a document.

use super::segment::SegmentFile;
use crate::error::RESTORE;
use crate::sections::{SectionKind, SectionSource, typed};
use crate::{Error, Result};
use bytemuck::{Pod, Zeroable};
use std::cmp::Ordering;
use std::ops::Range;

/// A document as a caller names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentKey {
    /// Its number.
    Index(u64),
    /// Its name.
    Name(String),
}

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

/// The table of one segment, as it lies in the file. What is read of it is checked against its checksums.
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
        self.file.format_error(format!("document record {i} of {}: {message}; {RESTORE}", self.len()))
    }

    fn record(&self, i: usize) -> Result<&'a Record> {
        let record = self.records.get(i).ok_or_else(|| self.error(i, "expected a record, found none"))?;
        self.file.check(bytemuck::bytes_of(record))?;
        Ok(record)
    }

    fn bytes(&self, i: usize, offset: u64, length: u32) -> Result<&'a [u8]> {
        let start = usize::try_from(offset).ok();
        let span = start.and_then(|start| Some(start..start.checked_add(length as usize)?));
        let bytes = span.and_then(|span| self.text.get(span)).ok_or_else(|| {
            self.error(i, &format!("expected text within {} bytes, found {length} at {offset}", self.text.len()))
        })?;
        self.file.check(bytes)?;
        Ok(bytes)
    }

    fn name_bytes(&self, i: usize) -> Result<&'a [u8]> {
        let record = self.record(i)?;
        self.bytes(i, record.text, record.name)
    }

    /// Record `i`.
    pub fn get(&self, i: usize) -> Result<Document> {
        let (record, ids) = (self.record(i)?, self.ids(i)?);
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
            start: ids.start,
            end: ids.end,
            metadata: (record.metadata > 0).then_some(metadata),
        })
    }

    /// Ids of record `i`.
    pub fn ids(&self, i: usize) -> Result<Range<u64>> {
        let record = self.record(i)?;
        if record.start > record.end {
            return Err(self.error(i, &format!("expected start ≤ end, found {} and {}", record.start, record.end)));
        }
        Ok(record.start..record.end)
    }

    /// Whether record `i` says nothing but what this version knows.
    pub fn is_plain(&self, i: usize) -> Result<bool> {
        let record = self.record(i)?;
        Ok(record.flags & !NAMED == 0 && record.reserved == 0)
    }

    /// The record that an id of this segment lies in.
    pub fn record_of(&self, id: u64) -> Result<usize> {
        // Empty documents share their start with the next one: the last record that starts at or before id holds it.
        let after = first(self.records.len(), |i| Ok(self.record(i)?.start > id))?;
        after
            .checked_sub(1)
            .ok_or_else(|| self.error(0, &format!("expected a document that holds id {id}, found none")))
    }

    /// The records of a name; several, if documents of that name were deleted before.
    pub fn find(&self, name: &str) -> Result<&'a [u32]> {
        let bound = |reached: fn(Ordering) -> bool| {
            first(self.names.len(), |i| {
                self.file.check(bytemuck::bytes_of(&self.names[i]))?;
                Ok(reached(self.name_bytes(self.names[i] as usize)?.cmp(name.as_bytes())))
            })
        };
        let (start, end) = (bound(Ordering::is_ge)?, bound(Ordering::is_gt)?);
        Ok(self.names.get(start..end).unwrap_or(&[]))
    }
}

/// The first of `n` numbers that has `reached` what all after it have, else `n`.
fn first(n: usize, reached: impl Fn(usize) -> Result<bool>) -> Result<usize> {
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = low + (high - low) / 2;
        if reached(middle)? {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(low)
}
