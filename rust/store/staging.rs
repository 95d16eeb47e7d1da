//! Folders of a store for long work that waits to become a generation: no manifest names them, and an interrupted work
//! leaves them behind, with keys and codes of text that may be deleted since.

use super::datastore::Datastore;
use super::manifest::Manifest;
use crate::{Error, Result};

/// What a re-training stages, `knnlm/retrain.py`: of one generation, without a meaning for any other.
pub(crate) const RETRAINING: &str = "retraining";
/// What an interrupted build from text stages, `knnlm/one_pass.py`: it goes on in a store that it alone adds to.
pub(crate) const PARTS: &str = "parts";
/// What is staged counts while this is there.
const PLAN: &str = "plan.json";

impl Manifest {
    /// Whether anything was ever deleted.
    fn has_lost_text(&self) -> bool {
        self.deleted.is_some() || self.live() < self.entries
    }
}

impl Datastore {
    /// Removes what may hold deleted text, and a re-training for a generation that is no more; under the lock, once
    /// `published` or not is known. Links are removed and not followed.
    ///
    /// # Errors
    /// `Io` for what cannot be removed, `State` for a link in place of a folder.
    pub(crate) fn remove_staged(&self, published: bool) -> Result<()> {
        let lost = self.snapshot().manifest.has_lost_text();
        let mut removed = false;
        for (name, useless) in [(RETRAINING, published || lost), (PARTS, lost)] {
            let path = self.folder.join(name);
            let kind = match std::fs::symlink_metadata(&path) {
                Ok(metadata) if useless => metadata.file_type(),
                _ => continue,
            };
            if kind.is_symlink() {
                return Err(Error::State(format!(
                    "{}: expected a folder, found a link: deleted text may be where it points to; remove both and compact again (the store is compacted)",
                    path.display()
                )));
            }
            if kind.is_dir() {
                self.folder.remove_tree(name, PLAN)?;
                removed = true;
            }
        }
        if removed { self.folder.sync() } else { Ok(()) }
    }
}
