//! Adds entries: checks a batch, then streams its keys to a new data segment with bounded memory.
//!
//! Keys go straight to the segment's first section; values and documents wait in [`Spill`] buffers until `finish`
//! appends them. What is added becomes visible when the manifest that names the segment is published.

use super::documents::{Document, NAMED, Record};
use super::encoding::Encoding;
use super::files::Folder;
use super::manifest::{DataRecord, KeyType, Manifest, SPILL_NAMES, ValueType};
use super::segment::SegmentKind;
use super::segment_writer::SegmentWriter;
use super::snapshot::Snapshot;
use super::spill::Spill;
use super::values::ValueRows;
use crate::keys::KeyRows;
use crate::sections::{Element, SectionKind, SectionSink};
use crate::{Error, Result};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Scalars that are converted at a time.
const BLOCK: usize = 1 << 16;

/// Where raw keys go.
#[derive(Debug)]
enum Keys {
    /// To the segment.
    Segment(Box<SegmentWriter>),
    /// Into lists.
    Lists(Box<Encoding>),
}

/// A data segment in the making.
#[derive(Debug)]
pub struct Writer {
    base: Arc<Snapshot>,
    folder: Folder,
    key_type: KeyType,
    keys: Keys,
    values: Spill,
    records: Spill,
    text: Spill,
    text_bytes: u64,
    names: BTreeMap<String, u32>,
    /// The document that the next entry may extend, not yet in `records`.
    last: Option<Document>,
    /// Whether `last` is the last document of the base, and whether anything of this segment belongs to it.
    inherited: bool,
    continues: bool,
    documents: u32,
    entries: u64,
    failed: bool,
}

impl Writer {
    /// Starts a segment after the entries of `base`.
    pub fn start(folder: &Folder, base: Arc<Snapshot>) -> Result<Writer> {
        let manifest = &base.manifest;
        let key_type = manifest.keep_keys.unwrap_or(KeyType::Float32);
        let keys = match Encoding::start(folder, manifest)? {
            Some(encoding) => Keys::Lists(Box::new(encoding)),
            None => {
                let name = data_name(manifest.generation + 1);
                let mut segment = SegmentWriter::create(folder, &name, SegmentKind::Data)?;
                segment.begin_as(SectionKind::Keys, key_element(key_type))?;
                Keys::Segment(Box::new(segment))
            }
        };
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
            key_type,
            keys,
            values,
            records,
            text,
            text_bytes: 0,
            names: BTreeMap::new(),
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
        let start = self.next_id();
        let end = start.checked_add(n as u64).filter(|&end| end <= i64::MAX as u64);
        let end = end.ok_or_else(|| {
            Error::Argument(format!("expected at most {} entries, found {n} more than {start}", i64::MAX))
        })?;
        let new_document = self.check_document(document, metadata)?;
        if n == 0 && document.is_none() {
            return Ok(start..end);
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
        self.write_keys(keys)?;
        let spill = &mut self.values;
        values.with_bytes(self.base.manifest.values, |bytes| spill.write(bytes))?;
        self.entries += n as u64;
        self.failed = false;
        Ok(start..end)
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
                    return Err(Error::Argument(format!(
                        "document {name:?}: expected the metadata of its first entries or none, found other metadata; nothing was added"
                    )));
                }
                return Ok(false);
            }
            _ => {}
        }
        let Some(name) = name else { return Ok(true) };
        if self.names.contains_key(name) || self.base.find_document(name)?.is_some() {
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

    fn write_keys(&mut self, keys: KeyRows) -> Result<()> {
        let segment = match &mut self.keys {
            Keys::Segment(segment) => segment,
            Keys::Lists(encoding) => return encoding.add(keys),
        };
        match (keys, self.key_type) {
            (KeyRows::F32(x), KeyType::Float32) => segment.write(bytemuck::cast_slice(x)),
            (KeyRows::F16(x), KeyType::Float16) => segment.write(bytemuck::cast_slice(x)),
            (KeyRows::F32(x), KeyType::Float16) => {
                let mut block = vec![f16::ZERO; BLOCK.min(x.len())];
                x.chunks(BLOCK).try_for_each(|x| {
                    block[..x.len()].convert_from_f32_slice(x);
                    segment.write(bytemuck::cast_slice(&block[..x.len()]))
                })
            }
            (KeyRows::F16(x), KeyType::Float32) => {
                let mut block = vec![0f32; BLOCK.min(x.len())];
                x.chunks(BLOCK).try_for_each(|x| {
                    x.convert_to_f32_slice(&mut block[..x.len()]);
                    segment.write(bytemuck::cast_slice(&block[..x.len()]))
                })
            }
        }
    }

    /// Finishes the segment and publishes the next generation; none if nothing was added.
    pub fn commit(mut self) -> Result<Option<Manifest>> {
        if self.failed {
            return Err(failed_before(&self.base.manifest));
        }
        self.close_document()?;
        if self.entries == 0 && self.documents == 0 {
            return Ok(None);
        }
        let mut manifest = self.base.manifest.clone();
        manifest.generation += 1;
        let (mut segment, keys) = match self.keys {
            Keys::Segment(mut segment) => {
                segment.end()?;
                (*segment, Some(self.key_type))
            }
            Keys::Lists(encoding) => {
                encoding.finish(&mut manifest)?;
                (SegmentWriter::create(&self.folder, &data_name(manifest.generation), SegmentKind::Data)?, None)
            }
        };
        segment.begin_as(SectionKind::Values, value_element(self.base.manifest.values))?;
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
        manifest.publish(&self.folder)?;
        Ok(Some(manifest))
    }
}

