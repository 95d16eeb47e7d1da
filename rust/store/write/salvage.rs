//! What can be kept of a damaged store: which documents have damaged bytes, and how the rest is written without them.
//!
//! Checksums cover a MiB each, so that what shares a damaged MiB is lost with it: a few documents of a data segment, whose rows
//! lie in the order of documents; nearly all of a lists segment, whose entries lie in the order of lists, unless raw
//! keys are there to encode it anew.

use super::lists::{Context, ListsDamage};
use crate::index::Codebook;
use crate::sections::{SectionKind, typed};
use crate::store::format::damage::{self, Damage, DamagedSection};
use crate::store::format::deleted::Tombstone;
use crate::store::format::documents::{DocumentTable, Record};
use crate::store::format::manifest::Manifest;
use crate::store::format::names::joined_name;
use crate::store::format::records::ListsRecord;
use crate::store::format::segment::SegmentFile;
use crate::store::read::snapshot::{DataSegment, Piece, Snapshot};
use crate::work::Progress;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// A document that cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its name, where it has one that can be read.
    pub name: Option<String>,
    /// Its ids; where records are damaged, all ids of such documents that follow each other, at the first of them.
    pub ids: Range<u64>,
    /// What of it is damaged: names of sections.
    pub damaged: Vec<String>,
}

/// A document record and what is known of it.
struct Slot {
    ids: Option<Range<u64>>,
    name: Option<String>,
    deleted: bool,
    damaged: BTreeSet<&'static str>,
}

/// What is damaged of a store.
pub(crate) struct Salvage {
    slots: Vec<Slot>,
    /// For each lists segment.
    pub(crate) lists: Vec<ListsDamage>,
    /// Whether anything is damaged at all.
    pub(crate) any: bool,
}

