//! A store on disk: create it, open it, and what it is; what it answers and how it changes lies in the files beside.
//!
//! All methods take `&self`. Readers work on a [`Snapshot`], which writers never change; a writer holds the lock of the
//! folder from its first `add` until `commit` or `discard`.

use crate::error::Why;
use crate::store::format::files::{Disk, Files, Folder};
use crate::store::format::lock::{LOCK, Lock};
use crate::store::format::manifest::{MAX_DIM, Manifest, next_generation};
use crate::store::format::names::is_temporary;
use crate::store::format::records::{KeyType, ValueType};
use crate::store::read::snapshot::{Loaded, Snapshot};
use crate::store::write::collect::collect;
use crate::store::write::notices::Notices;
use crate::store::write::staging::{self, PARTS, RETRAINING};
use crate::store::write::writer::Writer;
use crate::{Error, Metric, Result};
use arc_swap::ArcSwap;
use serde_json::value::RawValue;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

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

impl Options {
    /// A store of keys of dimension `dim` with 32-bit values, which keeps codes and no raw keys.
    pub fn new(dim: usize, metric: Metric) -> Options {
        Options {
            dim,
            metric,
            keep_keys: None,
            values: ValueType::default(),
            max_value: None,
            attributes: None,
            overwrite: false,
        }
    }
}

/// A writer with the lock that it holds.
#[derive(Debug)]
pub(crate) struct Writing {
    pub(super) writer: Writer,
    pub(super) lock: Arc<Lock>,
}

/// A store on disk.
#[derive(Debug)]
pub struct Datastore {
    pub(crate) folder: Folder,
    pub(super) snapshot: ArcSwap<Snapshot>,
    /// Whether segment files are read into memory instead of mapped.
    pub(super) resident: bool,
    /// The process that opened it. A forked child may read, but what is being written belongs to its parent.
    pub(super) process: u32,
    pub(super) writing: Mutex<Option<Writing>>,
    pub(super) held: Mutex<Weak<Lock>>,
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
    #[doc(hidden)]
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
    #[doc(hidden)]
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
}

/// Attributes as they are remembered.
pub(super) fn parse_attributes(text: &str) -> Result<Box<RawValue>> {
    RawValue::from_string(text.to_owned()).map_err(|e| Error::Argument(format!("attributes: expected JSON, found {e}")))
}