/// Name of the data segment of a generation.
pub(crate) fn data_name(generation: u64) -> String {
    format!("data-{generation:08}.seg")
}

pub(crate) fn key_element(key_type: KeyType) -> Element {
    match key_type {
        KeyType::Float16 => Element::F16,
        KeyType::Float32 => Element::F32,
    }
}

pub(crate) fn value_element(value_type: ValueType) -> Element {
    match value_type {
        ValueType::Uint32 => Element::U32,
        ValueType::Uint64 => Element::U64,
    }
}

fn failed_before(manifest: &Manifest) -> Error {
    Error::State(format!(
        "an earlier write failed: what was added after the {} entries of generation {} is lost; free the cause, discard() and add it again",
        manifest.entries, manifest.generation
    ))
}

/// Number of rows.
fn check_rows(d: usize, keys: &KeyRows, values: &ValueRows) -> Result<usize> {
    let expected = values.len().checked_mul(d);
    if expected != Some(keys.len()) {
        return Err(Error::Argument(format!(
            "expected keys of {} rows × {d} dimensions to go with {} values, found {} numbers ({} rows); nothing was added",
            values.len(),
            values.len(),
            keys.len(),
            keys.len() as f64 / d as f64
        )));
    }
    Ok(values.len())
}

/// Refuses a sample of keys that is not whole rows of finite numbers.
pub(crate) fn check_sample(d: usize, keys: &KeyRows) -> Result<()> {
    if keys.is_empty() || !keys.len().is_multiple_of(d) {
        return Err(Error::Argument(format!("sample: expected rows of {d} numbers, found {} numbers", keys.len())));
    }
    check_keys(d, keys, KeyType::Float32)
}

/// Refuses NaN, infinities and what f16 cannot hold, naming the first row and column.
fn check_keys(d: usize, keys: &KeyRows, key_type: KeyType) -> Result<()> {
    // 65,520 is half-way between the largest f16 and the next power of two: from there on rounding gives infinity.
    const F16_OVERFLOW: f32 = 65_520.0;
    let place = |i: usize| format!("key of row {}, column {}", i / d, i % d);
    let largest = crate::keys::largest_coordinate(d);
    let bad = match keys {
        KeyRows::F32(x) => first(x, |v| v.is_nan() || v.abs() > largest).map(|i| (i, x[i])),
        KeyRows::F16(x) => first(x, |v| !v.is_finite()).map(|i| (i, x[i].to_f32())),
    };
    if let Some((i, found)) = bad {
        return Err(Error::Argument(format!(
            "{}: expected a finite number of at most {largest:.1e} in size (else distances overflow), found {found}; nothing was added",
            place(i)
        )));
    }
    if let (KeyRows::F32(x), KeyType::Float16) = (keys, key_type)
        && let Some(i) = first(x, |v| v.abs() >= F16_OVERFLOW)
    {
        return Err(Error::Argument(format!(
            "{}: expected at most 65504 in size (float16), found {}; scale the keys, or create the store with keep_keys=\"float32\". Nothing was added",
            place(i),
            x[i]
        )));
    }
    Ok(())
}

/// Place of the first element that is bad. Whole chunks are tested without an early end, which vectorises.
fn first<T: Copy>(x: &[T], is_bad: impl Fn(T) -> bool) -> Option<usize> {
    const CHUNK: usize = 1024;
    let chunk = x.chunks(CHUNK).position(|chunk| chunk.iter().fold(false, |any, &v| any | is_bad(v)))?;
    x[chunk * CHUNK..].iter().position(|&v| is_bad(v)).map(|i| chunk * CHUNK + i)
}
