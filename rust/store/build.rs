//! Builds the index of a store: trains a codebook, writes lists, drops raw keys that need not be kept.
//!
//! Everything goes to new files; one manifest makes them the next generation. A build that fails or is interrupted
//! leaves the store as it was.

use super::batch::check_sample;
use super::calibrate::with_new_index;
use super::compact::{LISTS_LIMIT, join_small_lists};
use super::datastore::Datastore;
use super::drift::{Fit, quantisation_error};
use super::files::Folder;
use super::layout::{SegmentKind, SegmentName};
use super::lookup::keys_not_kept;
use super::manifest::{ListsRecord, Manifest};
use super::merge::Merge;
use super::notices::Notices;
use super::segment::SegmentFile;
use super::segment_writer::SegmentWriter;
use super::snapshot::Snapshot;
use crate::error::Why;
use crate::index::{CodeChoice, Codebook, Lists, Params, Progress, code_kind, merge_lists, train, write_lists};
use crate::keys::{KeyBlock, KeyRows};
use crate::search::calibrate::calibrate;
use crate::search::{Calibration, Pool};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the caller may choose about a build.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Lists, code and seed.
    pub params: Params,
    /// Train a new codebook and encode every entry again, though there is a codebook.
    pub retrain: bool,
    /// Threads; `None` = one per core.
    pub threads: Option<usize>,
}

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
}

impl Datastore {
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
}

struct Build<'b> {
    folder: &'b Folder,
    notices: &'b Notices,
    snapshot: &'b Snapshot,
    pool: &'b Pool,
    progress: Progress<'b>,
    cancel: &'b AtomicBool,
}

impl Build<'_> {
    /// Writes the files of the next generation; none if there is nothing to index.
    fn next(&self, options: &BuildOptions) -> Result<Option<Manifest>> {
        let mut manifest = self.snapshot.manifest.clone();
        if manifest.live() == 0 {
            return Ok(None);
        }
        manifest = manifest.next(self.folder)?;
        let train_anew = manifest.codebook.is_none() || options.retrain;
        if train_anew {
            if !self.snapshot.has_all_keys() {
                return Err(keys_not_kept(self.snapshot, "retrain"));
            }
            self.snapshot.check_keys(&(0..manifest.entries), self.cancel)?;
            manifest.codebook = Some(self.train(&manifest, &options.params)?);
            manifest.lists.clear();
            manifest.fit = None;
        } else {
            self.check_same_parameters(&options.params)?;
        }
        let indexed = manifest.indexed();
        // A single entry has no neighbours to measure with, however often it is tried.
        let stale = manifest.live() > 1 && manifest.is_measured_long_ago();
        let measure = train_anew || (stale && self.snapshot.has_all_keys());
        let new = indexed < manifest.entries;
        if !(new || measure) {
            return Ok(None);
        }
        if !train_anew {
            let needed = if measure { 0 } else { indexed };
            self.snapshot.check_keys(&(needed..manifest.entries), self.cancel)?;
        }
        if new {
            self.write_all_lists(&mut manifest, indexed)?;
        }
        if measure {
            manifest.calibration = self.calibrate(&manifest)?;
        }
        if !train_anew {
            self.notices.note(self.outgrown(&manifest)?);
        }
        if manifest.keep_keys.is_none() {
            drop_keys(self.folder, self.snapshot, &mut manifest, self.progress, self.cancel)?;
        }
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        Ok(Some(manifest))
    }

    /// Says that a new index is advised, where it was not before.
    fn outgrown(&self, manifest: &Manifest) -> Result<Option<Error>> {
        let reasons = |codebook: &Codebook, _: &[Lists]| {
            let before = &self.snapshot.manifest;
            let reason = before.retrain_reason(codebook, before.indexed().min(before.live()));
            Ok(manifest.retrain_reason(codebook, manifest.live()).filter(|_| reason.is_none()))
        };
        let reason = self.snapshot.with_index(reasons)?.flatten();
        let message = |reason| {
            format!("{}: the store has outgrown its index: {reason}; retrain it", self.folder.path().display())
        };
        Ok(reason.map(|reason| Error::state(Why::Outgrown, message(reason))))
    }

    fn train(&self, manifest: &Manifest, params: &Params) -> Result<SegmentName> {
        let name = SegmentKind::Codebook.file_name(manifest.generation);
        let mut segment = SegmentWriter::create(self.folder, &name, SegmentKind::Codebook)?;
        let keys = self.snapshot.key_blocks(&(0..manifest.entries))?;
        train(&keys, manifest.metric, params, self.pool, self.progress, self.cancel, &mut segment)?;
        segment.finish()
    }

    /// New entries get the codes of the old ones; other wishes need a new codebook.
    fn check_same_parameters(&self, params: &Params) -> Result<()> {
        let same = |codebook: &Codebook| {
            let nlist = params.nlist.is_none_or(|n| n == codebook.nlist());
            let seed = params.seed.is_none_or(|seed| seed == codebook.seed());
            let code = params.code == CodeChoice::Auto || code_kind(params.code, codebook.d())? == codebook.kind();
            if nlist && seed && code {
                return Ok(());
            }
            Err(Error::Argument(format!(
                "expected the parameters that the store was built with (nlist {}, code {:?}, seed {}) or retrain, found nlist {:?}, code {:?}, seed {:?}",
                codebook.nlist(),
                codebook.kind(),
                codebook.seed(),
                params.nlist,
                params.code,
                params.seed
            )))
        };
        self.snapshot.with_index(|codebook, _| same(codebook)).map(|_| ())
    }

    /// Measures the recall of the new index against the raw keys.
    fn calibrate(&self, manifest: &Manifest) -> Result<Option<Calibration>> {
        // Lists from before hold what was deleted since, until they are compacted.
        let keys = self.snapshot.stored_key_blocks(&(0..manifest.entries))?;
        with_new_index(self.folder, manifest, keys, self.snapshot.deleted.spans(), |corpus| {
            let shown = |done: u64, total: u64| (self.progress)("measure recall", done, total);
            calibrate(corpus, manifest.keep_keys.is_some(), self.pool, &shown, self.cancel)
        })
    }

    fn write_all_lists(&self, manifest: &mut Manifest, indexed: u64) -> Result<()> {
        let Some(name) = &manifest.codebook else { return Ok(()) };
        let file = SegmentFile::open(self.folder.path(), name, SegmentKind::Codebook)?;
        file.check_all()?;
        let codebook = Codebook::open(&file, manifest.dim, manifest.metric)?;
        let mut start = indexed;
        while start < manifest.entries {
            let ids = start..manifest.entries.min(start + LISTS_LIMIT);
            let keys = self.snapshot.key_blocks(&ids)?;
            let name = SegmentKind::Lists.part_name(manifest.generation, start == indexed, start);
            let context =
                Context { folder: self.folder, pool: self.pool, progress: self.progress, cancel: self.cancel };
            let encoded = context.write_lists(&codebook, &keys, ids.clone(), &name)?;
            manifest.add_lists(encoded);
            start = ids.end;
        }
        self.notices.note(join_small_lists(self.folder, manifest, self.cancel)?);
        Ok(())
    }
}

