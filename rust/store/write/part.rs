//! Parts of a store that other processes compute: the writer takes them in, in order.

use super::lists::Encoded;
use super::writer::Writer;
use crate::error::Why;
use crate::keys::KeyRows;
use crate::store::format::values::ValueRows;
use crate::{Error, Result};
use std::ops::Range;
use std::path::Path;

/// Name, metadata and number of entries of a document.
pub type PartDocument = (Option<String>, Option<String>, u64);

impl Writer {
    pub(crate) fn add_part(
        &mut self,
        folder: &Path,
        encoded: Vec<Encoded>,
        documents: &[PartDocument],
        values: ValueRows,
        keys: Option<KeyRows>,
    ) -> Result<Range<u64>> {
        if self.failed {
            return Err(self.failure());
        }
        let manifest = &self.base.manifest;
        values.check(manifest.values, manifest.max_value)?;
        let sum = |mut all: Box<dyn Iterator<Item = u64> + '_>| all.try_fold(0, u64::checked_add);
        let coded = sum(Box::new(encoded.iter().map(|e| e.entries)));
        let named = sum(Box::new(documents.iter().map(|d| d.2)));
        if [coded, named] != [Some(values.len() as u64); 2] {
            return Err(Error::Argument(format!(
                "part: expected codes and documents of {} entries, as many as values, found {coded:?} and {named:?}; nothing was added",
                values.len()
            )));
        }
        if self.encoding.is_none() {
            return Err(not_encoding());
        }
        encoded.iter().try_for_each(Encoded::check)?;
        self.check_raw(keys.as_ref(), values.len())?;
        let (start, before) = (self.next_id(), self.entries);
        for (name, metadata, entries) in documents {
            self.begin_rows(*entries, name.as_deref(), metadata.as_deref())?;
            self.entries += entries;
        }
        let end = self.next_id();
        self.failed = true; // until everything is written
        if let Some(encoding) = &mut self.encoding {
            encoding.adopt(folder, encoded)?;
        }
        keys.map_or(Ok(()), |keys| self.write_raw(keys))?;
        self.entries = before; // the values count them
        self.write_values(values)?;
        Ok(start..end)
    }
}

/// What to tell of a store that wants raw keys.
pub(crate) fn not_encoding() -> Error {
    Error::state(
        Why::NotEncoding,
        "part: expected a store that encodes what is added, found one that does not; train it first",
    )
}