impl Salvage {
    /// Reads every byte.
    pub(crate) fn of(snapshot: &Snapshot, progress: Progress, cancel: &AtomicBool) -> Result<Salvage> {
        let total: u64 = snapshot.files().map(|(_, file)| file.bytes()).sum();
        let done = std::cell::Cell::new(0);
        let damages = |file: &SegmentFile| -> Result<Vec<Damage>> {
            let read = |bytes: u64| {
                done.set(done.get() + bytes);
                progress("verify", done.get(), total);
            };
            let found = file.verify(&read, cancel);
            if cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(found) }
        };
        let slots = slots(snapshot)?;
        let mut salvage = Salvage { slots, lists: Vec::new(), any: false };
        for segment in &snapshot.data {
            let found = damages(&segment.file)?;
            salvage.any |= !found.is_empty();
            for section in found.into_iter().filter_map(|damage| damage.section) {
                salvage.note_data(segment, &section)?;
            }
        }
        if let Some(file) = &snapshot.codebook {
            let found = damages(file)?;
            salvage.any |= !found.is_empty();
            if let Some(damage) = found.into_iter().find(|damage| damage.section.is_some()) {
                let section = damage.section.map_or_else(String::new, |s| s.name);
                let message = format!(
                    "section {section}: {}: no code means anything without it; retrain from raw keys or with the model, or put the file back from a copy",
                    damage.message
                );
                return Err(Error::Format { path: file.path().to_path_buf(), message });
            }
        }
        for (file, record) in snapshot.lists.iter().zip(&snapshot.manifest.lists) {
            let found = damages(file)?;
            salvage.any |= !found.is_empty();
            let sections: Vec<DamagedSection> = found.into_iter().filter_map(|damage| damage.section).collect();
            let own = salvage.note_lists(snapshot, file, record, &sections)?;
            salvage.lists.push(own);
        }
        Ok(salvage)
    }

    /// The documents that cannot be kept.
    pub(crate) fn lost(&self) -> Vec<Lost> {
        let describe = |(_, ids, slot): (u64, Range<u64>, &Slot)| Lost {
            name: slot.name.clone(),
            ids,
            damaged: slot.damaged.iter().map(|&section| section.to_owned()).collect(),
        };
        self.gone().map(describe).collect()
    }

    /// What deletes them.
    pub(crate) fn tombstones(&self) -> Vec<Tombstone> {
        self.gone().map(|(record, ids, _)| Tombstone { record, start: ids.start, end: ids.end }).collect()
    }

    fn gone(&self) -> impl Iterator<Item = (u64, Range<u64>, &Slot)> {
        let numbered = (0..).zip(&self.slots).filter(|(_, slot)| !slot.deleted && !slot.damaged.is_empty());
        numbered.map(|(record, slot)| (record, slot.ids.clone().unwrap_or(0..0), slot))
    }

    /// Marks the documents that have some of the ids.
    fn mark(&mut self, ids: &Range<u64>, what: &'static str) {
        let start = |slot: &Slot| slot.ids.as_ref().map_or(0, |ids| ids.start);
        // Documents lie in the order of ids; an empty one shares its start with the next.
        let after = self.slots.partition_point(|slot| start(slot) < ids.end);
        for slot in self.slots[..after].iter_mut().rev() {
            let own = slot.ids.clone().unwrap_or(0..0);
            if own.end <= ids.start && !own.is_empty() {
                break;
            }
            if own.start < ids.end && ids.start < own.end {
                slot.damaged.insert(what);
            }
        }
    }

    /// Marks the documents that a damaged section of a data segment touches. Names are sorted anew whenever documents are
    /// copied; records were looked at one by one, see [`slots`]; runs are checked when a store is opened.
    fn note_data(&mut self, segment: &DataSegment, section: &DamagedSection) -> Result<()> {
        let is = |kind: SectionKind| section.number == kind as u32;
        let entries = segment.entries() as u64;
        if is(SectionKind::Values) || is(SectionKind::Keys) {
            let Some(rows) = damage::rows(&*segment.file, section, entries) else { return Ok(()) };
            let what = if is(SectionKind::Values) { "Values" } else { "Keys" };
            segment.ids_of(rows).iter().for_each(|ids| self.mark(ids, what));
        }
        if is(SectionKind::DocumentText) {
            // Of a record that can be read only the text is in doubt.
            let records: &[Record] = typed(&*segment.file, SectionKind::Documents)?;
            for (i, record) in records.iter().enumerate() {
                let end = record.text.saturating_add(u64::from(record.name) + u64::from(record.metadata));
                if record.text < section.bytes.end && section.bytes.start < end {
                    let slot = self.slots.get_mut(segment.first_document as usize + i);
                    slot.into_iter().for_each(|slot| slot.damaged.extend(["DocumentText"]));
                }
            }
        }
        Ok(())
    }

    /// Finds out what can be kept of lists; what cannot is marked.
    fn note_lists(
        &mut self,
        snapshot: &Snapshot,
        file: &SegmentFile,
        record: &ListsRecord,
        sections: &[DamagedSection],
    ) -> Result<ListsDamage> {
        let ids = record.first_id..record.first_id + record.entries;
        if sections.is_empty() {
            return Ok(ListsDamage::default());
        }
        if snapshot.pieces(&ids).all(|piece| piece.segment.keeps_keys()) {
            return Ok(ListsDamage { encode: true, ..ListsDamage::default() });
        }
        let is = |section: &DamagedSection, kind: SectionKind| section.number == kind as u32;
        let found: Option<Vec<Range<u64>>> = sections.iter().map(|section| damage::positions(file, section)).collect();
        let Some(hit) = found.filter(|_| !sections.iter().any(|s| is(s, SectionKind::ListOffsets))) else {
            self.mark(&ids, "Codes");
            return Ok(ListsDamage { whole: true, ..ListsDamage::default() });
        };
        let listed: &[u32] = typed(file, SectionKind::ListIds)?;
        let unread: Vec<Range<u64>> = (sections.iter().zip(&hit))
            .filter(|(section, _)| is(section, SectionKind::ListIds))
            .map(|(_, positions)| positions.clone())
            .collect();
        let readable = |position: u64| !unread.iter().any(|positions| positions.contains(&position));
        // Entries at damaged positions, by their ids; where ids themselves are damaged, those that are nowhere else.
        let mut gone: Vec<u64> = Vec::new();
        for positions in &hit {
            let ids =
                positions.clone().filter(|&position| readable(position)).map(|position| listed[position as usize]);
            gone.extend(ids.map(|relative| record.first_id + u64::from(relative)));
        }
        if !unread.is_empty() {
            let there = (0u64..).zip(listed).filter(|&(position, _)| readable(position));
            let mut there: Vec<u64> = there.map(|(_, &id)| record.first_id + u64::from(id)).collect();
            there.sort_unstable();
            let missing = |id: &u64| there.binary_search(id).is_err();
            gone.extend(snapshot.pieces(&ids).flat_map(|piece| piece.ids()).filter(missing));
        }
        gone.sort_unstable();
        gone.dedup();
        for run in gone.chunk_by(|a, b| a + 1 == *b) {
            self.mark(&(run[0]..run[run.len() - 1] + 1), "Codes");
        }
        Ok(ListsDamage { positions: unread, ..ListsDamage::default() })
    }

    /// Lists segments of a manifest in the making: those that raw keys are there for are encoded anew.
    pub(crate) fn encode_lists(&self, snapshot: &Snapshot, manifest: &mut Manifest, context: &Context) -> Result<()> {
        let Some(file) = snapshot.codebook.as_deref().filter(|_| self.lists.iter().any(|lists| lists.encode)) else {
            return Ok(());
        };
        file.check_all()?;
        let codebook = Codebook::open(file, manifest.dim, manifest.metric)?;
        for (record, damage) in manifest.lists.iter_mut().zip(&self.lists) {
            if damage.encode {
                let ids = record.first_id..record.first_id + record.entries;
                snapshot.check_keys(&ids, context.cancel)?;
                let name = joined_name(manifest.generation, ids.start, record.entries);
                record.name = context.write_lists(&codebook, &snapshot.key_blocks(&ids)?, ids, &name)?.name;
            }
        }
        Ok(())
    }
}

