//! Compaction: rewrites segments without what is deleted, and joins lists segments.
//!
//! Codes are moved as they are, so results do not change. Old files are removed once the new generation is published;
//! a reader that still maps them keeps them alive until it refreshes or ends. Centroids, words and calibration still
//! carry statistics of deleted entries until the store is re-trained.

use super::lists::{Context, Join, LISTS_LIMIT, ListsDamage};
use super::merge::Merge;
use super::salvage::Salvage;
use crate::Result;
use crate::store::format::files::Folder;
use crate::store::format::layout::SegmentKind;
use crate::store::format::manifest::Manifest;
use crate::store::format::records::ListsRecord;
use crate::store::read::snapshot::Snapshot;
use crate::threads::Pool;
use crate::work::Progress;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// A compaction in the making.
pub(crate) struct Compaction<'c> {
    pub(crate) folder: &'c Folder,
    pub(crate) progress: Progress<'c>,
    pub(crate) cancel: &'c AtomicBool,
}

impl Compaction<'_> {
    /// Writes the files of the next generation; `salvage`: what is damaged. None if there is nothing to do.
    pub(crate) fn next(&self, snapshot: &Snapshot, salvage: Option<&Salvage>) -> Result<Option<Manifest>> {
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

/// Data segments that can become one: neighbors with raw keys of the same type, or without.
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
