//! One generation of a store, opened: what every reader uses, unchanged by writers.

use crate::error::{Action, RESTORE};
use crate::ids::without;
use crate::index::{KeptCodebook, KeptLists};
use crate::keys::{KeyBlock, KeyRows};
use crate::sections::{Element, SectionKind, SectionSource, typed};
use crate::store::format::damage;
use crate::store::format::deleted::Deleted;
use crate::store::format::documents::{Document, DocumentTable, Record};
use crate::store::format::files::Folder;
use crate::store::format::layout::{SegmentKind, SegmentName};
use crate::store::format::lock::FolderId;
use crate::store::format::manifest::Manifest;
use crate::store::format::records::{KeyType, ValueType};
use crate::store::format::runs::Runs;
use crate::store::format::segment::SegmentFile;
use crate::store::format::values::ValueRows;
use crate::{Error, Result};
use once_cell::race::OnceBox;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows that are checked between two looks at `cancel`.
const CHECKED_ROWS: usize = 1 << 16;

/// A data segment, opened.
#[derive(Debug)]
pub struct DataSegment {
    pub(crate) file: Arc<SegmentFile>,
    pub(crate) ids: Range<u64>,
    runs: Runs,
    keys: Option<KeyType>,
    values: ValueType,
    dim: usize,
    /// Index of its first document in the whole store.
    pub(crate) first_document: u64,
}

/// That files are read into memory, but for those that a snapshot has read already: files never change.
#[derive(Clone, Copy)]
pub(crate) struct Loaded<'s> {
    pub(crate) before: Option<&'s Snapshot>,
}

/// Rows of a data segment whose ids follow each other.
#[derive(Clone, Debug)]
pub(crate) struct Piece<'s> {
    pub(crate) segment: &'s DataSegment,
    pub(crate) first_id: u64,
    pub(crate) rows: Range<usize>,
}

/// An opened generation. Mapped files stay valid after they were unlinked.
#[derive(Debug)]
pub struct Snapshot {
    /// What it consists of.
    #[doc(hidden)]
    pub manifest: Manifest,
    pub(crate) data: Vec<DataSegment>,
    pub(crate) codebook: Option<Arc<SegmentFile>>,
    pub(crate) lists: Vec<Arc<SegmentFile>>,
    pub(crate) deleted: Deleted,
    /// Codebook and lists once they were checked: a search opens neither again.
    pub(crate) checked: OnceBox<CheckedIndex>,
    /// Which folder it was opened in.
    pub(crate) folder_id: Option<FolderId>,
}

/// What opening codebook and lists found out.
pub(crate) struct CheckedIndex {
    pub(crate) codebook: KeptCodebook,
    pub(crate) lists: Vec<KeptLists>,
}

impl std::fmt::Debug for CheckedIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CheckedIndex({} lists segments)", self.lists.len())
    }
}

impl Snapshot {
    /// Opens the newest generation in a folder.
    ///
    /// # Errors
    /// `State` if there is no store; `Format` for damaged files; `Io` for what the system refuses.
    pub(crate) fn open(folder: &Folder) -> Result<Snapshot> {
        Snapshot::open_as(folder, None)
    }

    /// [`Self::open`], read into memory if `loaded`.
    pub(crate) fn open_as(folder: &Folder, loaded: Option<Loaded>) -> Result<Snapshot> {
        let mut seen = None;
        loop {
            let newest = match Manifest::newest(folder) {
                Ok(Some(generation)) => generation,
                Ok(None) => return Err(no_store(folder)),
                Err(e) if e.is_not_found() => return Err(no_store(folder)),
                Err(e) => return Err(e),
            };
            match Manifest::read(folder, newest).and_then(|manifest| Snapshot::of_as(folder, manifest, loaded)) {
                // A writer may have published and collected between our two looks: try again while there is news.
                Err(e) if e.is_not_found() && seen != Some(newest) => seen = Some(newest),
                Err(e) if e.is_not_found() => {
                    return Err(Error::format(
                        folder.path(),
                        format!("generation {newest} names a file that is missing ({e}); {RESTORE}"),
                    ));
                }
                other => return other,
            }
        }
    }

