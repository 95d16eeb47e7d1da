//! Changes of a store other than appending: one generation each, or nothing.

use super::datastore::Datastore;
use super::datastore::parse_attributes;
use super::format::deleted::Tombstone;
use super::format::documents::DocumentKey;
use super::format::layout::SegmentKind;
use super::format::lock::Lock;
use super::format::manifest::Manifest;
use super::format::segment_writer::SegmentWriter;
use super::read::snapshot::Snapshot;
use super::write::batch::check_sample;
use super::write::build::{Build, BuildOptions};
use super::write::collect::collect;
use super::write::compact::Compaction;
use super::write::delete::count;
use super::write::recall::with_new_index;
use super::write::salvage::{Lost, Salvage};
use super::write::staging::{PARTS, RETRAINING, remove};
use crate::error::{Action, Why};
use crate::index::train;
use crate::keys::{KeyBlock, KeyRows};
use crate::search::{Truth, measure_against};
use crate::threads::Pool;
use crate::work::Progress;
use crate::{Error, Result};
use std::sync::atomic::AtomicBool;

impl Datastore {
    /// Commits what was added, then indexes the entries that are in no list: with a new codebook the first time or
    /// with `retrain`, else with the one that is there. An empty store stays as it is.
    ///
    /// # Errors
    /// `Argument` for parameters that do not fit; `State` for `retrain` without raw keys or a second writer;
    /// `Interrupted`; `Io`. The store is then as it was.
    pub fn build(&self, options: &BuildOptions, progress: Progress, cancel: &AtomicBool) -> Result<()> {
        let pool = Pool::get(options.threads)?;
        self.publish_next(|snapshot| {
            Build { folder: &self.folder, notices: &self.notices, snapshot, pool: &pool, progress, cancel }
                .next(options)
        })
    }

    /// Learns the codebook of an empty store from a sample of the keys that it will hold. From then on entries are encoded
    /// as they are added; raw keys are written only where the store keeps them. Lists are laid out for
    /// `options.params.expected` entries.
    ///
    /// # Errors
    /// `State` for a store that has entries or a codebook; `Argument` for keys or parameters that do not
    /// fit; `Interrupted`; `Io`. The store is then as it was.
    pub fn train(
        &self,
        sample: KeyRows,
        options: &BuildOptions,
        progress: Progress,
        cancel: &AtomicBool,
    ) -> Result<()> {
        let pool = Pool::get(options.threads)?;
        self.publish_next(|snapshot| {
            let mut manifest = snapshot.manifest.clone();
            if manifest.entries > 0 || manifest.codebook.is_some() {
                return Err(Error::state(
                    Why::NotEmpty,
                    format!(
                        "{}: expected an empty store without an index, found {} entries{}; train first, then add",
                        self.path().display(),
                        manifest.entries,
                        if manifest.codebook.is_some() { " and an index" } else { "" }
                    ),
                ));
            }
            check_sample(manifest.dim, &sample)?;
            manifest = manifest.next(&self.folder)?;
            let name = SegmentKind::Codebook.file_name(manifest.generation);
            let mut segment = SegmentWriter::create(&self.folder, &name, SegmentKind::Codebook)?;
            let block = KeyBlock { first_id: 0, d: manifest.dim, rows: sample };
            train(&[block], manifest.metric, &options.params, &pool, progress, cancel, &mut segment)?;
            manifest.codebook = Some(segment.finish()?);
            manifest.encode = true;
            Ok(Some(manifest))
        })
    }

    /// Measures the recall of the index against exact neighbors of some queries, found elsewhere: a store without raw
    /// keys cannot find them itself.
    ///
    /// # Errors
    /// `State` without an index or for a second writer; `Argument` for a truth that does not fit; `Interrupted`; `Io`.
    pub fn calibrate(
        &self,
        truth: &Truth,
        threads: Option<usize>,
        progress: Progress,
        cancel: &AtomicBool,
    ) -> Result<()> {
        let pool = Pool::get(threads)?;
        self.publish_next(|snapshot| {
            let manifest = snapshot.manifest.next(&self.folder)?;
            if manifest.codebook.is_none() {
                return Err(Error::state(
                    Why::NotBuilt,
                    "calibrate: expected a store with an index, found none; build it first",
                ));
            }
            truth.check(manifest.dim)?;
            let measured = with_new_index(&self.folder, &manifest, Vec::new(), snapshot.deleted.spans(), |corpus| {
                let shown = |done: u64, total: u64| progress("measure recall", done, total);
                measure_against(corpus, truth, manifest.keep_keys.is_some(), &pool, &shown, cancel)
            })?;
            Ok(measured.map(|calibration| Manifest { calibration: Some(calibration), ..manifest }))
        })
    }

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

