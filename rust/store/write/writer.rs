//! Adds entries: checks a batch, then streams its keys to a new data segment with bounded memory.
//!
//! Keys go straight to the segment's first section, or into lists, or both; values and documents wait in [`Spill`] buffers until `commit`
//! appends them. What is added becomes visible when the manifest that names the segment is published, and what it
//! supersedes goes with the same manifest.

use super::batch::{check_keys, check_rows};
use super::encoding::Encoding;
use super::notices::Notices;
use crate::error::Why;
use crate::keys::KeyRows;
use crate::sections::{Element, SectionKind, SectionSink};
use crate::store::format::deleted::Tombstone;
use crate::store::format::documents::{Document, DocumentKey, NAMED, Record};
use crate::store::format::files::Folder;
use crate::store::format::layout::SegmentKind;
use crate::store::format::manifest::{MOST_ENTRIES, Manifest};
use crate::store::format::names::SPILL_NAMES;
use crate::store::format::records::{DataRecord, KeyType};
use crate::store::format::segment_writer::SegmentWriter;
use crate::store::format::spill::Spill;
use crate::store::format::values::ValueRows;
use crate::store::read::snapshot::Snapshot;
use crate::{Error, Result};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Scalars that are converted at a time.
const BLOCK: usize = 1 << 16;

/// A data segment in the making.
#[derive(Debug)]
pub struct Writer {
    pub(super) base: Arc<Snapshot>,
    folder: Folder,
    notices: Notices,
    key_type: KeyType,
    /// The segment, where raw keys are kept or wait for an index.
    segment: Option<Box<SegmentWriter>>,
    /// Lists, where keys are encoded as they are added.
    pub(super) encoding: Option<Box<Encoding>>,
    values: Spill,
    records: Spill,
    text: Spill,
    text_bytes: u64,
    names: BTreeMap<String, u32>,
    /// Documents of the base that go with the commit, by record.
    superseded: BTreeMap<u64, Tombstone>,
    /// The document that the next entry may extend, not yet in `records`.
    last: Option<Document>,
    /// Whether `last` is the last document of the base, and whether anything of this segment belongs to it.
    inherited: bool,
    continues: bool,
    documents: u32,
    pub(super) entries: u64,
    pub(super) failed: bool,
}

impl Writer {
    /// Starts a segment after the entries of `base`.
    pub(crate) fn start(folder: &Folder, base: Arc<Snapshot>, notices: &Notices) -> Result<Writer> {
        let manifest = &base.manifest;
        let key_type = manifest.keep_keys.unwrap_or(KeyType::Float32);
        let encoding = Encoding::start(folder, manifest)?.map(Box::new);
        let mut segment = None;
        if encoding.is_none() || manifest.keep_keys.is_some() {
            let mut data = SegmentWriter::create(
                folder,
                &SegmentKind::Data.file_name(manifest.next(folder)?.generation),
                SegmentKind::Data,
            )?;
            data.begin_as(SectionKind::Keys, key_type.element())?;
            segment = Some(Box::new(data));
        }
        // The last document can go on only if its last entry is the store's last: nothing may lie between its entries.
        let last = match manifest.records() {
            n if n > 0 && !base.deleted.holds_record(n - 1) => Some(base.document_record(n - 1)?),
            _ => None,
        };
        let last = last.filter(|last| last.end == manifest.entries);
        let [values, records, text] = SPILL_NAMES.map(|stem| Spill::new(folder, stem));
        let inherited = last.is_some();
        Ok(Writer {
            folder: folder.clone(),
            notices: notices.clone(),
            key_type,
            segment,
            encoding,
            values,
            records,
            text,
            text_bytes: 0,
            names: BTreeMap::new(),
            superseded: BTreeMap::new(),
            last,
            inherited,
            continues: false,
            documents: 0,
            entries: 0,
            failed: false,
            base,
        })
    }

    /// Next id.
    pub fn next_id(&self) -> u64 {
        self.base.manifest.entries + self.entries
    }

    /// Whether a write failed, so that only giving up is left.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Entries added so far.
    pub fn pending(&self) -> u64 {
        self.entries
    }

    /// What to tell after a failed write.
    pub fn failure(&self) -> Error {
        failed_before(&self.base.manifest)
    }

