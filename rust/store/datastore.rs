//! A store on disk: create, open, add, commit, and what readers ask of entries and documents.
//!
//! All methods take `&self`. Readers work on a [`Snapshot`], which writers never change; a writer holds the lock of the
//! folder from its first `add` until `commit` or `discard`.

use super::collect::collect;
use super::files::{Disk, Files, Folder};
use super::lock::{LOCK, Lock, Place};
use super::manifest::{KeyType, MAX_DIM, Manifest, ValueType, next_generation};
use super::names::is_temporary;
use super::notices::Notices;
use super::snapshot::{Loaded, Snapshot};
use super::staging::{self, PARTS, RETRAINING};
use super::values::ValueRows;
use super::verify::{Problem, verify};
use super::writer::Writer;
use crate::error::Why;
use crate::index::Progress;
use crate::keys::KeyRows;
use crate::{Error, Metric, Result};
use arc_swap::ArcSwap;
use serde_json::value::RawValue;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

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

/// A writer with the lock that it holds.
#[derive(Debug)]
pub(crate) struct Writing {
    writer: Writer,
    lock: Arc<Lock>,
}

/// A store on disk.
#[derive(Debug)]
pub struct Datastore {
    pub(crate) folder: Folder,
    snapshot: ArcSwap<Snapshot>,
    /// Whether segment files are read into memory instead of mapped.
    resident: bool,
    /// The process that opened it. A forked child may read, but what is being written belongs to its parent.
    process: u32,
    writing: Mutex<Option<Writing>>,
    held: Mutex<Weak<Lock>>,
    pub(crate) notices: Notices,
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
        let foreign = folder.names()?.into_iter().find(|name| name != LOCK && !is_temporary(name));
        if let (None, Some(name)) = (Manifest::newest(&folder)?, foreign) {
            return Err(Error::state(
                Why::Exists,
                format!(
                    "{}: expected an empty folder or a store, found {name:?}; choose another folder (other files are never removed)",
                    path.display()
                ),
            ));
        }
        let lock = folder.lock()?;
        let newest = Manifest::newest(&folder)?;
        if newest.is_some() && !options.overwrite {
            return Err(Error::state(
                Why::Exists,
                format!("{}: expected no store, found one; open it, or overwrite it", path.display()),
            ));
        }
        lock.check(&folder)?;
        // Replacing a store is a new generation that names none of the old files: as atomic as any other.
        let generation = newest.map_or(Ok(1), |newest| next_generation(&folder, newest))?;
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
            deleted: None,
            fit: None,
            encode: false,
            calibration: None,
            attributes,
        };
        manifest.publish(&folder)?;
        folder.sync_parent()?;
        let _ = collect(&folder, &manifest);
        staging::remove(&folder, [RETRAINING, PARTS])?; // of the store that was
        drop(lock);
        Datastore::of(folder, false)
    }

    /// Opens a store; reads nothing that grows with the number of entries.
    ///
    /// # Errors
    /// `Format` for damaged, missing or newer files; `Io`.
    pub fn open(path: &Path) -> Result<Datastore> {
        Datastore::open_through(path, Arc::new(Disk))
    }

    /// Opens a store and reads all of it into memory of its own, checked on the way: no page is taken out of memory while it
    /// is not used, no other process can change or truncate what is searched, and the system may back it with huge pages.
    ///
    /// # Errors
    /// As [`Self::open`]; `Damaged` for bytes that are not those that were written; `State` without so much memory.
    pub fn open_resident(path: &Path) -> Result<Datastore> {
        Datastore::of(Folder::new(path, Arc::new(Disk)), true)
    }

    /// [`Self::open`] through another file layer.
    pub fn open_through(path: &Path, files: Arc<dyn Files>) -> Result<Datastore> {
        Datastore::of(Folder::new(path, files), false)
    }

    fn of(folder: Folder, resident: bool) -> Result<Datastore> {
        let loaded = resident.then_some(Loaded { before: None });
        let snapshot = ArcSwap::from_pointee(Snapshot::open_as(&folder, loaded)?);
        Ok(Datastore {
            folder,
            snapshot,
            resident,
            process: std::process::id(),
            writing: Mutex::new(None),
            held: Mutex::default(),
            notices: Notices::default(),
        })
    }

    /// The generation that readers see.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Whether it was read into memory.
    pub fn is_resident(&self) -> bool {
        self.resident
    }

    /// Switches to the newest generation on disk.
    pub fn refresh(&self) -> Result<()> {
        let before = self.snapshot();
        let loaded = self.resident.then_some(Loaded { before: Some(&before) });
        self.snapshot.store(Arc::new(Snapshot::open_as(&self.folder, loaded)?));
        Ok(())
    }

    /// Refuses to write in a forked child: locks may be held by threads that it does not have, and the writer's lock is the
    /// parent's.
    fn check_process(&self) -> Result<()> {
        let own = std::process::id();
        if self.process == own {
            return Ok(());
        }
        Err(Error::state(
            Why::Forked,
            format!(
                "{}: expected to write from process {}, which opened the store, found its forked child {own}; open it again in this process",
                self.path().display(),
                self.process
            ),
        ))
    }

    pub(crate) fn writing(&self) -> Result<MutexGuard<'_, Option<Writing>>> {
        self.check_process()?;
        Ok(self.writing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The lock that [`Self::hold`] took with this object, as long as it is held.
    pub(crate) fn held(&self) -> MutexGuard<'_, Weak<Lock>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock, or shares the one that this object holds, moves to the newest generation, removes what earlier
    /// writers left.
    ///
    /// # Errors
    /// `State` if another writer holds the store, or another store is in its place; `Format` for damaged files; `Io`.
    pub(crate) fn begin(&self) -> Result<Arc<Lock>> {
        let held = self.held().upgrade();
        let lock = held.map_or_else(|| self.folder.lock().map(Arc::new), Ok)?;
        lock.check(&self.folder)?;
        let (own, newest) = (self.snapshot(), Manifest::newest(&self.folder)?);
        let newest = newest.map(|generation| Manifest::read(&self.folder, generation)).transpose()?;
        if newest.as_ref().is_none_or(|newest| !newest.same(&own.manifest)) {
            let moved = own.place.is_some_and(|place| Place::at(&self.folder) != Some(place));
            // One store counts its generations up.
            if newest.is_some_and(|newest| moved || newest.generation <= own.manifest.generation) {
                return Err(Error::state(
                    Why::Replaced,
                    format!(
                        "{}: expected generation {} of the store that was opened or a later one, found another store in its place; nothing was written: open it again",
                        self.path().display(),
                        own.manifest.generation
                    ),
                ));
            }
            self.refresh()?;
        }
        self.sweep(&lock);
        Ok(lock)
    }

    /// Removes what the generation of this object does not name, if the folder is still its own.
    pub(crate) fn sweep(&self, lock: &Lock) {
        if lock.is_of(&self.folder) {
            let _ = collect(&self.folder, &self.snapshot().manifest);
        }
    }

    /// After an error while publishing: on disk either generation may be the newest if the very last step failed. Looks,
    /// and removes what the other one left.
    pub(crate) fn recover(&self, lock: &Lock) {
        if lock.is_of(&self.folder) {
            let _ = self.refresh();
        }
        self.sweep(lock);
    }

    /// After a manifest was published: switches to it and removes what it does not name.
    pub(crate) fn switch(&self, manifest: Manifest) -> Result<()> {
        let before = self.snapshot();
        let loaded = self.resident.then_some(Loaded { before: Some(&before) });
        let snapshot = Arc::new(Snapshot::of_as(&self.folder, manifest, loaded)?);
        self.snapshot.store(snapshot.clone());
        drop(before); // Windows removes no file that is mapped
        let _ = collect(&self.folder, &snapshot.manifest);
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
        self.write(|writer| writer.add(keys, values, document, metadata))
    }

    /// Does something with the writer, which is started, and takes the lock, if there is none.
    pub(crate) fn write<T>(&self, act: impl FnOnce(&mut Writer) -> Result<T>) -> Result<T> {
        let mut guard = self.writing()?;
        let fresh = guard.is_none();
        let writing = match &mut *guard {
            Some(writing) => writing,
            none => {
                let (lock, base) = (self.begin()?, self.snapshot());
                base.check_anew();
                none.insert(Writing { writer: Writer::start(&self.folder, base, &self.notices)?, lock })
            }
        };
        let outcome = act(&mut writing.writer);
        if fresh && outcome.is_err() && !writing.writer.has_failed() {
            self.abandon(&mut guard); // a refused first batch must not leave the store locked
        }
        outcome
    }

    /// Publishes what was added, less what was superseded, as the next generation; nothing happens if nothing was.
    ///
    /// # Errors
    /// `Io`, after which the store is as at the last commit; `State` if an `add` had failed.
    pub fn commit(&self) -> Result<()> {
        self.commit_held(&mut *self.writing()?)
    }

    pub(crate) fn commit_held(&self, guard: &mut Option<Writing>) -> Result<()> {
        let Some(writing) = guard.as_ref() else { return Ok(()) };
        if writing.writer.has_failed() {
            // Stays until discarded: silence here would hide the loss.
            return Err(writing.writer.failure());
        }
        let Some(Writing { writer, lock }) = guard.take() else { return Ok(()) };
        let committed = lock.check(&self.folder).and_then(|()| writer.commit());
        let outcome = committed.and_then(|manifest| manifest.map_or(Ok(()), |manifest| self.switch(manifest)));
        match outcome {
            Ok(()) => self.sweep(&lock),
            Err(_) => self.recover(&lock),
        }
        outcome
    }

    /// What changes since the last call have left as it was, such as damaged lists that they did not join: nothing is lost by
    /// it, but somebody should see to it.
    pub fn take_notices(&self) -> Vec<Error> {
        self.notices.take()
    }

    /// Forgets what was added or superseded since the last commit.
    pub fn discard(&self) {
        if let Ok(mut guard) = self.writing() {
            self.abandon(&mut guard); // what a forked child did not begin is not its to give up
        }
    }

    fn abandon(&self, guard: &mut Option<Writing>) {
        if let Some(Writing { writer, lock }) = guard.take() {
            drop(writer); // closes its files: Windows removes no open ones
            self.sweep(&lock);
        }
    }

    /// Entries added since the last commit.
    pub fn pending(&self) -> u64 {
        self.writing().ok().and_then(|guard| guard.as_ref().map(|w| w.writer.pending())).unwrap_or(0)
    }

    /// Entries that are committed and not deleted.
    pub fn len(&self) -> u64 {
        self.snapshot().manifest.live()
    }

    /// Id that the next entry gets after what is committed; every id so far is below it.
    pub fn next_id(&self) -> u64 {
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
        self.publish_next(|snapshot| {
            let mut manifest = snapshot.manifest.next(&self.folder)?;
            manifest.attributes = attributes;
            Ok(Some(manifest))
        })
    }

    /// Reads every byte of this generation and lists what is wrong.
    pub fn verify(&self) -> Result<Vec<Problem>> {
        self.verify_unless(&|_, _, _| (), &AtomicBool::new(false))
    }

    /// [`Self::verify`] that reports bytes as stage "verify" and ends with `Interrupted` once `cancel` is set.
    pub fn verify_unless(&self, progress: Progress, cancel: &AtomicBool) -> Result<Vec<Problem>> {
        let snapshot = self.snapshot();
        verify(&self.folder, &snapshot.manifest, Some(&snapshot), progress, cancel)
    }

    /// [`Self::verify`] for a store that may be too damaged to open.
    pub fn verify_path(path: &Path) -> Result<Vec<Problem>> {
        Datastore::verify_path_unless(path, &|_, _, _| (), &AtomicBool::new(false))
    }

    /// [`Self::verify_path`] that reports bytes as stage "verify" and ends with `Interrupted` once `cancel` is set.
    pub fn verify_path_unless(path: &Path, progress: Progress, cancel: &AtomicBool) -> Result<Vec<Problem>> {
        let folder = Folder::new(path, Arc::new(Disk));
        loop {
            // What is opened stays whole, whatever a writer does meanwhile.
            if let Ok(snapshot) = Snapshot::open(&folder) {
                return verify(&folder, &snapshot.manifest, Some(&snapshot), progress, cancel);
            }
            let Some(generation) = Manifest::newest(&folder)? else {
                return Snapshot::open(&folder).map(|_| Vec::new());
            };
            let found = Manifest::read(&folder, generation)
                .and_then(|manifest| verify(&folder, &manifest, None, progress, cancel));
            let sound = found.as_ref().is_ok_and(Vec::is_empty) || matches!(found, Err(Error::Interrupted));
            if sound || Manifest::newest(&folder)? == Some(generation) {
                return found;
            }
        }
    }
}

fn parse_attributes(text: &str) -> Result<Box<RawValue>> {
    RawValue::from_string(text.to_owned()).map_err(|e| Error::Argument(format!("attributes: expected JSON, found {e}")))
}