impl Piece<'_> {
    fn ids(&self) -> Range<u64> {
        self.first_id..self.first_id + self.rows.len() as u64
    }
}

/// All records of a store, in order.
fn slots(snapshot: &Snapshot) -> Result<Vec<Slot>> {
    let mut slots: Vec<Slot> = Vec::new();
    snapshot.check_anew();
    for (segment, record) in snapshot.data.iter().zip(&snapshot.manifest.data) {
        let table = DocumentTable::open(&segment.file)?;
        for j in 0..table.len() {
            let ids = table.ids(j).ok();
            let name = table.get(j).ok().and_then(|document| document.name);
            let damaged = if ids.is_none() { BTreeSet::from(["Documents"]) } else { BTreeSet::new() };
            match slots.last_mut().filter(|_| j == 0 && record.continues) {
                // A document that goes on: its later record has all of its ids.
                Some(first) => {
                    let start = first.ids.as_ref().map(|ids| ids.start);
                    first.name = name.or(first.name.take());
                    first.damaged.extend(damaged);
                    first.ids = ids.or(start.map(|start| start..segment.ids.end));
                }
                None => slots.push(Slot { ids, name, deleted: false, damaged }),
            }
        }
    }
    for tombstone in snapshot.deleted.tombstones() {
        if let Some(slot) = slots.get_mut(tombstone.record as usize) {
            slot.deleted = true;
            slot.ids = Some(tombstone.start..tombstone.end);
        }
    }
    // Records that cannot be read stand for what lies between those that can: all of it at the first.
    let mut next = snapshot.manifest.entries;
    let mut limits = vec![next; slots.len()];
    for (slot, limit) in slots.iter().zip(&mut limits).rev() {
        next = slot.ids.as_ref().map_or(next, |ids| ids.start);
        *limit = next;
    }
    let mut end = 0;
    for (slot, limit) in slots.iter_mut().zip(limits) {
        let ids = slot.ids.get_or_insert(end..limit.max(end));
        end = ids.end.max(end);
    }
    Ok(slots)
}