/// Copies values and documents of all segments with raw keys into one without.
pub(crate) fn drop_keys(
    folder: &Folder,
    snapshot: &Snapshot,
    manifest: &mut Manifest,
    progress: Progress,
    cancel: &AtomicBool,
) -> Result<()> {
    let Some(first) = manifest.data.iter().position(|d| d.keys.is_some()) else { return Ok(()) };
    let segments = first..manifest.data.len();
    let merge = Merge { folder, snapshot, segments, keys: false, drop_deleted: false, progress, cancel };
    let record = merge.write(&SegmentKind::Data.file_name(manifest.generation))?;
    manifest.data.truncate(first);
    manifest.data.push(record);
    Ok(())
}

/// Where and how lists are written.
pub(crate) struct Context<'c> {
    pub(crate) folder: &'c Folder,
    pub(crate) pool: &'c Pool,
    pub(crate) progress: Progress<'c>,
    pub(crate) cancel: &'c AtomicBool,
}

/// A lists segment and how well its codes fit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Encoded {
    /// Its file.
    #[serde(flatten)]
    pub name: SegmentName,
    /// Ids that it stands for.
    pub entries: u64,
    /// Entries in it.
    pub live: u64,
    /// Mean squared distance between keys and what their codes decode to.
    pub error: f32,
}

impl Encoded {
    /// Refuses an error that no keys have: it would be in the manifest, which then nobody could read.
    pub(crate) fn check(&self) -> Result<()> {
        if self.error.is_finite() && self.error >= 0.0 {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "{}: expected a mean error that is a finite number from 0 on, found {}; make the file again. Nothing was changed",
            self.name.file, self.error
        )))
    }
}

impl Context<'_> {
    /// Writes the lists of the entries `ids`, of which `keys` are left. Nothing in the file depends on the first id.
    pub(crate) fn write_lists(
        &self,
        codebook: &Codebook,
        keys: &[KeyBlock],
        ids: Range<u64>,
        name: &str,
    ) -> Result<Encoded> {
        let mut segment = SegmentWriter::create(self.folder, name, SegmentKind::Lists)?;
        if keys.is_empty() {
            merge_lists(codebook, &[], ids.start, &|_| true, self.progress, self.cancel, &mut segment)?;
        } else {
            // Lists count ids from the first block's: an empty one, because the first entries may be deleted.
            let start = KeyBlock { first_id: ids.start, d: codebook.d(), rows: KeyRows::F32(&[]) };
            let keys = [&[start], keys].concat();
            write_lists(codebook, &keys, self.pool, self.progress, self.cancel, &mut segment)?;
        }
        let (name, entries) = (segment.finish()?, ids.end - ids.start);
        let live: u64 = keys.iter().map(|b| b.n() as u64).sum();
        let mut error = 0.0;
        if live > 0 {
            let file = SegmentFile::open(self.folder.path(), &name, SegmentKind::Lists)?;
            let lists = Lists::open(&file, codebook, ids.start, entries)?;
            error = quantisation_error(codebook, &[lists], keys)?;
        }
        Ok(Encoded { name, entries, live, error })
    }
}

impl Manifest {
    /// Adds lists of the entries that follow those in lists, and notes their error.
    pub(crate) fn add_lists(&mut self, encoded: Encoded) {
        if encoded.live > 0 {
            self.fit = Some(match self.fit {
                None => Fit { trained_error: encoded.error, ..Fit::default() },
                Some(fit) => fit.with(encoded.live, encoded.error),
            });
        }
        let first_id = self.indexed();
        self.lists.push(ListsRecord { name: encoded.name, first_id, entries: encoded.entries });
    }
}