    /// Opens the files that a manifest names and checks their sections against it.
    pub(crate) fn of(folder: &Folder, manifest: Manifest) -> Result<Snapshot> {
        Snapshot::of_as(folder, manifest, None)
    }

    /// [`Self::of`], read into memory if `loaded`.
    pub(crate) fn of_as(folder: &Folder, manifest: Manifest, loaded: Option<Loaded>) -> Result<Snapshot> {
        let folder_id = FolderId::at(folder);
        let open = |name: &SegmentName, kind: SegmentKind| match loaded {
            None => SegmentFile::open(folder.path(), name, kind).map(Arc::new),
            Some(loaded) => match loaded.before.and_then(|before| before.loaded(name)) {
                Some(file) => Ok(file),
                None => SegmentFile::load(folder.path(), name, kind).map(Arc::new),
            },
        };
        let mut data: Vec<DataSegment> = Vec::with_capacity(manifest.data.len());
        let mut documents = 0;
        for record in &manifest.data {
            let file = open(&record.name, SegmentKind::Data)?;
            expect(&file, SectionKind::Values, manifest.values.element(), Some(record.entries), 1)?;
            if let Some(keys) = record.keys {
                expect(&file, SectionKind::Keys, keys.element(), Some(record.entries), manifest.dim as u64)?;
            }
            expect(&file, SectionKind::Documents, Element::Bytes, Some(record.documents), size_of::<Record>() as u64)?;
            expect(&file, SectionKind::DocumentText, Element::Bytes, None, 1)?;
            expect(&file, SectionKind::DocumentNames, Element::U32, None, 1)?;
            if DocumentTable::open(&file)?.named() > record.documents as usize {
                return Err(file.format_error(format!("expected at most one name per document; {RESTORE}")));
            }
            let first_document = documents - u64::from(record.continues);
            documents = first_document.saturating_add(record.documents);
            data.push(DataSegment {
                runs: Runs::read(&file, record)?,
                file,
                ids: record.ids(),

                keys: record.keys,
                values: manifest.values,
                dim: manifest.dim,
                first_document,
            });
        }
        let codebook = manifest.codebook.as_ref().map(|name| open(name, SegmentKind::Codebook)).transpose()?;
        let lists = manifest.lists.iter().map(|l| open(&l.name, SegmentKind::Lists)).collect::<Result<Vec<_>>>()?;
        lists.iter().for_each(|lists| lists.read_in_no_order());
        let deleted = match &manifest.deleted {
            Some(record) => Deleted::open(folder, record, manifest.records(), manifest.entries)?,
            None => Deleted::default(),
        };
        Ok(Snapshot { manifest, data, codebook, lists, deleted, checked: OnceBox::new(), folder_id })
    }

    /// Segment and row of an entry; none if there is no such entry or it is deleted.
    pub(crate) fn locate(&self, id: u64) -> Option<(&DataSegment, usize)> {
        let after = self.data.partition_point(|s| s.ids.start <= id);
        // An empty segment shares its first id with the next one, which comes later and is found first.
        let segment = self.data[..after].iter().rev().find(|s| s.ids.contains(&id))?;
        segment.row_of(id).filter(|_| !self.deleted.holds_id(id)).map(|row| (segment, row))
    }

