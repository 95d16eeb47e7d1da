//! Writes consecutive data segments as one: without raw keys that need not be kept, without documents that are deleted.

use crate::error::Why;
use crate::sections::{Element, SectionKind, SectionSink};
use crate::store::format::documents::{DocumentTable, NAMED, Record};
use crate::store::format::files::Folder;
use crate::store::format::layout::SegmentKind;
use crate::store::format::manifest::Manifest;
use crate::store::format::records::DataRecord;
use crate::store::format::runs::Run;
use crate::store::format::segment_writer::SegmentWriter;
use crate::store::read::snapshot::{Piece, Snapshot};
use crate::work::Progress;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows that are copied between two looks at `cancel`.
const ROWS: usize = 1 << 16;

/// What is written of which segments.
pub(crate) struct Merge<'m> {
    pub(crate) folder: &'m Folder,
    pub(crate) snapshot: &'m Snapshot,
    /// Which of the manifest they are.
    pub(crate) segments: Range<usize>,
    /// Whether raw keys go along (all segments have them then, of one type).
    pub(crate) keys: bool,
    /// Whether deleted documents stay behind.
    pub(crate) drop_deleted: bool,
    pub(crate) progress: Progress<'m>,
    pub(crate) cancel: &'m AtomicBool,
}

impl Merge<'_> {
    /// Writes the segment `name`.
    pub(crate) fn write(&self, name: &str) -> Result<DataRecord> {
        let manifest = &self.snapshot.manifest;
        let old = &manifest.data[self.segments.clone()];
        let ids = old[0].first_id..old[old.len() - 1].ids().end;
        let pieces: Vec<Piece> =
            if self.drop_deleted { self.snapshot.pieces(&ids).collect() } else { self.snapshot.stored(&ids).collect() };
        let entries: u64 = pieces.iter().map(|p| p.rows.len() as u64).sum();
        let runs = runs(&pieces);
        let mut segment = SegmentWriter::create(self.folder, name, SegmentKind::Data)?;
        let key_type = old[0].keys.filter(|_| self.keys);
        if let Some(key_type) = key_type {
            self.snapshot.read_keys(true);
            segment.begin_as(SectionKind::Keys, key_type.element())?;
            self.copy(SectionKind::Keys, &pieces, entries, &mut segment, |piece, sink| match piece.keys()? {
                Some(block) => sink.write(block.rows.as_bytes()),
                None => Err(Error::state(
                    Why::Broken,
                    "expected raw keys in all segments that are joined, found one without",
                )),
            })?;
            segment.end()?;
        }
        segment.begin_as(SectionKind::Values, manifest.values.element())?;
        self.copy(SectionKind::Values, &pieces, entries, &mut segment, |piece, sink| {
            sink.write(piece.segment.values()?.slice(piece.rows.clone()).as_bytes())
        })?;
        segment.end()?;
        let (documents, continues) = self.documents()?;
        segment.section(SectionKind::Documents, Element::Bytes, bytemuck::cast_slice(&documents.records))?;
        segment.section(SectionKind::DocumentText, Element::Bytes, &documents.text)?;
        segment.section(SectionKind::DocumentNames, Element::U32, bytemuck::cast_slice(&documents.sorted()))?;
        let whole = ids.end - ids.start == entries;
        if !whole {
            segment.section(SectionKind::Runs, Element::U64, bytemuck::cast_slice(&runs))?;
        }
        Ok(DataRecord {
            name: segment.finish()?,
            first_id: ids.start,
            entries,
            keys: key_type,
            documents: documents.records.len() as u64,
            continues,
            end_id: (!whole).then_some(ids.end),
        })
    }

    /// Copies the rows of a section, checked before they get new checksums.
    fn copy(
        &self,
        kind: SectionKind,
        pieces: &[Piece],
        total: u64,
        sink: &mut SegmentWriter,
        put: impl Fn(&Piece, &mut SegmentWriter) -> Result<()>,
    ) -> Result<()> {
        let stage = if kind == SectionKind::Keys { "copy raw keys" } else { "copy values" };
        let mut done = 0;
        for piece in pieces {
            for start in piece.rows.clone().step_by(ROWS) {
                if self.cancel.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                let rows = start..piece.rows.end.min(start + ROWS);
                let first_id = piece.first_id + (start - piece.rows.start) as u64;
                done += rows.len() as u64;
                piece.segment.check(kind, rows.clone())?;
                put(&Piece { segment: piece.segment, first_id, rows }, sink)?;
            }
            (self.progress)(stage, done, total);
        }
        Ok(())
    }

    /// One document table of all, and whether its first record continues the document before.
    fn documents(&self) -> Result<(Merged, bool)> {
        let snapshot = self.snapshot;
        let gone = |record: u64| self.drop_deleted && snapshot.deleted.holds_record(record);
        let mut merged = Merged::default();
        let mut continues = false;
        for i in self.segments.clone() {
            let (segment, record) = (&snapshot.data[i], &snapshot.manifest.data[i]);
            let table = DocumentTable::open(&segment.file)?;
            for j in 0..table.len() {
                let number = segment.first_document + j as u64;
                if gone(number) {
                    continue;
                }
                if j == 0 && record.continues {
                    if i == self.segments.start {
                        continues = true;
                    } else {
                        merged.pop(); // a document that goes on keeps its later record
                    }
                }
                merged.push(&table, j)?;
            }
        }
        Ok((merged, continues))
    }
}

