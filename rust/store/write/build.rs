//! Builds the index of a store: trains a codebook, writes lists, drops raw keys that need not be kept.
//!
//! Everything goes to new files; one manifest makes them the next generation. A build that fails or is interrupted
//! leaves the store as it was.

use super::lists::{Context, LISTS_LIMIT, join_small_lists};
use super::merge::drop_keys;
use super::notices::Notices;
use super::recall::with_new_index;
use crate::error::Why;
use crate::index::{CodeChoice, Codebook, Lists, Params, code_kind, train};
use crate::search::Calibration;
use crate::search::calibrate;
use crate::store::format::files::Folder;
use crate::store::format::layout::{SegmentKind, SegmentName};
use crate::store::format::manifest::Manifest;
use crate::store::format::segment::SegmentFile;
use crate::store::format::segment_writer::SegmentWriter;
use crate::store::read::lookup::keys_not_kept;
use crate::store::read::snapshot::Snapshot;
use crate::threads::Pool;
use crate::work::Progress;
use crate::{Error, Result};
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

/// A build in the making.
pub(crate) struct Build<'b> {
    pub(crate) folder: &'b Folder,
    pub(crate) notices: &'b Notices,
    pub(crate) snapshot: &'b Snapshot,
    pub(crate) pool: &'b Pool,
    pub(crate) progress: Progress<'b>,
    pub(crate) cancel: &'b AtomicBool,
}

impl Build<'_> {
    /// Writes the files of the next generation; none if there is nothing to index.
    pub(crate) fn next(&self, options: &BuildOptions) -> Result<Option<Manifest>> {
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
        // A single entry has no neighbors to measure with, however often it is tried.
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