    /// Rows of a range of ids in pieces, ascending; those of deleted entries are among them.
    pub(crate) fn stored(&self, ids: &Range<u64>) -> impl Iterator<Item = Piece<'_>> {
        let ids = ids.clone();
        let first = self.data.partition_point(|s| s.ids.end <= ids.start);
        self.data[first..]
            .iter()
            .take_while({
                let end = ids.end;
                move |s| s.ids.start < end
            })
            .flat_map(move |segment| segment.pieces(ids.clone()))
    }

    /// Rows of a range of ids in pieces, ascending, without those of deleted entries.
    pub(crate) fn pieces(&self, ids: &Range<u64>) -> impl Iterator<Item = Piece<'_>> {
        self.stored(ids).flat_map(|piece| {
            let ids = piece.first_id..piece.first_id + piece.rows.len() as u64;
            without(ids, self.deleted.spans()).into_iter().map(move |left| {
                let start = piece.rows.start + (left.start - piece.first_id) as usize;
                let rows = start..start + (left.end - left.start) as usize;
                Piece { segment: piece.segment, first_id: left.start, rows }
            })
        })
    }

    /// Forgets which bytes were found sound, for who is about to derive something from them.
    pub(crate) fn check_anew(&self) {
        self.files().for_each(|(_, file)| file.check_anew());
    }

    /// Its files, by name.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &SegmentFile)> {
        let opened = self.data.iter().map(|data| &data.file).chain(&self.codebook).chain(&self.lists);
        let opened = opened.map(|file| &**file).chain(self.deleted.file());
        self.manifest.segments().map(|(_, name)| name.file.as_str()).zip(opened)
    }

    /// The file of a name that it has read into memory.
    fn loaded(&self, name: &SegmentName) -> Option<Arc<SegmentFile>> {
        let opened = self.data.iter().map(|data| &data.file).chain(&self.codebook).chain(&self.lists);
        let mut named = self.manifest.segments().map(|(_, name)| name).zip(opened);
        named.find(|(own, file)| *own == name && file.is_resident()).map(|(_, file)| file.clone())
    }

    /// Checks the raw keys of a range of ids, where they are kept.
    ///
    /// # Errors
    /// `Damaged`; `Interrupted` once `cancel` is set.
    pub(crate) fn check_keys(&self, ids: &Range<u64>, cancel: &AtomicBool) -> Result<()> {
        for piece in self.pieces(ids) {
            for start in piece.rows.clone().step_by(CHECKED_ROWS) {
                if cancel.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                piece.segment.check(SectionKind::Keys, start..piece.rows.end.min(start + CHECKED_ROWS))?;
            }
        }
        Ok(())
    }

    /// Raw keys of a range of ids, where they are kept, without those of deleted entries.
    pub(crate) fn key_blocks(&self, ids: &Range<u64>) -> Result<Vec<KeyBlock<'_>>> {
        self.read_keys(true);
        self.pieces(ids).filter_map(|piece| piece.keys().transpose()).collect()
    }

    /// Says whether raw keys are about to be read in order.
    pub(crate) fn read_keys(&self, in_order: bool) {
        self.data.iter().for_each(|segment| segment.file.read_keys(in_order));
    }

    /// Raw keys of a range of ids, where they are kept; those of deleted entries are among them.
    pub(crate) fn stored_key_blocks(&self, ids: &Range<u64>) -> Result<Vec<KeyBlock<'_>>> {
        self.stored(ids).filter_map(|piece| piece.keys().transpose()).collect()
    }

    /// Document number `index`.
    pub fn document(&self, index: u64) -> Result<Document> {
        if index >= self.manifest.documents() {
            return Err(Error::Argument(format!(
                "document index: expected less than {}, found {index}",
                self.manifest.documents()
            )));
        }
        self.document_record(self.deleted.record_of(index)?)
    }

    /// Document record number `record`, deleted or not.
    pub(crate) fn document_record(&self, record: u64) -> Result<Document> {
        let after = self.data.partition_point(|s| s.first_document <= record);
        match self.data[..after].last() {
            Some(s) => DocumentTable::open(&s.file)?.get((record - s.first_document) as usize),
            None => Err(Error::Argument(format!("document record: expected one that exists, found {record}"))),
        }
    }

    /// Number of the document that an id lies in; none for ids that do not exist.
    pub fn document_of(&self, id: u64) -> Result<Option<u64>> {
        match self.locate(id) {
            Some((s, _)) => {
                let record = s.first_document + DocumentTable::open(&s.file)?.record_of(id)? as u64;
                Ok(Some(self.deleted.index_of(record)))
            }
            None => Ok(None),
        }
    }

    /// Number of the document of a name.
    pub fn find_document(&self, name: &str) -> Result<Option<u64>> {
        for segment in self.data.iter().rev() {
            for &record in DocumentTable::open(&segment.file)?.find(name)? {
                let record = segment.first_document + u64::from(record);
                if !self.deleted.holds_record(record) {
                    return Ok(Some(self.deleted.index_of(record)));
                }
            }
        }
        Ok(None)
    }
}