    /// Adds rows and returns their ids. Nothing is added if anything is wrong with the arguments.
    ///
    /// # Errors
    /// `Argument` naming the first bad row and column; `Io` if a write fails, after which only `discard` is left.
    pub fn add(
        &mut self,
        keys: KeyRows,
        values: ValueRows,
        document: Option<&str>,
        metadata: Option<&str>,
    ) -> Result<Range<u64>> {
        if self.failed {
            return Err(failed_before(&self.base.manifest));
        }
        let manifest = &self.base.manifest;
        let n = check_rows(manifest.dim, &keys, &values)?;
        check_keys(manifest.dim, &keys, self.key_type)?;
        values.check(manifest.values, manifest.max_value)?;
        let Some(ids) = self.begin_rows(n as u64, document, metadata)? else {
            return Ok(self.next_id()..self.next_id());
        };
        self.write_keys(keys)?;
        self.write_values(values)?;
        Ok(ids)
    }

    /// Makes `n` entries belong to a document; their keys and values come next, until then the writer counts as failed.
    /// None if there is nothing to do.
    pub(super) fn begin_rows(
        &mut self,
        n: u64,
        document: Option<&str>,
        metadata: Option<&str>,
    ) -> Result<Option<Range<u64>>> {
        let start = self.next_id();
        let end = start.checked_add(n).filter(|&end| end <= i64::MAX as u64);
        let end = end.ok_or_else(|| {
            Error::Argument(format!("expected at most {} entries, found {n} more than {start}", i64::MAX))
        })?;
        let rows = self.base.manifest.rows();
        check_room(rows, self.entries, n)?;
        let new_document = self.check_document(document, metadata)?;
        if n == 0 && document.is_none() {
            return Ok(None);
        }
        self.failed = true; // until everything is written
        if new_document {
            self.close_document()?;
            let name = document.map(str::to_owned);
            if let Some(name) = &name {
                self.names.insert(name.clone(), self.documents);
            }
            self.last = Some(Document { name, start, end, metadata: metadata.map(str::to_owned) });
        } else if let Some(last) = &mut self.last {
            last.end = end;
            if self.inherited && !self.continues {
                self.continues = true;
                if let Some(name) = &last.name {
                    self.names.insert(name.clone(), 0);
                }
            }
        }
        Ok(Some(start..end))
    }

    pub(super) fn write_values(&mut self, values: ValueRows) -> Result<()> {
        let spill = &mut self.values;
        values.with_bytes(self.base.manifest.values, |bytes| spill.write(bytes))?;
        self.entries += values.len() as u64;
        self.failed = false;
        Ok(())
    }

    /// Has the next commit delete documents of the base; from now on `add` may use their names. Returns their entries.
    ///
    /// # Errors
    /// `Argument` for a document that the base does not have, or that was extended since; nothing is superseded then.
    pub fn supersede(&mut self, documents: &[DocumentKey]) -> Result<u64> {
        if self.failed {
            return Err(self.failure());
        }
        let gone: BTreeMap<u64, Tombstone> =
            documents.iter().map(|key| self.base.tombstone(key).map(|t| (t.record, t))).collect::<Result<_>>()?;
        let last = self.base.manifest.records().checked_sub(1);
        if last.is_some_and(|last| gone.contains_key(&last)) {
            if self.continues {
                return Err(Error::Argument(
                    "document: expected one that nothing was added to since the last commit, found one that was extended; commit first. Nothing was changed".into(),
                ));
            }
            if self.inherited {
                (self.last, self.inherited) = (None, false);
            }
        }
        let entries = gone.values().fold(0, |sum: u64, t| sum.saturating_add(t.end - t.start));
        self.superseded.extend(gone);
        Ok(entries)
    }

    /// Whether a document of the base has a name, and keeps it.
    fn is_taken(&self, name: &str) -> Result<bool> {
        match self.base.find_document(name)? {
            Some(index) => Ok(!self.superseded.contains_key(&self.base.deleted.record_of(index)?)),
            None => Ok(false),
        }
    }

