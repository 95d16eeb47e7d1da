//! Work that other processes do for a store, in files that wait beside it: parts of what is added, and a new index.

use super::datastore::Datastore;
use super::format::files::{Disk, Folder};
use super::format::layout::{SegmentKind, SegmentName};
use super::format::lock::Lock;
use super::format::segment::SegmentFile;
use super::format::segment_writer::SegmentWriter;
use super::format::values::ValueRows;
use super::write::batch::check_sample;
use super::write::build::BuildOptions;
use super::write::encoding::batch;
use super::write::lists::{Context, Encoded, LISTS_LIMIT};
use super::write::part::{PartDocument, not_encoding};
use super::write::reindex::{Reindex, Staged};
use crate::error::Why;
use crate::index::{Codebook, train};
use crate::keys::{KeyBlock, KeyRows};
use crate::search::Truth;
use crate::threads::Pool;
use crate::work::Progress;
use crate::{Error, Result};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The writer's lock on a store at one generation, for work that takes long; let go when dropped.
#[derive(Debug)]
pub struct Held {
    generation: u64,
    lock: Arc<Lock>,
}

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

    /// Commits what was added, moves to the newest generation and keeps other writers out; this object may write.
    ///
    /// # Errors
    /// `State` if another writer holds the store; `Io`.
    pub fn hold(&self) -> Result<Held> {
        let mut guard = self.writing()?;
        self.commit_held(&mut guard)?;
        let lock = self.begin()?;
        *self.held() = Arc::downgrade(&lock);
        Ok(Held { generation: self.generation(), lock })
    }

    /// Learns a codebook from a sample of keys, into the file `name` of another folder; the store stays as it is.
    ///
    /// # Errors
    /// `Argument` for keys or parameters that do not fit; `Interrupted`; `Io`.
    pub fn stage_codebook(
        &self,
        folder: &Path,
        name: &str,
        sample: KeyRows,
        options: &BuildOptions,
        progress: Progress,
        cancel: &AtomicBool,
    ) -> Result<SegmentName> {
        let (pool, d) = (Pool::get(options.threads)?, self.dim());
        check_sample(d, &sample)?;
        let folder = Folder::new(folder, Arc::new(Disk));
        let mut segment = SegmentWriter::create(&folder, name, SegmentKind::Codebook)?;
        let block = KeyBlock { first_id: 0, d, rows: sample };
        train(&[block], self.metric(), &options.params, &pool, progress, cancel, &mut segment)?;
        let name = segment.finish()?;
        folder.sync()?;
        Ok(name)
    }

    /// Encodes keys with a staged codebook into the file `name` of its folder, without the lock: any number of processes
    /// may do so at once. The lists stand for `ids`, of which `runs` (first id, number), ascending, have the keys.
    ///
    /// # Errors
    /// `Argument` for keys or ids that do not fit; `Format` for a codebook that does not; `Interrupted`; `Io`.
    #[expect(clippy::too_many_arguments, reason = "keys, their ids and where they go")]
    pub fn stage_lists(
        &self,
        folder: &Path,
        codebook: &SegmentName,
        keys: KeyRows,
        runs: &[(u64, u64)],
        ids: Range<u64>,
        name: &str,
        threads: Option<usize>,
        cancel: &AtomicBool,
    ) -> Result<Encoded> {
        let d = self.dim();
        check_sample(d, &keys)?;
        let mut end = ids.start;
        let fits = runs.iter().all(|&(first, n)| {
            let fits = n > 0 && first >= end && first.checked_add(n).is_some_and(|stop| stop <= ids.end);
            end = first.saturating_add(n);
            fits
        });
        let rows: u64 = runs.iter().map(|run| run.1).fold(0, u64::saturating_add);
        if !fits || rows != (keys.len() / d) as u64 || ids.end - ids.start > LISTS_LIMIT {
            return Err(Error::Argument(format!(
                "ids: expected ascending runs in {ids:?} (at most {LISTS_LIMIT}) of as many entries as keys, {}, found {rows} in {} runs",
                keys.len() / d,
                runs.len()
            )));
        }
        let mut blocks = Vec::with_capacity(runs.len());
        let mut at = 0;
        for &(first_id, n) in runs {
            let span = at..at + n as usize * d;
            at = span.end;
            blocks.push(KeyBlock { first_id, d, rows: keys.slice(span) });
        }
        let file = SegmentFile::open(folder, codebook, SegmentKind::Codebook)?;
        let codebook = Codebook::open(&file, d, self.metric())?;
        let folder = Folder::new(folder, Arc::new(Disk));
        let pool = Pool::get(threads)?;
        let context = Context { folder: &folder, pool: &pool, progress: &|_, _, _| (), cancel };
        let encoded = context.write_lists(&codebook, &blocks, ids, name)?;
        folder.sync()?;
        Ok(encoded)
    }

    /// Publishes a staged index as the next generation: entries, ids and documents stay, deleted ones get no codes. The
    /// recall is measured against `truth`. Staged files stay; nothing in them is trusted.
    ///
    /// # Errors
    /// `State` for a lock on another store or generation; `Format`, naming the file, for staged files that are damaged or do not
    /// hold codes of exactly the entries that are there; `Interrupted`; `Io`. The store is then as it was.
    pub fn reindex(
        &self,
        held: &Held,
        staged: Staged,
        truth: &Truth,
        threads: Option<usize>,
        progress: Progress,
        cancel: &AtomicBool,
    ) -> Result<()> {
        let pool = Pool::get(threads)?;
        let _writing = self.writing()?;
        if self.held().upgrade().is_none_or(|lock| !Arc::ptr_eq(&lock, &held.lock)) {
            return Err(Error::state(
                Why::Broken,
                format!(
                    "{}: expected the lock that this store's `hold` returned, found that of another; hold this one",
                    self.path().display()
                ),
            ));
        }
        if held.generation != self.generation() {
            return Err(Error::state(
                Why::Changed,
                format!(
                    "{}: expected to be at generation {}, which is held, found {}; hold it again and stage anew",
                    self.path().display(),
                    held.generation,
                    self.generation()
                ),
            ));
        }
        self.publish_locked(&held.lock, |snapshot| {
            Reindex { folder: &self.folder, snapshot, staged, pool: &pool, progress, cancel }.next(truth)
        })
    }
}
