//! Every way an operation can fail: what was expected, what was found, what to do.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What the operating system was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Open a store as a whole, where a missing folder is a wrong path and not a lost file.
    OpenStore,
    /// Open a file.
    Open,
    /// Read a file.
    Read,
    /// Look at a file's kind and length.
    Inspect,
    /// Map a file into memory.
    Map,
    /// Read a file into memory of its own.
    Load,
    /// Create a file.
    Create,
    /// Create a folder.
    CreateFolder,
    /// Find the folder that a folder is in.
    FindParent,
    /// List the names in a folder.
    List,
    /// Write to a file.
    Write,
    /// Give a file its name.
    Rename,
    /// Force a file to the disk.
    Flush,
    /// Force new and removed names to the disk, after which a change holds.
    FlushFolder,
    /// Remove what a store no longer names; the change that replaced it is published.
    Remove,
    /// The same of a folder of unfinished work.
    RemoveFolder,
    /// Force the names of removed files to the disk.
    RemoveForGood,
    /// Take the writer's lock.
    Lock,
}

impl Action {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Action::OpenStore => "open store",
            Action::Open => "open",
            Action::Read => "read",
            Action::Inspect => "read length",
            Action::Map => "map into memory",
            Action::Load => "read into memory",
            Action::Create => "create",
            Action::CreateFolder => "create folder",
            Action::FindParent => "find parent of",
            Action::List => "list folder",
            Action::Write => "write",
            Action::Rename => "rename",
            Action::Flush => "flush to disk",
            Action::FlushFolder => "flush folder to disk",
            Action::Remove => "remove",
            Action::RemoveFolder => "remove folder (deleted text may be in it)",
            Action::RemoveForGood => "remove files for good",
            Action::Lock => "lock the store for writing",
        }
    }

    /// What to do about a refusal; empty where nobody can tell.
    fn advice(self, kind: io::ErrorKind) -> &'static str {
        use io::ErrorKind::*;
        match (self, kind) {
            (Action::Remove | Action::RemoveFolder | Action::RemoveForGood, _) => {
                "; expected to remove what the store no longer needs, deleted text may be in it: the store itself is as asked for; compact again once it can be removed"
            }
            (Action::FlushFolder, _) => {
                "; expected what was written to stay after a loss of power: see to the disk, open the store again, and look whether the change was made"
            }
            (Action::OpenStore, NotFound) => {
                "; expected the folder of a store: check the path, or create a store there"
            }
            (_, NotFound) => "; expected it there: check the path, or restore the file from a copy",
            (_, PermissionDenied) => {
                "; expected permission: change the rights of the folder, or choose another one; nothing was changed"
            }
            (_, ReadOnlyFilesystem) => {
                "; expected a disk that can be written: mount it for writing, or choose a place on another one; nothing was changed (searching works)"
            }
            (_, StorageFull | QuotaExceeded) => {
                "; free space and do it again: the last generation of the store is whole"
            }
            (Action::List | Action::OpenStore, NotADirectory) => "; expected a folder, found a file: check the path",
            (_, AlreadyExists | NotADirectory) => "; expected a folder or nothing, found a file: choose another path",
            _ => "",
        }
    }
}

/// Why the state of a store does not allow an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// Raw keys are needed and were not kept.
    KeysNotKept,
    /// An index is needed and there is none.
    NotBuilt,
    /// The recall of its index was never measured.
    NotCalibrated,
    /// The index was measured on a store that has changed much since.
    Outgrown,
    /// Codes of a second level are needed and there are none.
    NoSecondLevel,
    /// A store that encodes what is added is needed.
    NotEncoding,
    /// An empty store is needed.
    NotEmpty,
    /// Another writer holds the store.
    Locked,
    /// Another folder or store is in its place.
    Replaced,
    /// A newer generation is there and the asked one is gone.
    Changed,
    /// Something is there where nothing or a store was expected.
    Exists,
    /// A link is there where a folder was expected.
    Link,
    /// An earlier write failed, so that only giving up is left.
    Failed,
    /// The writing was begun by the process that this one was forked from.
    Forked,
    /// The store was closed.
    Closed,
    /// It would hold more than a store can.
    Full,
    /// The system has too little memory or too few threads.
    Resources,
    /// Calls came out of order, or something broke that should not.
    Broken,
}

/// Error of this crate. Messages carry the numbers; the variant decides the Python exception.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A caller's argument is wrong. Python: `ValueError`.
    #[error("{0}")]
    Argument(String),
    /// The store is not in a state that allows the operation. Python: `knnlm.StoreError`.
    #[error("{message}")]
    State {
        /// The kind of state.
        why: Why,
        /// Expected, found, what to do.
        message: String,
    },
    /// A file is damaged, truncated, newer than this program or not ours. Python: `knnlm.FormatError`.
    #[error("{}: {message}", path.display())]
    Format {
        /// File at fault.
        path: PathBuf,
        /// Expected, found, what to do.
        message: String,
    },
    /// Bytes of a file are not those that were written. Python: `knnlm.FormatError`.
    #[error("{}, section {section}{}: {message}", path.display(), shown(entries))]
    Damaged {
        /// File at fault.
        path: PathBuf,
        /// Name of its section.
        section: String,
        /// Ids of the entries that may be touched (lists: positions in list order), where that can be told.
        entries: Option<Range<u64>>,
        /// Expected, found, what to do.
        message: String,
    },
    /// The operating system refused. Python: the matching `OSError` subclass.
    #[error("{}: {}: {source}{}", path.display(), action.words(), action.advice(source.kind()))]
    Io {
        /// File or folder at fault.
        path: PathBuf,
        /// What was being done.
        action: Action,
        /// The system's error.
        source: io::Error,
    },
    /// The caller asked to stop (Ctrl-C). Python: the pending `KeyboardInterrupt`.
    #[error("interrupted")]
    Interrupted,
}

fn shown(entries: &Option<Range<u64>>) -> String {
    entries.as_ref().map_or(String::new(), |e| format!(", entries {} to {}", e.start, e.end.saturating_sub(1)))
}

/// What to do about a damaged file: over a file that readers have mapped, copying would give them a mixture, or end them.
pub(crate) const RESTORE: &str = "restore it from a copy (put it beside under another name, then rename it)";

impl Error {
    /// The system's refusal of `action` on `path`.
    pub(crate) fn io(path: &Path, action: Action, source: io::Error) -> Error {
        Error::Io { path: path.to_path_buf(), action, source }
    }

    /// A state that does not allow an operation.
    pub(crate) fn state(why: Why, message: impl Into<String>) -> Error {
        Error::State { why, message: message.into() }
    }

    /// What to do about a refusal of the operating system, to be appended to its message; empty where nobody can tell.
    pub fn advice(&self) -> &'static str {
        match self {
            Error::Io { action, source, .. } => action.advice(source.kind()),
            _ => "",
        }
    }

    /// A damaged or foreign file.
    pub(crate) fn format(path: &Path, message: impl Into<String>) -> Error {
        Error::Format { path: path.to_path_buf(), message: message.into() }
    }

    /// Whether a file or folder was not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
