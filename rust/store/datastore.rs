//! A store on disk: create, open, add, commit, and what readers ask of entries and documents.
//!
//! All methods take `&self`. Readers work on a [`Snapshot`], which writers never change; a writer holds the lock of the
//! folder from its first `add` until `commit` or `discard`.

use super::documents::Document;
use super::files::{Disk, Files, Folder, LOCK, TEMPORARY};
use super::manifest::{KeyType, MAX_DIM, Manifest, ValueType, collect};
use super::snapshot::Snapshot;
use super::values::{ValueRows, Values};
use super::verify::{Problem, verify};
use super::writer::Writer;
use crate::keys::KeyRows;
use crate::{Error, Metric, Result};
use serde_json::value::RawValue;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// What a store is created with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Dimension of a key, 1 to 65,536.
    pub dim: usize,
    /// How keys are compared.
    pub metric: Metric,
    /// Whether `build` keeps raw keys, and how they are stored.
    pub keep_keys: Option<KeyType>,
    /// How values are stored.
    pub values: ValueType,
    /// Largest value that may be added.
    pub max_value: Option<u64>,
    /// JSON to remember.
    pub attributes: Option<String>,
    /// Replace a store that is there.
    pub overwrite: bool,
}

/// Values and places of some entries. Ids that do not exist have an all-ones value and no document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// Values.
    pub values: Values,
    /// Numbers of their documents, −1 = missing.
    pub documents: Vec<i64>,
    /// Positions in their documents, −1 = missing.
    pub positions: Vec<i64>,
}

/// A writer with the lock that it holds.
#[derive(Debug)]
pub(crate) struct Writing {
    writer: Writer,
    _lock: File,
}

/// A store on disk.
#[derive(Debug)]
pub struct Datastore {
    pub(crate) folder: Folder,
    snapshot: RwLock<Arc<Snapshot>>,
    writing: Mutex<Option<Writing>>,
}

impl Datastore {
    /// Creates an empty store in a folder that does not exist, is empty, or (with `overwrite`) holds a store.
    ///
    /// # Errors
    /// `Argument` for options out of range; `State` if something is there or another writer works on it; `Io`.
    pub fn create(path: &Path, options: &Options) -> Result<Datastore> {
        Datastore::create_through(path, options, Arc::new(Disk))
    }

    /// [`Self::create`] through another file layer.
    pub fn create_through(path: &Path, options: &Options, files: Arc<dyn Files>) -> Result<Datastore> {
        if options.dim == 0 || options.dim > MAX_DIM {
            return Err(Error::Argument(format!("dim: expected 1 to {MAX_DIM}, found {}", options.dim)));
        }
        if let (ValueType::Uint32, Some(max)) = (options.values, options.max_value)
            && max > u64::from(u32::MAX)
        {
            return Err(Error::Argument(format!(
                "max_value: expected at most {} for uint32 values, found {max}",
                u32::MAX
            )));
        }
        let attributes = parse_attributes(options.attributes.as_deref().unwrap_or("{}"))?;
        let folder = Folder::new(path, files);
        folder.create_dir()?;
        let foreign = folder.names()?.into_iter().find(|name| name != LOCK && !name.ends_with(TEMPORARY));
        if let (None, Some(name)) = (Manifest::newest(&folder)?, foreign) {
            return Err(Error::State(format!(
                "{}: expected an empty folder or a store, found {name:?}; choose another folder (other files are never removed)",
                path.display()
            )));
        }
        let lock = folder.lock()?;
        let newest = Manifest::newest(&folder)?;
        if newest.is_some() && !options.overwrite {
            return Err(Error::State(format!(
                "{}: expected no store, found one; open it, or pass overwrite=True to replace it",
                path.display()
            )));
        }
        // Replacing a store is a new generation that names none of the old files: as atomic as any other.
        let generation = newest.map_or(1, |newest| newest + 1);
        let manifest = Manifest {
            generation,
            metric: options.metric,
            dim: options.dim,
            values: options.values,
            max_value: options.max_value,
            keep_keys: options.keep_keys,
            entries: 0,
            data: Vec::new(),
            codebook: None,
            lists: Vec::new(),
            attributes,
        };
        manifest.publish(&folder)?;
        collect(&folder, &manifest);
        drop(lock);
        Datastore::of(folder)
    }

