//! Parts of a store that other processes compute: each encodes keys into files of its own, one writer takes them in order.

use super::batch::check_sample;
use super::build::{Context, Encoded};
use super::datastore::Datastore;
use super::encoding::batch;
use super::files::{Disk, Folder};
use super::values::ValueRows;
use super::writer::Writer;
use crate::error::Why;
use crate::index::Codebook;
use crate::keys::{KeyBlock, KeyRows};
use crate::search::Pool;
use crate::{Error, Result};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Name, metadata and number of entries of a document.
pub type PartDocument = (Option<String>, Option<String>, u64);

impl Datastore {
    /// Encodes keys as an [`add`](Self::add) followed by a commit would, into files `STEM-0.seg` and so on of another
    /// folder, without the lock: any number of processes may do so at once. [`Self::add_part`] takes them in.
    ///
    /// # Errors
    /// `State` for a store that does not encode what is added; `Argument` for keys that do not fit; `Interrupted`; `Io`.
    pub fn encode_part(
        &self,
        keys: KeyRows,
        folder: &Path,
        stem: &str,
        threads: Option<usize>,
        cancel: &AtomicBool,
    ) -> Result<Vec<Encoded>> {
        let snapshot = self.snapshot();
        let manifest = &snapshot.manifest;
        let Some(file) = snapshot.codebook.as_deref().filter(|_| manifest.encode) else {
            return Err(not_encoding());
        };
        check_sample(manifest.dim, &keys)?;
        file.check_all()?;
        let (d, codebook) = (manifest.dim, Codebook::open(file, manifest.dim, manifest.metric)?);
        let folder = Folder::new(folder, Arc::new(Disk));
        let pool = Pool::get(threads)?;
        let context = Context { folder: &folder, pool: &pool, progress: &|_, _, _| (), cancel };
        let mut parts = Vec::new();
        let mut at = 0;
        while at < keys.len() {
            let n = batch(d).min(keys.len() - at);
            let rows = match keys {
                KeyRows::F32(x) => x[at..at + n].to_vec(),
                KeyRows::F16(x) => x[at..at + n].iter().map(|x| x.to_f32()).collect(),
            };
            let block = KeyBlock { first_id: 0, d, rows: KeyRows::F32(&rows) };
            let name = format!("{stem}-{}.seg", parts.len());
            parts.push(context.write_lists(&codebook, &[block], 0..(n / d) as u64, &name)?);
            at += n;
        }
        folder.sync()?;
        Ok(parts)
    }

    /// Adds documents (name, metadata, number of entries) whose keys [`Self::encode_part`] has encoded, and returns the ids.
    /// The files move into the store; its bytes are those of a store that the keys were added to. A store that keeps raw
    /// keys wants them, too: `keys`.
    ///
    /// # Errors
    /// As [`Self::add`]; `Format` for files that do not fit. Where a document is refused after others of the part, only
    /// [`Self::discard`] is left.
    pub fn add_part(
        &self,
        folder: &Path,
        encoded: Vec<Encoded>,
        documents: &[PartDocument],
        values: ValueRows,
        keys: Option<KeyRows>,
    ) -> Result<Range<u64>> {
        self.write(|writer| writer.add_part(folder, encoded, documents, values, keys))
    }
}

impl Writer {
    fn add_part(
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

fn not_encoding() -> Error {
    Error::state(
        Why::NotEncoding,
        "part: expected a store that encodes what is added, found one that does not; train it first",
    )
}