/// Copies values and documents of all segments with raw keys into one without.
pub(crate) fn drop_keys(
    folder: &Folder,
    snapshot: &Snapshot,
    manifest: &mut Manifest,
    progress: Progress,
    cancel: &AtomicBool,
) -> Result<()> {
    let Some(first) = manifest.data.iter().position(|d| d.keys.is_some()) else { return Ok(()) };
    let segments = first..manifest.data.len();
    let merge = Merge { folder, snapshot, segments, keys: false, drop_deleted: false, progress, cancel };
    let record = merge.write(&SegmentKind::Data.file_name(manifest.generation))?;
    manifest.data.truncate(first);
    manifest.data.push(record);
    Ok(())
}

/// Pieces whose ids follow each other are one run.
fn runs(pieces: &[Piece]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let (mut row, mut next) = (0, None);
    for piece in pieces {
        if next != Some(piece.first_id) {
            runs.push(Run { id: piece.first_id, row });
        }
        row += piece.rows.len() as u64;
        next = Some(piece.first_id + piece.rows.len() as u64);
    }
    runs
}

#[derive(Default)]
struct Merged {
    records: Vec<Record>,
    text: Vec<u8>,
    named: Vec<(String, u32)>,
}

impl Merged {
    fn push(&mut self, table: &DocumentTable, j: usize) -> Result<()> {
        let document = table.get(j)?;
        let number = u32::try_from(self.records.len()).map_err(|_| {
            Error::state(Why::Full, "expected at most 4294967295 documents in one segment; build more often")
        })?;
        let name = document.name.as_deref().unwrap_or("");
        let metadata = document.metadata.as_deref().unwrap_or("");
        self.records.push(Record {
            start: document.start,
            end: document.end,
            text: self.text.len() as u64,
            name: name.len() as u32,
            metadata: metadata.len() as u32,
            flags: if document.name.is_some() { NAMED } else { 0 },
            reserved: 0,
        });
        self.text.extend(name.as_bytes());
        self.text.extend(metadata.as_bytes());
        self.named.extend(document.name.map(|name| (name, number)));
        Ok(())
    }

    fn pop(&mut self) {
        if let Some(dropped) = self.records.pop() {
            if dropped.flags & NAMED != 0 {
                self.named.pop();
            }
            self.text.truncate(dropped.text as usize);
        }
    }

    fn sorted(&self) -> Vec<u32> {
        let mut named: Vec<&(String, u32)> = self.named.iter().collect();
        named.sort_unstable();
        named.into_iter().map(|&(_, number)| number).collect()
    }
}
