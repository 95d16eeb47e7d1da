//! Every way an operation can fail: what was expected, what was found, what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Action of opening a store as a whole, where a missing folder is a wrong path and not a lost file.
pub(crate) const OPEN_STORE: &str = "open store";

/// Action of making new and removed names stay, after which a change holds.
pub(crate) const FLUSH_FOLDER: &str = "flush folder to disk";

/// Actions of removing what the store no longer names begin so: the change that replaced it is published before.
pub(crate) const REMOVE: &str = "remove";

fn advice(action: &str, kind: io::ErrorKind) -> &'static str {
    use io::ErrorKind::*;
    match kind {
        _ if action.starts_with(REMOVE) => {
            "; expected to remove what the store no longer needs, deleted text may be in it: the store itself is as asked for; compact again once it can be removed"
        }
        _ if action == FLUSH_FOLDER => {
            "; expected what was written to stay after a loss of power: see to the disk, open the store again, and look whether the change was made"
        }
        NotFound if action == OPEN_STORE => "; expected the folder of a store: check the path, or create a store there",
        NotFound => "; expected it there: check the path, or restore the file from a copy",
        PermissionDenied => {
            "; expected permission: change the rights of the folder, or choose another one; nothing was changed"
        }
        ReadOnlyFilesystem => {
            "; expected a disk that can be written: mount it for writing, or choose a place on another one; nothing was changed (searching works)"
        }
        StorageFull | QuotaExceeded => "; free space and do it again: the last generation of the store is whole",
        AlreadyExists | NotADirectory => "; expected a folder or nothing, found a file: choose another path",
        _ => "",
    }
}

/// Error of this crate. Messages carry the numbers; the variant decides the Python exception.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A caller's argument is wrong. Python: `ValueError`.
    #[error("{0}")]
    Argument(String),
    /// The store is not in a state that allows the operation (keys not kept, a second writer …). Python: `knnlm.StoreError`.
    #[error("{0}")]
    State(String),
    /// A file is damaged, truncated, newer than this program or not ours. Python: `knnlm.FormatError`.
    #[error("{}: {message}", path.display())]
    Format {
        /// File at fault.
        path: PathBuf,
        /// Expected, found, what to do.
        message: String,
    },
    /// The operating system refused. Python: the matching `OSError` subclass.
    #[error("{}: {action}: {source}{}", path.display(), advice(action, source.kind()))]
    Io {
        /// File or folder at fault.
        path: PathBuf,
        /// What was being done, for instance "write".
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The caller asked to stop (Ctrl-C). Python: the pending `KeyboardInterrupt`.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// The system's refusal of `action` on `path`.
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Error {
        Error::Io { path: path.to_path_buf(), action, source }
    }

    /// What to do about a refusal of the operating system, to be appended to its message; empty where nobody can tell.
    pub fn advice(&self) -> &'static str {
        match self {
            Error::Io { action, source, .. } => advice(action, source.kind()),
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