    /// Opens a store; reads nothing that grows with the number of entries.
    ///
    /// # Errors
    /// `Format` for damaged, missing or newer files; `Io`.
    pub fn open(path: &Path) -> Result<Datastore> {
        Datastore::open_through(path, Arc::new(Disk))
    }

    /// [`Self::open`] through another file layer.
    pub fn open_through(path: &Path, files: Arc<dyn Files>) -> Result<Datastore> {
        Datastore::of(Folder::new(path, files))
    }

    fn of(folder: Folder) -> Result<Datastore> {
        let snapshot = RwLock::new(Arc::new(Snapshot::open(&folder)?));
        Ok(Datastore { folder, snapshot, writing: Mutex::new(None) })
    }

    /// The generation that readers see.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Switches to the newest generation on disk.
    pub fn refresh(&self) -> Result<()> {
        let snapshot = Arc::new(Snapshot::open(&self.folder)?);
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
        Ok(())
    }

    pub(crate) fn writing(&self) -> MutexGuard<'_, Option<Writing>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock, moves to the newest generation, removes what earlier writers left.
    pub(crate) fn begin(&self) -> Result<File> {
        let lock = self.folder.lock()?;
        if Manifest::newest(&self.folder)? != Some(self.generation()) {
            self.refresh()?;
        }
        collect(&self.folder, &self.snapshot().manifest);
        Ok(lock)
    }

    /// After a manifest was published: switches to it and removes what it does not name.
    pub(crate) fn switch(&self, manifest: Manifest) -> Result<()> {
        let snapshot = Arc::new(Snapshot::of(&self.folder, manifest)?);
        collect(&self.folder, &snapshot.manifest);
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
        Ok(())
    }

    /// Adds entries and returns their ids; they are visible after [`Self::commit`]. Consecutive calls with the same
    /// document name extend that document; `None` = entries without a name. If an argument is wrong, nothing is added.
    ///
    /// # Errors
    /// `Argument` naming the first bad row; `State` if another writer holds the store; `Io`, after which what was
    /// added since the last commit is lost and only [`Self::discard`] is left.
    pub fn add(
        &self,
        keys: KeyRows,
        values: ValueRows,
        document: Option<&str>,
        metadata: Option<&str>,
    ) -> Result<Range<u64>> {
        let mut guard = self.writing();
        let fresh = guard.is_none();
        let writing = match &mut *guard {
            Some(writing) => writing,
            none => {
                let lock = self.begin()?;
                none.insert(Writing { writer: Writer::start(&self.folder, self.snapshot())?, _lock: lock })
            }
        };
        let added = writing.writer.add(keys, values, document, metadata);
        if fresh && added.is_err() && !writing.writer.has_failed() {
            self.abandon(&mut guard); // a refused first batch must not leave the store locked
        }
        added
    }

    /// Publishes what was added as the next generation; nothing happens if nothing was.
    ///
    /// # Errors
    /// `Io`, after which the store is as at the last commit; `State` if an `add` had failed.
    pub fn commit(&self) -> Result<()> {
        self.commit_held(&mut self.writing())
    }

    pub(crate) fn commit_held(&self, guard: &mut Option<Writing>) -> Result<()> {
        let Some(writing) = guard.as_ref() else { return Ok(()) };
        if writing.writer.has_failed() {
            // Stays until discarded: silence here would hide the loss.
            return Err(writing.writer.failure());
        }
        let Some(Writing { writer, _lock: lock }) = guard.take() else { return Ok(()) };
        let outcome = writer.commit().and_then(|manifest| manifest.map_or(Ok(()), |manifest| self.switch(manifest)));
        if outcome.is_err() {
            // On disk either generation may be the newest if the very last step failed: look.
            let _ = self.refresh();
        }
        collect(&self.folder, &self.snapshot().manifest);
        drop(lock);
        outcome
    }

