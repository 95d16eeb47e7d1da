//! Folders of a store for long work that waits to become a generation: no manifest names them, and an interrupted work
//! leaves them behind, with keys and codes of text that may be deleted since.

use crate::error::Why;
use crate::store::format::files::Folder;
use crate::store::format::manifest::Manifest;
use crate::{Error, Result};

/// What a re-training stages, `knnlm/build/retrain.py`: of one generation, without a meaning for any other.
pub(crate) const RETRAINING: &str = "retraining";
/// What an interrupted build from text stages, `knnlm/build/one_pass.py`: it goes on in a store that it alone adds to.
pub(crate) const PARTS: &str = "parts";
/// What is staged counts while this is there.
const PLAN: &str = "plan.json";

impl Manifest {
    /// Whether anything was ever deleted.
    pub(crate) fn has_lost_text(&self) -> bool {
        self.deleted.is_some() || self.live() < self.entries
    }
}

/// Removes folders of unfinished work, under the lock.
///
/// # Errors
/// `Io` for what cannot be removed, `State` for a link in place of a folder.
pub(crate) fn remove(folder: &Folder, names: impl IntoIterator<Item = &'static str>) -> Result<()> {
    let mut removed = false;
    for name in names {
        let path = folder.join(name);
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        if metadata.is_symlink() {
            return Err(Error::state(
                Why::Link,
                format!(
                    "{}: expected a folder, found a link: deleted text may be where it points to; remove both and compact (the store itself is written)",
                    path.display()
                ),
            ));
        }
        if metadata.is_dir() {
            folder.remove_tree(name, PLAN)?;
            removed = true;
        }
    }
    if removed { folder.sync() } else { Ok(()) }
}
