//! Documents that are deleted: found, and written down for the next generation.

use crate::store::format::deleted::Tombstone;
use crate::store::format::documents::DocumentKey;
use crate::store::format::files::Folder;
use crate::store::format::records::DeletedRecord;
use crate::store::read::snapshot::Snapshot;
use crate::{Error, Result};

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
pub(crate) fn count(gone: &[Tombstone]) -> u64 {
    gone.iter().fold(0, |sum: u64, t| sum.saturating_add(t.end - t.start))
}
