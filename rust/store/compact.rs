//! Compaction: rewrites segments without what is deleted, and joins lists segments.
//!
//! Codes are moved as they are, so results do not change. Old files are removed once the new generation is published;
//! a reader that still maps them keeps them alive until it refreshes or ends. Centroids, words and calibration still
//! carry statistics of deleted entries until the store is re-trained.

use super::datastore::Datastore;
use super::files::Folder;
use super::lock::Lock;
use super::manifest::{ListsRecord, Manifest, collect};
use super::merge::Merge;
use super::segment::{SegmentFile, SegmentKind};
use super::segment_writer::SegmentWriter;
use super::snapshot::Snapshot;
use super::writer::data_name;
use crate::index::{Codebook, Lists, Progress, merge_lists};
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
    /// nothing deleted and nothing to join. What interrupted work has staged of deleted text goes, too.
    ///
    /// # Errors
    /// `State` for a second writer; `Interrupted`; `Io`. The store is then as it was, or, where the path is of a file or folder
    /// that cannot be removed, compacted; compacting again removes it.
    pub fn compact(&self, progress: Progress, cancel: &AtomicBool) -> Result<()> {
        let mut guard = self.writing();
        self.commit_held(&mut guard)?;
        let lock = self.begin()?;
        let before = self.generation();
        self.publish_locked(&lock, |snapshot| self.compacted(snapshot, progress, cancel))?;
        self.remove_staged(self.generation() != before)?;
        self.remove_replaced(&lock)
    }

    /// Makes sure that files which the store no longer names are gone, after a loss of power too: deleted text is in them.
    fn remove_replaced(&self, lock: &Lock) -> Result<()> {
        lock.check(&self.folder)?;
        collect(&self.folder, &self.snapshot().manifest).map_or(Ok(()), Err)?;
        self.folder.sync().map_err(|error| match error {
            Error::Io { path, source, .. } => Error::Io { path, action: "remove files for good", source },
            other => other,
        })
    }

    fn compacted(&self, snapshot: &Snapshot, progress: Progress, cancel: &AtomicBool) -> Result<Option<Manifest>> {
        let old = &snapshot.manifest;
        let groups = groups(old);
        if old.deleted.is_none() && groups.len() == old.data.len() && old.lists.len() <= 1 {
            return Ok(None);
        }
        let mut manifest = old.clone();
        manifest.generation += 1;
        manifest.deleted = None;
        manifest.data = Vec::new();
        for (i, segments) in groups.into_iter().enumerate() {
            let first_id = old.data[segments.start].first_id;
            let name = part_name(&data_name(manifest.generation), i == 0, first_id);
            let keys = old.data[segments.start].keys.is_some();
            let merge = Merge { folder: &self.folder, snapshot, segments, keys, drop_deleted: true, progress, cancel };
            manifest.data.push(merge.write(&name)?);
        }
        let keep = |id| !snapshot.deleted.holds_id(id);
        let mut lists = std::mem::take(&mut manifest.lists);
        let mut first = true;
        while !lists.is_empty() {
            let start = lists[0].first_id;
            let fits = |l: &&ListsRecord| l.first_id + l.entries - start <= LISTS_LIMIT;
            let count = lists.iter().take_while(fits).count().max(1);
            let name = part_name(&lists_name(manifest.generation), first, start);
            let parts: Vec<ListsRecord> = lists.drain(..count).collect();
            let joined = join(&self.folder, old, &parts, &name, &keep, progress, cancel)?;
            manifest.lists.push(joined);
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

/// Name of a lists segment of a generation.
pub(crate) fn lists_name(generation: u64) -> String {
    format!("lists-{generation:08}.seg")
}

/// The name itself, or for a further part of the same generation the name with its first id.
pub(crate) fn part_name(name: &str, first: bool, first_id: u64) -> String {
    let stem = name.strip_suffix(".seg").unwrap_or(name);
    if first { name.to_owned() } else { format!("{stem}-{first_id}.seg") }
}

/// Joins the last lists segments of a manifest in the making while the last is not much smaller than the one before.
pub(crate) fn join_small_lists(folder: &Folder, manifest: &mut Manifest, cancel: &AtomicBool) -> Result<()> {
    let mut from = manifest.lists.len();
    let mut total = 0;
    for (i, lists) in manifest.lists.iter().enumerate().rev() {
        let fits = total == 0 || (lists.entries <= TIER * total && lists.entries + total <= LISTS_LIMIT);
        if !fits {
            break;
        }
        (from, total) = (i, total + lists.entries);
    }
    if manifest.lists.len() - from < 2 {
        return Ok(());
    }
    let parts = manifest.lists.split_off(from);
    let name = format!("lists-{:08}-{}-{}.seg", manifest.generation, parts[0].first_id, total);
    let joined = join(folder, manifest, &parts, &name, &|_| true, &|_, _, _| (), cancel)?;
    for part in &parts {
        if part.name.file.starts_with(&format!("lists-{:08}", manifest.generation)) {
            // Written by this very generation, which will not name it: what stays goes once that is published.
            let _ = folder.remove(&part.name.file);
        }
    }
    manifest.lists.push(joined);
    Ok(())
}

fn join(
    folder: &Folder,
    manifest: &Manifest,
    parts: &[ListsRecord],
    name: &str,
    keep: &dyn Fn(u64) -> bool,
    progress: Progress,
    cancel: &AtomicBool,
) -> Result<ListsRecord> {
    let first_id = parts[0].first_id;
    let entries = parts.iter().map(|p| p.entries).sum();
    let mut segment = SegmentWriter::create(folder, name, SegmentKind::Lists)?;
    with_lists(folder, manifest, parts, |codebook, lists| {
        merge_lists(codebook, lists, first_id, keep, progress, cancel, &mut segment)
    })?;
    Ok(ListsRecord { name: segment.finish()?, first_id, entries })
}

/// Calls `use_lists` with the codebook of a manifest and some of its lists, opened.
pub(crate) fn with_lists<T>(
    folder: &Folder,
    manifest: &Manifest,
    records: &[ListsRecord],
    use_lists: impl FnOnce(&Codebook, &[Lists]) -> Result<T>,
) -> Result<T> {
    let name = manifest
        .codebook
        .as_ref()
        .ok_or_else(|| crate::Error::State("expected a codebook beside lists, found none; verify the store".into()))?;
    let file = SegmentFile::open(folder.path(), name, SegmentKind::Codebook)?;
    let codebook = Codebook::open(&file, manifest.dim, manifest.metric)?;
    let open = |r: &ListsRecord| SegmentFile::open(folder.path(), &r.name, SegmentKind::Lists);
    let files = records.iter().map(open).collect::<Result<Vec<_>>>()?;
    let lists = files.iter().zip(records).map(|(file, r)| Lists::open(file, &codebook, r.first_id, r.entries));
    use_lists(&codebook, &lists.collect::<Result<Vec<_>>>()?)
}