    /// Forgets what was added since the last commit.
    pub fn discard(&self) {
        self.abandon(&mut self.writing());
    }

    fn abandon(&self, guard: &mut Option<Writing>) {
        if let Some(Writing { writer, _lock: lock }) = guard.take() {
            drop(writer); // closes its files: Windows removes no open ones
            collect(&self.folder, &self.snapshot().manifest);
            drop(lock);
        }
    }

    /// Entries added since the last commit.
    pub fn pending(&self) -> u64 {
        self.writing().as_ref().map_or(0, |w| w.writer.pending())
    }

    /// Entries that are committed.
    pub fn len(&self) -> u64 {
        self.snapshot().manifest.entries
    }

    /// Whether no entry is committed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Dimension of a key.
    pub fn dim(&self) -> usize {
        self.snapshot().manifest.dim
    }

    /// How keys are compared.
    pub fn metric(&self) -> Metric {
        self.snapshot().manifest.metric
    }

    /// Number of the manifest that readers see.
    pub fn generation(&self) -> u64 {
        self.snapshot().manifest.generation
    }

    /// Whether it has an index.
    pub fn is_built(&self) -> bool {
        self.snapshot().manifest.codebook.is_some()
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The JSON that was given to be remembered.
    pub fn attributes(&self) -> String {
        self.snapshot().manifest.attributes.get().to_owned()
    }

    /// Remembers other JSON, as a new generation (after a commit).
    pub fn set_attributes(&self, attributes: &str) -> Result<()> {
        let attributes = parse_attributes(attributes)?;
        let mut guard = self.writing();
        self.commit_held(&mut guard)?;
        let lock = self.begin()?;
        let mut manifest = self.snapshot().manifest.clone();
        manifest.generation += 1;
        manifest.attributes = attributes;
        let outcome = manifest.publish(&self.folder).and_then(|()| self.switch(manifest));
        if outcome.is_err() {
            let _ = self.refresh();
        }
        drop(lock);
        outcome
    }

    /// Values, documents and positions of entries; −1 and other ids that do not exist give missing ones.
    pub fn get(&self, ids: &[i64]) -> Result<Entries> {
        let snapshot = self.snapshot();
        let mut out = Entries {
            values: snapshot.values_of(ids)?,
            documents: Vec::with_capacity(ids.len()),
            positions: Vec::with_capacity(ids.len()),
        };
        let mut last: Option<(u64, Document)> = None; // neighbours in a list of ids often share a document
        for &id in ids {
            let known = u64::try_from(id).ok().filter(|&id| id < snapshot.manifest.entries);
            let (document, position) = match (known, &last) {
                (None, _) => (-1, -1),
                (Some(id), Some((index, d))) if (d.start..d.end).contains(&id) => {
                    (*index as i64, (id - d.start) as i64)
                }
                (Some(id), _) => match snapshot.document_of(id)? {
                    None => (-1, -1),
                    Some(index) => {
                        let document = snapshot.document(index)?;
                        let position = id.saturating_sub(document.start) as i64;
                        last = Some((index, document));
                        (index as i64, position)
                    }
                },
            };
            out.documents.push(document);
            out.positions.push(position);
        }
        Ok(out)
    }

    /// Raw keys of a range of ids as f32, row-major.
    ///
    /// # Errors
    /// `Argument` for a range that does not exist; `State` where raw keys are not kept.
    pub fn keys(&self, ids: Range<u64>) -> Result<Vec<f32>> {
        let snapshot = self.snapshot();
        snapshot.check_range(&ids)?;
        let d = snapshot.manifest.dim;
        let blocks = snapshot.key_blocks(&ids)?;
        let found: u64 = blocks.iter().map(|b| b.n() as u64).sum();
        if found != ids.end - ids.start {
            return Err(keys_not_kept(&snapshot, "raw keys"));
        }
        let mut out = vec![0f32; found as usize * d];
        let mut rows = out.chunks_exact_mut(d);
        for block in &blocks {
            for (i, row) in (0..block.n()).zip(&mut rows) {
                block.read_row(i, row);
            }
        }
        Ok(out)
    }

    /// Values of a range of ids.
    ///
    /// # Errors
    /// `Argument` for a range that does not exist.
    pub fn values(&self, ids: Range<u64>) -> Result<Values> {
        let snapshot = self.snapshot();
        snapshot.check_range(&ids)?;
        let mut out = Values::with_capacity(snapshot.manifest.values, (ids.end - ids.start) as usize);
        for (segment, rows) in snapshot.pieces(&ids) {
            out.extend(segment.values()?, rows);
        }
        Ok(out)
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.snapshot().manifest.documents()
    }

    /// Document number `index`.
    pub fn document(&self, index: u64) -> Result<Document> {
        self.snapshot().document(index)
    }

    /// Number of the document of a name.
    pub fn find_document(&self, name: &str) -> Result<Option<u64>> {
        self.snapshot().find_document(name)
    }

    /// Numbers of the documents that ids lie in, −1 for ids that do not exist.
    pub fn document_of(&self, ids: &[i64]) -> Result<Vec<i64>> {
        let snapshot = self.snapshot();
        let find = |&id: &i64| match u64::try_from(id) {
            Ok(id) => Ok(snapshot.document_of(id)?.map_or(-1, |index| index as i64)),
            Err(_) => Ok(-1),
        };
        ids.iter().map(find).collect()
    }

    /// Reads every byte of this generation and lists what is wrong.
    pub fn verify(&self) -> Result<Vec<Problem>> {
        verify(&self.folder, &self.snapshot().manifest)
    }

    /// [`Self::verify`] for a store that may be too damaged to open.
    pub fn verify_path(path: &Path) -> Result<Vec<Problem>> {
        let folder = Folder::new(path, Arc::new(Disk));
        match Manifest::newest(&folder)? {
            Some(generation) => verify(&folder, &Manifest::read(&folder, generation)?),
            None => Snapshot::open(&folder).map(|_| Vec::new()),
        }
    }
}

impl Snapshot {
    pub(crate) fn check_range(&self, ids: &Range<u64>) -> Result<()> {
        if ids.start > ids.end || ids.end > self.manifest.entries {
            return Err(Error::Argument(format!(
                "expected ids within 0 .. {}, found {} .. {}",
                self.manifest.entries, ids.start, ids.end
            )));
        }
        Ok(())
    }

