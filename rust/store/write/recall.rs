//! Calibration of a store: the recall that its index reaches, by exact neighbors that it finds itself or is given.

use crate::index::{Codebook, Lists};
use crate::keys::KeyBlock;
use crate::search::{Calibration, Corpus, Truth};
use crate::store::format::files::Folder;
use crate::store::format::layout::SegmentKind;
use crate::store::format::manifest::Manifest;
use crate::store::format::segment::SegmentFile;
use crate::{Error, Result};
use std::ops::Range;

impl Truth {
    /// Refuses queries that are not rows of `d` finite numbers with `k` neighbors each.
    pub(crate) fn check(&self, d: usize) -> Result<()> {
        let q = self.own.len();
        if q.checked_mul(d) != Some(self.queries.len()) || self.queries.iter().any(|x| !x.is_finite()) {
            return Err(Error::Argument(format!(
                "queries: expected {q} rows of {d} finite numbers, found {} numbers",
                self.queries.len()
            )));
        }
        if q.checked_mul(self.k) != Some(self.ids.len()) {
            return Err(Error::Argument(format!(
                "ids: expected {} neighbors of each of {q} queries, found {} in all",
                self.k,
                self.ids.len()
            )));
        }
        Ok(())
    }
}

/// Opens codebook and lists of a manifest that may not be published yet.
pub(crate) fn with_new_index(
    folder: &Folder,
    manifest: &Manifest,
    keys: Vec<KeyBlock>,
    deleted: &[Range<u64>],
    measure: impl FnOnce(&Corpus) -> Result<Calibration>,
) -> Result<Option<Calibration>> {
    let Some(name) = &manifest.codebook else { return Ok(None) };
    let codebook = SegmentFile::open(folder.path(), name, SegmentKind::Codebook)?;
    let opened = manifest.lists.iter().map(|l| SegmentFile::open(folder.path(), &l.name, SegmentKind::Lists));
    let files: Vec<SegmentFile> = opened.collect::<Result<_>>()?;
    let codebook = Codebook::open(&codebook, manifest.dim, manifest.metric)?;
    let pairs = files.iter().zip(&manifest.lists);
    let lists = pairs
        .map(|(file, l)| Ok(Lists::open(file, &codebook, l.first_id, l.entries)?.without(deleted)))
        .collect::<Result<_>>()?;
    let index = Some((codebook, lists));
    let (d, metric, unindexed) = (manifest.dim, manifest.metric, Vec::new());
    measure(&Corpus { d, metric, keys, index, unindexed, deleted, measured: None, advise: None }).map(Some)
}
