//! A lists segment: written from keys, added to a manifest, joined with others.

use crate::error::Why;
use crate::index::{Codebook, Lists, merge_lists, write_lists};
use crate::keys::{KeyBlock, KeyRows};
use crate::store::format::files::Folder;
use crate::store::format::fit::Fit;
use crate::store::format::layout::{SegmentKind, SegmentName};
use crate::store::format::manifest::Manifest;
use crate::store::format::names::joined_name;
use crate::store::format::records::ListsRecord;
use crate::store::format::segment::SegmentFile;
use crate::store::format::segment_writer::SegmentWriter;
use crate::store::read::drift::quantisation_error;
use crate::threads::Pool;
use crate::work::Progress;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// A lists segment joins the one before if that is at most this many times its size: so a store that grows by many
/// small additions has few of them, and every entry is moved a few times only.
const TIER: u64 = 3;

/// Entries of one lists segment: its ids are 32-bit numbers relative to its first.
pub(crate) const LISTS_LIMIT: u64 = u32::MAX as u64;

/// Where and how lists are written.
pub(crate) struct Context<'c> {
    pub(crate) folder: &'c Folder,
    pub(crate) pool: &'c Pool,
    pub(crate) progress: Progress<'c>,
    pub(crate) cancel: &'c AtomicBool,
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

/// Joins the last lists segments of a manifest in the making while the last is not much smaller than the one before. What is
/// damaged stays as it is, and is returned: joining is no reason to lose what was added.
pub(crate) fn join_small_lists(folder: &Folder, manifest: &mut Manifest, cancel: &AtomicBool) -> Result<Option<Error>> {
    let mut from = manifest.lists.len();
    let mut total = 0;
    for (i, lists) in manifest.lists.iter().enumerate().rev() {
        let fits = total == 0 || (lists.entries <= TIER * total && lists.entries + total <= LISTS_LIMIT);
        if !fits {
            break;
        }
        (from, total) = (i, total + lists.entries);
    }
    let mut damage = None;
    while manifest.lists.len() - from >= 2 {
        let parts = &manifest.lists[from..];
        let entries = parts.iter().map(|part| part.entries).sum();
        let name = joined_name(manifest.generation, parts[0].first_id, entries);
        let join = Join { folder, manifest, keep: &|_| true, progress: &|_, _, _| (), cancel };
        match join.write(parts, &[], &name) {
            Ok(joined) => {
                for part in manifest.lists.drain(from..) {
                    let written = SegmentKind::of_name(&part.name.file).map(|(_, generation)| generation);
                    if written == Some(manifest.generation) {
                        // By this very generation, which will not name it: what stays goes once that is published.
                        let _ = folder.remove(&part.name.file);
                    }
                }
                manifest.lists.push(joined);
                break;
            }
            Err(error @ (Error::Damaged { .. } | Error::Format { .. })) => {
                damage = damage.or(Some(error));
                from += 1;
            }
            Err(other) => return Err(other),
        }
    }
    Ok(damage)
}

/// What is damaged of a lists segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListsDamage {
    /// Whether it has to be left out as a whole.
    pub(crate) whole: bool,
    /// Whether raw keys are there to encode its entries again.
    pub(crate) encode: bool,
    /// Positions, in list order, whose ids cannot be read.
    pub(crate) positions: Vec<Range<u64>>,
}

/// Lists segments that become one.
pub(crate) struct Join<'j> {
    pub(crate) folder: &'j Folder,
    /// With the codebook that they share.
    pub(crate) manifest: &'j Manifest,
    pub(crate) keep: &'j dyn Fn(u64) -> bool,
    pub(crate) progress: Progress<'j>,
    pub(crate) cancel: &'j AtomicBool,
}

impl Join<'_> {
    /// Writes the segment `name`; `damage` of each part, where it is known.
    pub(crate) fn write(&self, parts: &[ListsRecord], damage: &[ListsDamage], name: &str) -> Result<ListsRecord> {
        let (first_id, entries) = (parts[0].first_id, parts.iter().map(|p| p.entries).sum());
        let codebook = self.manifest.codebook.as_ref().ok_or_else(|| {
            Error::state(Why::Broken, "expected a codebook beside lists, found none; verify the store")
        })?;
        let codebook_file = SegmentFile::open(self.folder.path(), codebook, SegmentKind::Codebook)?;
        let codebook = Codebook::open(&codebook_file, self.manifest.dim, self.manifest.metric)?;
        let none = ListsDamage::default();
        let parts = parts.iter().enumerate().map(|(i, part)| (part, damage.get(i).unwrap_or(&none)));
        let kept: Vec<_> = parts.filter(|(_, damage)| !damage.whole).collect();
        let open = |part: &ListsRecord| SegmentFile::open(self.folder.path(), &part.name, SegmentKind::Lists);
        let files = kept.iter().map(|(part, _)| open(part)).collect::<Result<Vec<_>>>()?;
        let lists = files.iter().zip(&kept).map(|(file, (part, damage))| {
            Ok(Lists::open(file, &codebook, part.first_id, part.entries)?.losing(&damage.positions))
        });
        let lists = lists.collect::<Result<Vec<_>>>()?;
        let mut segment = SegmentWriter::create(self.folder, name, SegmentKind::Lists)?;
        merge_lists(&codebook, &lists, first_id, self.keep, self.progress, self.cancel, &mut segment)?;
        Ok(ListsRecord { name: segment.finish()?, first_id, entries })
    }
}