    /// Whether these entries start a document (rather than extend the last one).
    fn check_document(&self, name: Option<&str>, metadata: Option<&str>) -> Result<bool> {
        if let Some(text) = metadata {
            serde_json::from_str::<serde::de::IgnoredAny>(text)
                .map_err(|e| Error::Argument(format!("metadata: expected JSON, found {e}; nothing was added")))?;
            if name.is_none() {
                return Err(Error::Argument(
                    "metadata: expected a document name with it, found none; nothing was added".into(),
                ));
            }
        }
        let too_long = |text: Option<&str>| text.is_some_and(|t| u32::try_from(t.len()).is_err());
        if too_long(name) || too_long(metadata) || name == Some("") {
            return Err(Error::Argument(
                "document: expected a name and metadata of 1 to 4294967295 bytes; nothing was added".into(),
            ));
        }
        if self.documents == u32::MAX {
            return Err(Error::Argument(
                "expected at most 4294967295 documents between commits; commit first. Nothing was added".into(),
            ));
        }
        match &self.last {
            Some(last) if last.name.as_deref() == name => {
                if metadata.is_some() && last.metadata.as_deref() != metadata {
                    let name = name.unwrap_or_default(); // metadata comes with a name
                    return Err(Error::Argument(format!(
                        "document {name:?}: expected the metadata of its first entries or none, found other metadata; nothing was added"
                    )));
                }
                return Ok(false);
            }
            _ => {}
        }
        let Some(name) = name else { return Ok(true) };
        if self.names.contains_key(name) || self.is_taken(name)? {
            return Err(Error::Argument(format!(
                "document {name:?}: expected a new name (a document's entries are contiguous), found one that an earlier document has; choose another name. Nothing was added"
            )));
        }
        Ok(true)
    }

    /// Writes the record of the last document, if it is one of this segment.
    fn close_document(&mut self) -> Result<()> {
        let inherited = std::mem::replace(&mut self.inherited, false);
        let Some(last) = self.last.take() else { return Ok(()) };
        if inherited && !self.continues {
            return Ok(());
        }
        let name = last.name.as_deref().unwrap_or("").as_bytes();
        let metadata = last.metadata.as_deref().unwrap_or("").as_bytes();
        let record = Record {
            start: last.start,
            end: last.end,
            text: self.text_bytes,
            name: name.len() as u32,
            metadata: metadata.len() as u32,
            flags: if last.name.is_some() { NAMED } else { 0 },
            reserved: 0,
        };
        self.records.write(bytemuck::bytes_of(&record))?;
        self.text.write(name)?;
        self.text.write(metadata)?;
        self.text_bytes += (name.len() + metadata.len()) as u64;
        self.documents += 1;
        Ok(())
    }

    /// Keys of a part that are encoded already: only the raw ones are left to write.
    ///
    /// # Errors
    /// `Argument` unless there are keys of `n` entries where the store keeps them, and none where it does not.
    pub(super) fn check_raw(&self, keys: Option<&KeyRows>, n: usize) -> Result<()> {
        let d = self.base.manifest.dim;
        let expected = if self.segment.is_some() { n.checked_mul(d) } else { Some(0) };
        let found = keys.map_or(0, KeyRows::len);
        if expected != Some(found) {
            return Err(Error::Argument(format!(
                "part: expected {} raw keys of dimension {d} (a store that keeps keys wants those of every entry, another none), found {found} numbers; nothing was added",
                expected.map_or(n, |numbers| numbers / d)
            )));
        }
        keys.map_or(Ok(()), |keys| check_keys(d, keys, self.key_type))
    }

    /// Writes raw keys to the segment, if there is one, and has lists made of what is kept of them, if they are wanted.
    fn write_keys(&mut self, keys: KeyRows) -> Result<()> {
        let (segment, encoding) = (&mut self.segment, &mut self.encoding);
        each_block(keys, segment.as_ref().map(|_| self.key_type), |block| {
            segment.as_mut().map_or(Ok(()), |segment| segment.write(block.as_bytes()))?;
            encoding.as_mut().map_or(Ok(()), |encoding| encoding.add(block))
        })
    }

    /// Writes raw keys to the segment, if there is one.
    pub(super) fn write_raw(&mut self, keys: KeyRows) -> Result<()> {
        let Some(segment) = &mut self.segment else { return Ok(()) };
        each_block(keys, Some(self.key_type), |block| segment.write(block.as_bytes()))
    }

