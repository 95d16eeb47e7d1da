//! A file layer that fails at its n-th operation, and goes on failing as a full disk does.

use knnlm::store::files::{Disk, Files, NewFile};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// ENOSPC; a write leaves nothing behind.
    Full,
    /// EACCES.
    Denied,
    /// EROFS.
    ReadOnly,
    /// EIO; a write leaves its first half behind.
    Torn,
}

/// The real disk up to an operation.
#[derive(Clone, Debug)]
pub struct FailingDisk {
    left: Arc<AtomicU64>,
    failure: Failure,
    /// Whether operations after the failing one work again.
    once: bool,
}

impl FailingDisk {
    /// Lets `operations` operations pass.
    pub fn new(operations: u64, failure: Failure, once: bool) -> FailingDisk {
        FailingDisk { left: Arc::new(AtomicU64::new(operations)), failure, once }
    }

    /// Lets so many more pass.
    pub fn fail_after(&self, operations: u64) {
        self.left.store(operations, Ordering::Relaxed);
    }

    /// Whether the failing operation has come.
    pub fn has_failed(&self) -> bool {
        self.left.load(Ordering::Relaxed) > u64::MAX / 2
    }

    fn pass(&self) -> io::Result<()> {
        let before = self.left.fetch_sub(1, Ordering::Relaxed);
        if before == 0 || (before > u64::MAX / 2 && !self.once) { Err(self.error()) } else { Ok(()) }
    }

    fn error(&self) -> io::Error {
        io::Error::from_raw_os_error(match self.failure {
            Failure::Full => 28,
            Failure::Denied => 13,
            Failure::ReadOnly => 30,
            Failure::Torn => 5,
        })
    }
}

struct FailingFile {
    disk: FailingDisk,
    file: Box<dyn NewFile>,
}

impl NewFile for FailingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(e) = self.disk.pass() {
            if self.disk.failure == Failure::Torn {
                self.file.write(&bytes[..bytes.len() / 2])?;
            }
            return Err(e);
        }
        self.file.write(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.pass()?;
        self.file.sync()
    }
}

impl Files for FailingDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        Disk.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        self.pass()?;
        Ok(Box::new(FailingFile { disk: self.clone(), file: Disk.create(path)? }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass()?;
        Disk.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        Disk.sync_dir(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        Disk.remove(path)
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        Disk.remove_tree(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<File>> {
        self.pass()?;
        Disk.lock(path)
    }
}
