//! The writer's lock, and whether the folder that it was taken in is still where it was: a store is replaced as a whole by
//! renaming folders, while a lock stays with its file.

use super::files::Folder;
use crate::error::{Action, Why};
use crate::{Error, Result};
use std::fs::{File, Metadata};

/// Name of the lock file; it stays, empty, for ever.
pub const LOCK: &str = "lock";

/// The lock of a store, given back when dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    /// A forked child shares the lock, but must not give it back; nor keep it when the parent does.
    process: u32,
}

impl Lock {
    /// For a file that this process has locked.
    pub(crate) fn of(file: File) -> Lock {
        Lock { file, process: std::process::id() }
    }

    /// Whether the folder that it was taken in is still the one at that path.
    pub(crate) fn is_of(&self, folder: &Folder) -> bool {
        // A missing folder has no identity; where none is told, all are taken for the same.
        match (self.file.metadata().ok().as_ref().and_then(FolderId::of), FolderId::at(folder)) {
            (Some(own), there) => there == Some(own),
            (None, _) => true,
        }
    }

    /// The same, for who is about to publish.
    ///
    /// # Errors
    /// `State` if the folder was replaced or removed.
    pub(crate) fn check(&self, folder: &Folder) -> Result<()> {
        if self.is_of(folder) {
            return Ok(());
        }
        Err(Error::state(
            Why::Replaced,
            format!(
                "{}: expected the folder that this writer has locked, found that it was replaced or removed meanwhile; nothing more was written: open the store again, and add again what was not committed",
                folder.path().display()
            ),
        ))
    }
}

impl Folder {
    /// Takes the writer's lock.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.join(LOCK);
        let lock = self.files.lock(&path).map_err(|e| Error::io(&path, Action::Lock, e))?;
        lock.map(Lock::of).ok_or_else(|| {
            Error::state(Why::Locked, format!(
                "{}: another writer holds this store, expected none; wait until it has committed or closed, then try again (reading and searching need no lock)",
                self.path().display()
            ))
        })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            let _ = self.file.unlock();
        }
    }
}

/// Which lock file lies in a folder: another one where the folder was replaced. Its content never changes, so its time is
/// that of its creation, which tells it from one that was given the number of a removed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolderId {
    device: u64,
    inode: u64,
    time: (i64, i64),
}

impl FolderId {
    /// Of the lock file of a folder; none if it has none, or the system does not tell.
    pub(crate) fn at(folder: &Folder) -> Option<FolderId> {
        std::fs::metadata(folder.join(LOCK)).ok().as_ref().and_then(FolderId::of)
    }

    #[cfg(unix)]
    fn of(metadata: &Metadata) -> Option<FolderId> {
        use std::os::unix::fs::MetadataExt;
        Some(FolderId {
            device: metadata.dev(),
            inode: metadata.ino(),
            time: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }

    /// Windows renames no folder that has open files.
    #[cfg(not(unix))]
    fn of(_: &Metadata) -> Option<FolderId> {
        None
    }
}
