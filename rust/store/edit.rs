//! Changes of a store other than appending: one generation each, or nothing.

use super::datastore::Datastore;
use super::deleted::Tombstone;
use super::files::Folder;
use super::lock::Lock;
use super::lookup::DocumentKey;
use super::manifest::{DeletedRecord, Manifest};
use super::snapshot::Snapshot;
use crate::{Error, Result};

impl Datastore {
    /// Deletes documents: their entries are in no result from the return of the call on, here; in other processes from
    /// their next `refresh`. Their bytes stay on disk until [`Self::compact`]. What was added before is committed first.
    /// Returns the number of entries deleted.
    ///
    /// # Errors
    /// `Argument` for a document that is not there, with nothing deleted; `State` for a second writer; `Io`.
    pub fn delete(&self, documents: &[DocumentKey]) -> Result<u64> {
        let mut entries = 0;
        self.publish_next(|snapshot| {
            let mut gone: Vec<Tombstone> =
                documents.iter().map(|key| snapshot.tombstone(key)).collect::<Result<_>>()?;
            gone.sort_unstable_by_key(|t| t.record);
            gone.dedup();
            if gone.is_empty() {
                return Ok(None);
            }
            entries = count(&gone);
            let mut manifest = snapshot.manifest.next(&self.folder)?;
            manifest.deleted = Some(snapshot.bury(&self.folder, gone)?);
            Ok(Some(manifest))
        })?;
        Ok(entries)
    }

    /// Has the next commit delete documents, together with what is added before it: in one generation the old document
    /// goes and the new one, which may have its name, is there. [`Self::discard`] takes it back. Returns the number of
    /// entries that will go.
    ///
    /// # Errors
    /// `Argument` for a document that is not there, with nothing superseded; `State` for a second writer; `Io`.
    pub fn supersede(&self, documents: &[DocumentKey]) -> Result<u64> {
        self.write(|writer| writer.supersede(documents))
    }

    /// Commits what was added, takes the lock and publishes the manifest that `next` makes of the newest generation; none
    /// = nothing to do. Whatever fails, the store is at one generation or the other, and this object with it.
    pub(crate) fn publish_next(&self, next: impl FnOnce(&Snapshot) -> Result<Option<Manifest>>) -> Result<()> {
        let mut guard = self.writing()?;
        self.commit_held(&mut guard)?;
        let lock = self.begin()?;
        self.publish_locked(&lock, next)
    }

    /// The same for a caller that holds the lock and has committed.
    pub(crate) fn publish_locked(
        &self,
        lock: &Lock,
        next: impl FnOnce(&Snapshot) -> Result<Option<Manifest>>,
    ) -> Result<()> {
        let snapshot = self.snapshot();
        snapshot.check_anew();
        let outcome = next(&snapshot).and_then(|manifest| match manifest {
            Some(manifest) => {
                lock.check(&self.folder)?;
                manifest.publish(&self.folder).and_then(|()| self.switch(manifest))
            }
            None => Ok(()),
        });
        if outcome.is_err() {
            self.recover(lock);
        }
        outcome
    }
}

impl Snapshot {
    /// What deletes a document.
    ///
    /// # Errors
    /// `Argument` for one that is not there.
    pub(crate) fn tombstone(&self, key: &DocumentKey) -> Result<Tombstone> {
        let record = self.deleted.record_of(self.document_index(key)?)?;
        let document = self.document_record(record)?;
        Ok(Tombstone { record, start: document.start, end: document.end })
    }

    /// Writes the deleted documents of the next generation: those of this one, and more that are not among them.
    pub(crate) fn bury(&self, folder: &Folder, gone: Vec<Tombstone>) -> Result<DeletedRecord> {
        let before = self.manifest.deleted.as_ref().map_or(0, |d| d.entries);
        let entries = before.saturating_add(count(&gone));
        let deleted = self.deleted.with(gone);
        // The document table of a damaged store may say anything: a generation that nobody can open must not come of it.
        match deleted.fault(self.manifest.records(), self.manifest.entries) {
            Some(fault) => Err(Error::format(
                folder.path(),
                format!("deleted documents: {fault}; a file is damaged, `verify` names it. Nothing was deleted"),
            )),
            None => deleted.write(folder, self.manifest.next(folder)?.generation, entries),
        }
    }
}

/// Number of their entries.
fn count(gone: &[Tombstone]) -> u64 {
    gone.iter().fold(0, |sum: u64, t| sum.saturating_add(t.end - t.start))
}