    /// Finishes the segment and publishes the next generation; none if nothing was added or superseded.
    pub fn commit(mut self) -> Result<Option<Manifest>> {
        if self.failed {
            return Err(failed_before(&self.base.manifest));
        }
        self.close_document()?;
        let adds = self.entries > 0 || self.documents > 0;
        if !adds && self.superseded.is_empty() {
            return Ok(None);
        }
        let mut manifest = self.base.manifest.next(&self.folder)?;
        if !self.superseded.is_empty() {
            let gone = std::mem::take(&mut self.superseded).into_values().collect();
            manifest.deleted = Some(self.base.bury(&self.folder, gone)?);
        }
        let folder = self.folder.clone();
        if adds {
            self.write_segment(&mut manifest)?;
        }
        manifest.publish(&folder)?;
        Ok(Some(manifest))
    }

    /// Finishes the segment and names it in the manifest of the next generation.
    fn write_segment(mut self, manifest: &mut Manifest) -> Result<()> {
        if let Some(encoding) = self.encoding {
            self.notices.note(encoding.finish(manifest)?);
        }
        let keys = self.segment.is_some().then_some(self.key_type);
        let mut segment = match self.segment {
            Some(mut segment) => {
                segment.end()?;
                *segment
            }
            None => SegmentWriter::create(
                &self.folder,
                &SegmentKind::Data.file_name(manifest.generation),
                SegmentKind::Data,
            )?,
        };
        segment.begin_as(SectionKind::Values, self.base.manifest.values.element())?;
        self.values.drain(&mut segment)?;
        segment.end()?;
        for (kind, spill) in [(SectionKind::Documents, &mut self.records), (SectionKind::DocumentText, &mut self.text)]
        {
            segment.begin(kind)?;
            spill.drain(&mut segment)?;
            segment.end()?;
        }
        let order: Vec<u32> = self.names.into_values().collect();
        segment.section(SectionKind::DocumentNames, Element::U32, bytemuck::cast_slice(&order))?;
        let name = segment.finish()?;
        manifest.data.push(DataRecord {
            name,
            first_id: manifest.entries,
            entries: self.entries,
            keys,
            documents: u64::from(self.documents),
            continues: self.continues,
            end_id: None,
        });
        manifest.entries += self.entries;
        Ok(())
    }
}

/// Hands rows on as numbers of a type (none: as they are), in blocks where they have to be converted.
fn each_block(keys: KeyRows, wanted: Option<KeyType>, mut put: impl FnMut(KeyRows) -> Result<()>) -> Result<()> {
    match (keys, wanted) {
        (KeyRows::F32(x), Some(KeyType::Float16)) => {
            let mut block = vec![f16::ZERO; BLOCK.min(x.len())];
            x.chunks(BLOCK).try_for_each(|x| {
                block[..x.len()].convert_from_f32_slice(x);
                put(KeyRows::F16(&block[..x.len()]))
            })
        }
        (KeyRows::F16(x), Some(KeyType::Float32)) => {
            let mut block = vec![0f32; BLOCK.min(x.len())];
            x.chunks(BLOCK).try_for_each(|x| {
                x.convert_to_f32_slice(&mut block[..x.len()]);
                put(KeyRows::F32(&block[..x.len()]))
            })
        }
        (keys, _) => put(keys),
    }
}

/// Refuses entries beyond what a search can count, before anything of them is computed or written.
fn check_room(stored: u64, waiting: u64, more: u64) -> Result<()> {
    let sum = stored.checked_add(waiting).and_then(|sum| sum.checked_add(more));
    if sum.is_some_and(|sum| sum <= MOST_ENTRIES) {
        return Ok(());
    }
    Err(Error::state(
        Why::Full,
        format!(
            "expected at most {MOST_ENTRIES} entries in one store (2^32 - 17; deleted ones until they are compacted away), found {stored} stored, {waiting} waiting and {more} more; put them into another store and search both. Nothing was added"
        ),
    ))
}

fn failed_before(manifest: &Manifest) -> Error {
    Error::state(
        Why::Failed,
        format!(
            "an earlier write failed: what was added after the {} entries of generation {} is lost; free the cause, discard it and add it again",
            manifest.entries, manifest.generation
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_search_could_count_is_refused_before_it_is_added() {
        assert!(check_room(MOST_ENTRIES - 10, 4, 6).is_ok() && check_room(0, 0, MOST_ENTRIES).is_ok());
        for (stored, waiting, more) in [(MOST_ENTRIES - 10, 4, 7), (0, 0, MOST_ENTRIES + 1), (1, 1, u64::MAX)] {
            let error = check_room(stored, waiting, more).expect_err("full");
            assert!(matches!(error, Error::State { why: Why::Full, .. }), "{error}");
        }
    }
}
