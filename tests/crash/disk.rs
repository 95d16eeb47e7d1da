//! A file layer that says what it does and dies in the middle of an operation.

use knnlm::store::files::{Disk, Files, NewFile};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What an operation did: its kind and the kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Phase(u8, u8);

const KINDS: [&str; 9] = ["before", "lock", "folder", "create", "write", "fsync", "rename", "fsync folder", "remove"];
const FILES: [&str; 8] = ["", "data", "codebook", "lists", "deleted", "manifest", "spill", "lock"];

impl Phase {
    /// Nothing was done yet.
    pub const BEFORE: Phase = Phase(0, 0);

    fn of(kind: &str, path: &Path) -> Phase {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let file = FILES.iter().skip(1).position(|f| name.starts_with(f)).map_or(0, |i| i + 1);
        let spill = ["values", "documents", "text"].iter().any(|f| name.starts_with(f));
        let kind = KINDS.iter().position(|k| *k == kind).unwrap_or(0);
        Phase(
            kind as u8,
            if kind == 7 {
                0
            } else if spill {
                6
            } else {
                file as u8
            },
        )
    }

    /// From a child's line.
    pub fn parse(line: &str) -> Option<Phase> {
        let mut numbers = line.strip_prefix("op ")?.split(' ');
        let kind: u8 = numbers.next()?.parse().ok()?;
        let file: u8 = numbers.next()?.parse().ok()?;
        (usize::from(kind) < KINDS.len() && usize::from(file) < FILES.len()).then_some(Phase(kind, file))
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", KINDS[usize::from(self.0)], FILES[usize::from(self.1)])
    }
}

/// The real disk until operation number `failpoint`, which is half done when the process dies.
#[derive(Clone, Debug)]
pub struct CrashDisk {
    done: Arc<AtomicU64>,
    failpoint: u64,
}

impl CrashDisk {
    /// Dies at `failpoint`.
    pub fn new(failpoint: u64) -> CrashDisk {
        CrashDisk { done: Arc::new(AtomicU64::new(0)), failpoint }
    }

    /// Says what comes; whether to die in it.
    fn begin(&self, kind: &str, path: &Path) -> bool {
        let Phase(kind, file) = Phase::of(kind, path);
        let mut out = io::stdout().lock();
        // The parent may be gone: then nobody needs to know.
        let _ = writeln!(out, "op {kind} {file}");
        let _ = out.flush();
        self.done.fetch_add(1, Ordering::Relaxed) == self.failpoint
    }

    fn run<T>(&self, kind: &str, path: &Path, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.begin(kind, path) {
            std::process::abort();
        }
        act()
    }
}

struct CrashFile {
    disk: CrashDisk,
    path: std::path::PathBuf,
    file: Box<dyn NewFile>,
}

impl NewFile for CrashFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.disk.begin("write", &self.path) {
            let _ = self.file.write(&bytes[..bytes.len() / 2]);
            std::process::abort();
        }
        self.file.write(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.disk.begin("fsync", &self.path) {
            std::process::abort();
        }
        self.file.sync()
    }
}

impl Files for CrashDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.run("folder", path, || Disk.create_dir(path))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        let file = self.run("create", path, || Disk.create(path))?;
        Ok(Box::new(CrashFile { disk: self.clone(), path: path.to_path_buf(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run("rename", to, || Disk.rename(from, to))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.run("fsync folder", path, || Disk.sync_dir(path))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.run("remove", path, || Disk.remove(path))
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.run("remove", path, || Disk.remove_tree(path))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<File>> {
        self.run("lock", path, || Disk.lock(path))
    }
}
