//! The one layer through which a store is written: create, write, fsync, rename, remove, lock.
//!
//! [`Files`] is what the operating system does; a test replaces it with one that fails at its n-th operation.
//! [`Folder`] adds names and error messages; nothing else in this crate changes a file.

use crate::error::Action;
use crate::{Error, Result};
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Ending of a file that is still being written. Nothing ever reads one; the next writer removes them.
pub const TEMPORARY: &str = ".tmp";

/// A file being written from its start to its end.
pub trait NewFile: Send {
    /// Appends all bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Forces what was written to the disk.
    fn sync(&mut self) -> io::Result<()>;
}

/// The operations that change a disk.
pub trait Files: Send + Sync + std::fmt::Debug {
    /// Creates a folder and its parents; no error if it is there.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Creates an empty file, in place of one of the same name; a link there is replaced, not followed.
    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>>;
    /// Renames a file, in place of one that has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Forces the names in a folder to the disk.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder and all in it; links in it are removed and not followed.
    fn remove_tree(&self, path: &Path) -> io::Result<()>;
    /// Takes the lock on a file, creating it if needed; none if another holds it. Held until the file is closed.
    fn lock(&self, path: &Path) -> io::Result<Option<File>>;
}

/// The real disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl NewFile for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Files for Disk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        let new = || File::options().write(true).create_new(true).open(path);
        let file = match new() {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(path)?;
                new()?
            }
            other => other?,
        };
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        // Windows cannot open a folder as a file; its rename is already ordered by the journal.
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<File>> {
        let file = match std::fs::symlink_metadata(path) {
            Ok(there) if !there.is_file() => {
                return Err(io::Error::other("expected a file, found a link, folder or device; remove it"));
            }
            Ok(_) => File::options().read(true).write(true).open(path)?,
            // Made anew where nothing is: a link that was put there meanwhile is not followed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let made = File::options().read(true).write(true).create_new(true).open(path);
                let taken = |e: &io::Error| e.kind() == io::ErrorKind::AlreadyExists;
                match made {
                    Err(e) if taken(&e) => return self.lock(path), // by a writer that was quicker
                    other => other?,
                }
            }
            Err(e) => return Err(e),
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The folder of a store.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    pub(super) files: Arc<dyn Files>,
}

/// A file being written, with its path for error messages.
pub struct OutputFile {
    path: PathBuf,
    file: Box<dyn NewFile>,
}

impl std::fmt::Debug for OutputFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OutputFile({})", self.path.display())
    }
}

impl OutputFile {
    /// Appends all bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write(bytes).map_err(|e| Error::io(&self.path, Action::Write, e))
    }

    /// Forces what was written to the disk.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync().map_err(|e| Error::io(&self.path, Action::Flush, e))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Folder {
    /// A folder through a file layer.
    pub fn new(path: &Path, files: Arc<dyn Files>) -> Folder {
        Folder { path: path.to_path_buf(), files }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of a file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Creates the folder; no error if it is there.
    pub fn create_dir(&self) -> Result<()> {
        self.files.create_dir(&self.path).map_err(|e| Error::io(&self.path, Action::CreateFolder, e))
    }

    /// Starts the file `name`.
    pub fn create(&self, name: &str) -> Result<OutputFile> {
        let path = self.join(name);
        let file = self.files.create(&path).map_err(|e| Error::io(&path, Action::Create, e))?;
        Ok(OutputFile { path, file })
    }

    /// Renames a file of the folder.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        let to = self.join(to);
        self.files.rename(&self.join(from), &to).map_err(|e| Error::io(&to, Action::Rename, e))
    }

    /// Takes a file of another folder on the same disk, under a name of this one.
    pub fn adopt(&self, from: &Path, to: &str) -> Result<()> {
        let to = self.join(to);
        self.files.rename(from, &to).map_err(|e| Error::io(&to, Action::Rename, e))
    }

    /// Forces the names in the folder to the disk.
    pub fn sync(&self) -> Result<()> {
        self.files.sync_dir(&self.path).map_err(|e| Error::io(&self.path, Action::FlushFolder, e))
    }

    /// Forces the folder's own name to the disk.
    pub fn sync_parent(&self) -> Result<()> {
        let absolute = std::path::absolute(&self.path).map_err(|e| Error::io(&self.path, Action::FindParent, e))?;
        match absolute.parent() {
            Some(parent) => self.files.sync_dir(parent).map_err(|e| Error::io(parent, Action::FlushFolder, e)),
            None => Ok(()),
        }
    }

    /// Removes a file of the folder.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.join(name);
        self.files.remove(&path).map_err(|e| Error::io(&path, Action::Remove, e))
    }

    /// Removes a folder of the folder and all in it, one file of it first.
    pub fn remove_tree(&self, name: &str, first: &str) -> Result<()> {
        let path = self.join(name);
        let first = path.join(first);
        match self.files.remove(&first) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(&first, Action::Remove, e)),
            _ => (),
        }
        self.files.remove_tree(&path).map_err(|e| Error::io(&path, Action::RemoveFolder, e))
    }

    /// Names of the files in the folder that are UTF-8 (ours are ASCII).
    pub fn names(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.path).map_err(|e| Error::io(&self.path, Action::List, e))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(&self.path, Action::List, e))?;
            names.extend(entry.file_name().into_string());
        }
        Ok(names)
    }
}