    /// Remembers other JSON, as a new generation (after a commit).
    pub fn set_attributes(&self, attributes: &str) -> Result<()> {
        let attributes = parse_attributes(attributes)?;
        self.publish_next(|snapshot| {
            let mut manifest = snapshot.manifest.next(&self.folder)?;
            manifest.attributes = attributes;
            Ok(Some(manifest))
        })
    }

    /// Rewrites the store without deleted documents; joins its data segments and its lists. Nothing happens if there is
    /// nothing deleted and nothing to join. What interrupted work has staged of deleted text goes, too. All bytes that are
    /// copied are checked first.
    ///
    /// # Errors
    /// `Damaged`; `State` for a second writer; `Interrupted`; `Io`. The store is then as it was, or, where the path is of a
    /// file or folder that cannot be removed, compacted; compacting again removes it.
    pub fn compact(&self, progress: Progress, cancel: &AtomicBool) -> Result<()> {
        self.rewrite(|snapshot| Compaction { folder: &self.folder, progress, cancel }.next(snapshot, None))
    }

    /// [`Self::compact`] of a damaged store: documents of which bytes are damaged are dropped and returned, lists are made anew
    /// where raw keys are there. [`Self::damaged`] only tells.
    ///
    /// # Errors
    /// As `compact`; `Format` for a codebook, without which no code means anything.
    pub fn salvage(&self, progress: Progress, cancel: &AtomicBool) -> Result<Vec<Lost>> {
        let mut lost = Vec::new();
        self.rewrite(|snapshot| {
            let salvage = Salvage::of(snapshot, progress, cancel)?;
            lost = salvage.lost();
            // The same generation, opened anew, in which what is damaged is deleted.
            let mut sound = Snapshot::of(&self.folder, snapshot.manifest.clone())?;
            sound.deleted = sound.deleted.with(salvage.tombstones());
            let compaction = Compaction { folder: &self.folder, progress, cancel };
            compaction.next(&sound, Some(&salvage).filter(|salvage| salvage.any))
        })?;
        Ok(lost)
    }

    fn rewrite(&self, next: impl FnOnce(&Snapshot) -> Result<Option<Manifest>>) -> Result<()> {
        let mut guard = self.writing()?;
        self.commit_held(&mut guard)?;
        let lock = self.begin()?;
        let before = self.generation();
        self.publish_locked(&lock, next)?;
        self.remove_staged(self.generation() != before)?;
        self.remove_replaced(&lock)
    }

    /// Makes sure that files which the store no longer names are gone, after a loss of power too: deleted text is in them.
    fn remove_replaced(&self, lock: &Lock) -> Result<()> {
        lock.check(&self.folder)?;
        collect(&self.folder, &self.snapshot().manifest).map_or(Ok(()), Err)?;
        self.folder.sync().map_err(|error| match error {
            Error::Io { path, source, .. } => Error::Io { path, action: Action::RemoveForGood, source },
            other => other,
        })
    }

    /// Removes what may hold deleted text, and a re-training for a generation that is no more; under the lock, once
    /// `published` or not is known. Links are removed and not followed.
    ///
    /// # Errors
    /// `Io` for what cannot be removed, `State` for a link in place of a folder.
    pub(crate) fn remove_staged(&self, published: bool) -> Result<()> {
        let lost = self.snapshot().manifest.has_lost_text();
        let useless = [(RETRAINING, published || lost), (PARTS, lost)].into_iter().filter(|(_, useless)| *useless);
        remove(&self.folder, useless.map(|(name, _)| name))
    }
}