impl<'s> Piece<'s> {
    /// Its raw keys, if they are kept.
    pub(crate) fn keys(&self) -> Result<Option<KeyBlock<'s>>> {
        self.segment.keys(self.first_id, self.rows.clone())
    }
}

impl DataSegment {
    /// All its values.
    pub(crate) fn values(&self) -> Result<ValueRows<'_>> {
        Ok(match self.values {
            ValueType::Uint32 => ValueRows::U32(typed(&*self.file, SectionKind::Values)?),
            ValueType::Uint64 => ValueRows::U64(typed(&*self.file, SectionKind::Values)?),
        })
    }

    /// Whether its rows have the ids from its first on, without a gap.
    pub(crate) fn counts_ids(&self) -> bool {
        self.runs.count_from(self.ids.start)
    }

    /// Row of an id, if it has one.
    pub(crate) fn row_of(&self, id: u64) -> Option<usize> {
        self.runs.row_of(id)
    }

    /// Its rows with ids in a range.
    pub(crate) fn pieces(&self, ids: Range<u64>) -> impl Iterator<Item = Piece<'_>> {
        self.runs.spans(ids).map(|(first_id, rows)| Piece { segment: self, first_id, rows })
    }

    /// Checks a section that has one element, or one key, for each row.
    ///
    /// # Errors
    /// `Damaged`, naming the ids that the damage touches.
    pub(crate) fn check(&self, kind: SectionKind, rows: Range<usize>) -> Result<()> {
        let Some(section) = self.file.find(kind).filter(|_| !rows.is_empty()) else { return Ok(()) };
        let stride = section.span.len() / self.runs.entries().max(1);
        let Some(damage) = self.file.damage(section, rows.start * stride..rows.end * stride) else { return Ok(()) };
        let damaged = damage.section.as_ref().and_then(|s| damage::rows(&*self.file, s, self.runs.entries() as u64));
        let ids = damaged.and_then(|rows| self.runs.ids_of(rows));
        Err(self.file.damaged(damage, ids))
    }

    /// Number of its rows.
    pub(crate) fn entries(&self) -> usize {
        self.runs.entries()
    }

    /// Ids of some rows, and what lies between them.
    pub(crate) fn ids_of(&self, rows: Range<u64>) -> Option<Range<u64>> {
        self.runs.ids_of(rows)
    }

    /// Whether it has raw keys.
    pub(crate) fn keeps_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// Raw keys of some rows (within `entries`) whose ids follow `first_id`, if it has them.
    pub(crate) fn keys(&self, first_id: u64, rows: Range<usize>) -> Result<Option<KeyBlock<'_>>> {
        let span = rows.start * self.dim..rows.end * self.dim;
        let keys = match self.keys {
            None => return Ok(None),
            Some(KeyType::Float16) => KeyRows::F16(&typed(&*self.file, SectionKind::Keys)?[span]),
            Some(KeyType::Float32) => KeyRows::F32(&typed(&*self.file, SectionKind::Keys)?[span]),
        };
        Ok(Some(KeyBlock { first_id, d: self.dim, rows: keys }))
    }
}

/// Checks type and length of a section: `rows` rows of `width` elements.
fn expect(file: &SegmentFile, kind: SectionKind, element: Element, rows: Option<u64>, width: u64) -> Result<()> {
    let Some(section) = file.find(kind) else {
        return Err(file.format_error(format!("expected a section {kind:?}, found none; {RESTORE}")));
    };
    let bytes = rows.map(|rows| rows.checked_mul(width).and_then(|n| n.checked_mul(element.size() as u64)));
    let fits = bytes.is_none_or(|bytes| bytes == Some(section.span.len() as u64));
    if section.element != element || !fits {
        return Err(file.format_error(format!(
            "section {kind:?}: expected {rows:?} rows of {width} {element:?}, found {} bytes of {:?}; {RESTORE}",
            section.span.len(),
            section.element
        )));
    }
    Ok(())
}

fn no_store(folder: &Folder) -> Error {
    let path = folder.path();
    if path.exists() {
        let message = "expected a knnlm store (a folder with manifest-*.json), found none; check the path, or create a store there";
        Error::format(path, message)
    } else {
        Error::io(path, Action::OpenStore, std::io::ErrorKind::NotFound.into())
    }
}