    /// Values of ids; all ones for ids that do not exist.
    pub(crate) fn values_of(&self, ids: &[i64]) -> Result<Values> {
        let mut out = Values::with_capacity(self.manifest.values, ids.len());
        let mut last: Option<(Range<u64>, ValueRows)> = None;
        for &id in ids {
            let id = u64::try_from(id).unwrap_or(u64::MAX);
            if !last.as_ref().is_some_and(|(range, _)| range.contains(&id)) {
                last = match self.segment_of(id) {
                    Some(s) => Some((s.first_id..s.first_id + s.entries, s.values()?)),
                    None => {
                        out.push(None);
                        continue;
                    }
                };
            }
            if let Some((range, rows)) = &last {
                out.push(Some(rows.get((id - range.start) as usize)));
            }
        }
        Ok(out)
    }
}

/// Why raw keys are missing, and what to do.
pub(crate) fn keys_not_kept(snapshot: &Snapshot, what: &str) -> Error {
    Error::State(format!(
        "{what}: expected raw keys of all {} entries, found a store built with keep_keys=None, which dropped them; create it with keep_keys=\"float16\" or \"float32\"",
        snapshot.manifest.entries
    ))
}

fn parse_attributes(text: &str) -> Result<Box<RawValue>> {
    RawValue::from_string(text.to_owned()).map_err(|e| Error::Argument(format!("attributes: expected JSON, found {e}")))
}
