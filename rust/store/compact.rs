//! Compaction: rewrites segments without what is deleted, and joins lists segments.
//!
//! Codes are moved as they are, so results do not change. Old files are removed once the new generation is published;
//! a reader that still maps them keeps them alive until it refreshes or ends. Centroids, words and calibration still
//! carry statistics of deleted entries until the store is re-trained.

use super::build::Context;
use super::collect::collect;
use super::datastore::Datastore;
use super::files::Folder;
use super::layout::SegmentKind;
use super::lock::Lock;
use super::manifest::{ListsRecord, Manifest};
use super::merge::Merge;
use super::names::joined_name;
use super::salvage::{ListsDamage, Lost, Salvage};
use super::segment::SegmentFile;
use super::segment_writer::SegmentWriter;
use super::snapshot::Snapshot;
use crate::error::{Action, Why};
use crate::index::{Codebook, Lists, Progress, merge_lists};
use crate::search::Pool;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// A lists segment joins the one before if that is at most this many times its size: so a store that grows by many
/// small additions has few of them, and every entry is moved a few times only.
const TIER: u64 = 3;

/// Entries of one lists segment: its ids are 32-bit numbers relative to its first.
pub(crate) const LISTS_LIMIT: u64 = u32::MAX as u64;

impl Datastore {
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
}

/// A compaction in the making.
struct Compaction<'c> {
    folder: &'c Folder,
    progress: Progress<'c>,
    cancel: &'c AtomicBool,
}

impl Compaction<'_> {
    /// Writes the files of the next generation; `salvage`: what is damaged. None if there is nothing to do.
    fn next(&self, snapshot: &Snapshot, salvage: Option<&Salvage>) -> Result<Option<Manifest>> {
        let (folder, progress, cancel) = (self.folder, self.progress, self.cancel);
        let old = &snapshot.manifest;
        let groups = groups(old);
        let tidy = old.deleted.is_none() && groups.len() == old.data.len() && old.lists.len() <= 1;
        if tidy && salvage.is_none() {
            return Ok(None);
        }
        let mut manifest = old.next(folder)?;
        manifest.deleted = None;
        manifest.data = Vec::new();
        for (i, segments) in groups.into_iter().enumerate() {
            let first_id = old.data[segments.start].first_id;
            let name = SegmentKind::Data.part_name(manifest.generation, i == 0, first_id);
            let keys = old.data[segments.start].keys.is_some();
            let merge = Merge { folder, snapshot, segments, keys, drop_deleted: true, progress, cancel };
            manifest.data.push(merge.write(&name)?);
        }
        let keep = |id| !snapshot.deleted.holds_id(id);
        let mut damage = salvage.map_or_else(Vec::new, |salvage| salvage.lists.clone());
        if let Some(salvage) = salvage {
            let pool = Pool::get(None)?;
            salvage.encode_lists(snapshot, &mut manifest, &Context { folder, pool: &pool, progress, cancel })?;
        }
        damage.resize(manifest.lists.len(), ListsDamage::default());
        let mut lists = std::mem::take(&mut manifest.lists);
        let mut first = true;
        while !lists.is_empty() {
            let start = lists[0].first_id;
            let fits = |l: &&ListsRecord| l.first_id + l.entries - start <= LISTS_LIMIT;
            let count = lists.iter().take_while(fits).count().max(1);
            let name = SegmentKind::Lists.part_name(manifest.generation, first, start);
            let parts: Vec<ListsRecord> = lists.drain(..count).collect();
            let damage: Vec<ListsDamage> = damage.drain(..count).collect();
            let join = Join { folder, manifest: old, keep: &keep, progress, cancel };
            manifest.lists.push(join.write(&parts, &damage, &name)?);
            first = false;
        }
        Ok(Some(manifest))
    }
}

/// Data segments that can become one: neighbours with raw keys of the same type, or without.
fn groups(manifest: &Manifest) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    for (i, data) in manifest.data.iter().enumerate() {
        match groups.last_mut() {
            Some(last) if manifest.data[last.start].keys == data.keys => last.end = i + 1,
            _ => groups.push(i..i + 1),
        }
    }
    groups
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

/// Lists segments that become one.
struct Join<'j> {
    folder: &'j Folder,
    /// With the codebook that they share.
    manifest: &'j Manifest,
    keep: &'j dyn Fn(u64) -> bool,
    progress: Progress<'j>,
    cancel: &'j AtomicBool,
}

impl Join<'_> {
    /// Writes the segment `name`; `damage` of each part, where it is known.
    fn write(&self, parts: &[ListsRecord], damage: &[ListsDamage], name: &str) -> Result<ListsRecord> {
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
            Ok(Lists::open(file, &codebook, part.first_id, part.entries)?.losing(&damage.places))
        });
        let lists = lists.collect::<Result<Vec<_>>>()?;
        let mut segment = SegmentWriter::create(self.folder, name, SegmentKind::Lists)?;
        merge_lists(&codebook, &lists, first_id, self.keep, self.progress, self.cancel, &mut segment)?;
        Ok(ListsRecord { name: segment.finish()?, first_id, entries })
    }
}
