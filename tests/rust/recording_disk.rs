//! A file layer that writes down what it does, and disks that lost power at any moment of that.
//!
//! What an `fsync` has not forced may be there or not, in any combination: bytes of a file (holes read as zeros, the last
//! write may be torn) and names in a folder.

use knnlm::store::files::{Disk, Files, NewFile};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// An operation on a folder of files.
#[derive(Clone, Debug)]
pub enum Operation {
    /// A new empty file.
    Create(String, usize),
    /// A file of somebody else that is on the disk.
    Found(String, usize, Vec<u8>),
    /// Bytes at the end of a file.
    Write(usize, Vec<u8>),
    /// A file forced to the disk.
    Sync(usize),
    /// A new name.
    Rename(String, String),
    /// A name less.
    Remove(String),
    /// Names forced to the disk.
    SyncFolder,
}

/// The real disk, with a log.
#[derive(Clone, Debug, Default)]
pub struct RecordingDisk {
    log: Arc<Mutex<Vec<Operation>>>,
    files: Arc<Mutex<usize>>,
}

impl RecordingDisk {
    /// What was done so far.
    pub fn log(&self) -> Vec<Operation> {
        self.log.lock().expect("log").clone()
    }

    /// Number of operations so far.
    pub fn len(&self) -> usize {
        self.log.lock().expect("log").len()
    }

    /// A file that somebody else wrote and forced, in a folder whose names are forced, too: it is on the disk.
    pub fn found(&self, name: &str, bytes: &[u8]) {
        let mut files = self.files.lock().expect("count");
        let number = *files;
        *files += 1;
        self.note(Operation::Found(name.to_owned(), number, bytes.to_vec()));
    }

    fn note(&self, operation: Operation) {
        self.log.lock().expect("log").push(operation);
    }
}

struct RecordingFile {
    disk: RecordingDisk,
    number: usize,
    file: Box<dyn NewFile>,
}

impl NewFile for RecordingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.note(Operation::Write(self.number, bytes.to_vec()));
        self.file.write(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.note(Operation::Sync(self.number));
        self.file.sync()
    }
}

fn name(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

impl Files for RecordingDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        Disk.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        let mut files = self.files.lock().expect("count");
        let number = *files;
        *files += 1;
        self.note(Operation::Create(name(path), number));
        Ok(Box::new(RecordingFile { disk: self.clone(), number, file: Disk.create(path)? }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note(Operation::Rename(name(from), name(to)));
        Disk.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        // The folder above the store is synced as well; only the store's own names are followed here.
        if path.join("lock").exists() {
            self.note(Operation::SyncFolder);
        }
        Disk.sync_dir(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.note(Operation::Remove(name(path)));
        Disk.remove(path)
    }

    // Only the files of the store itself are followed.
    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        Disk.remove_tree(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<File>> {
        Disk.lock(path)
    }
}

/// What the disk made of what was not forced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of it is lost.
    Everything,
    /// Nothing is lost.
    Nothing,
    /// Each write and each name is lost or kept by chance; the last write of a file may be torn.
    Chance,
    /// Names are kept, bytes are lost: what a file system does that orders neither.
    Bytes,
}

/// A name that goes and a name that comes, with its file.
type Change = (Option<String>, Option<(String, usize)>);

/// The files that a disk has after `log`, when the power goes.
pub fn after_power_loss(log: &[Operation], loss: Loss, rng: &mut ChaCha8Rng) -> BTreeMap<String, Vec<u8>> {
    let mut writes: BTreeMap<usize, Vec<(Vec<u8>, bool)>> = BTreeMap::new(); // bytes, forced
    let mut names: BTreeMap<String, usize> = BTreeMap::new(); // as programs see them
    let mut forced: BTreeMap<String, usize> = BTreeMap::new(); // as the disk has them
    let mut waiting: Vec<Change> = Vec::new();
    for operation in log {
        match operation {
            Operation::Create(name, file) => {
                writes.insert(*file, Vec::new());
                names.insert(name.clone(), *file);
                waiting.push((None, Some((name.clone(), *file))));
            }
            Operation::Found(name, file, bytes) => {
                writes.insert(*file, vec![(bytes.clone(), true)]);
                names.insert(name.clone(), *file);
                forced.insert(name.clone(), *file);
            }
            Operation::Write(file, bytes) => writes.entry(*file).or_default().push((bytes.clone(), false)),
            Operation::Sync(file) => writes.entry(*file).or_default().iter_mut().for_each(|w| w.1 = true),
            Operation::Rename(from, to) => {
                let file = names.remove(from).expect("a file to rename");
                names.insert(to.clone(), file);
                waiting.push((Some(from.clone()), Some((to.clone(), file))));
            }
            Operation::Remove(name) => {
                names.remove(name);
                waiting.push((Some(name.clone()), None));
            }
            Operation::SyncFolder => {
                forced.clone_from(&names);
                waiting.clear();
            }
        }
    }
    let mut chance = |of: u32| rng.next_u32().is_multiple_of(of);
    for (goes, comes) in waiting {
        let kept = match loss {
            Loss::Everything => false,
            Loss::Nothing | Loss::Bytes => true,
            Loss::Chance => chance(2),
        };
        if kept {
            forced.retain(|name, _| goes.as_ref() != Some(name));
            forced.extend(comes);
        }
    }
    forced
        .into_iter()
        .map(|(name, file)| {
            let mut bytes: Vec<u8> = Vec::new();
            let mut lost = 0;
            for (written, is_forced) in &writes[&file] {
                let kept = *is_forced
                    || match loss {
                        Loss::Everything | Loss::Bytes => false,
                        Loss::Nothing => true,
                        Loss::Chance => chance(2),
                    };
                if kept {
                    bytes.resize(bytes.len() + lost, 0);
                    lost = 0;
                    let torn = !is_forced && loss == Loss::Chance && chance(3);
                    bytes.extend(if torn { &written[..written.len() / 2] } else { written });
                } else {
                    lost += written.len();
                }
            }
            (name, bytes)
        })
        .collect()
}
