//! A new index for entries whose raw keys are gone: whoever can compute them again stages a codebook and lists in another
//! folder, part by part; one generation then takes them all in.
//!
//! Staged files stay where they are until their owner removes them: the store gets a copy of the codebook and the lists
//! joined, so that a crash at any moment leaves either nothing in the store or all of it.

use super::lists::{Encoded, LISTS_LIMIT};
use super::merge::drop_keys;
use super::recall::with_new_index;
use crate::index::{Codebook, Lists, merge_lists};
use crate::search::measure_against;
use crate::search::{Calibration, Truth};
use crate::sections::{SectionKind, SectionSource};
use crate::store::format::files::Folder;
use crate::store::format::fit::{Fit, finite};
use crate::store::format::layout::{SegmentKind, SegmentName};
use crate::store::format::manifest::Manifest;
use crate::store::format::records::ListsRecord;
use crate::store::format::segment::SegmentFile;
use crate::store::format::segment_writer::SegmentWriter;
use crate::store::read::snapshot::Snapshot;
use crate::threads::Pool;
use crate::work::Progress;
use crate::{Error, Result};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// A codebook and lists of all entries, in files of another folder.
#[derive(Clone, Copy, Debug)]
pub struct Staged<'s> {
    /// Where they lie.
    pub folder: &'s Path,
    /// What [`stage_codebook`](crate::store::Datastore::stage_codebook) returned.
    pub codebook: &'s SegmentName,
    /// What [`stage_lists`](crate::store::Datastore::stage_lists) returned, by ascending ids.
    pub lists: &'s [Encoded],
}

/// A new index in the making.
pub(crate) struct Reindex<'r> {
    pub(crate) folder: &'r Folder,
    pub(crate) snapshot: &'r Snapshot,
    pub(crate) staged: Staged<'r>,
    pub(crate) pool: &'r Pool,
    pub(crate) progress: Progress<'r>,
    pub(crate) cancel: &'r AtomicBool,
}

impl Reindex<'_> {
    /// Writes the files of the next generation.
    pub(crate) fn next(&self, truth: &Truth) -> Result<Option<Manifest>> {
        self.staged.lists.iter().try_for_each(Encoded::check)?;
        let mut manifest = self.snapshot.manifest.next(self.folder)?;
        manifest.codebook = Some(self.copy_codebook(manifest.generation)?);
        manifest.lists = self.join(manifest.generation)?;
        manifest.fit = self.fit();
        manifest.calibration = self.calibrate(&manifest, truth)?;
        if manifest.keep_keys.is_none() {
            drop_keys(self.folder, self.snapshot, &mut manifest, self.progress, self.cancel)?;
        }
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        Ok(Some(manifest))
    }

    /// Opens a staged file and reads every byte of it.
    fn open(&self, name: &SegmentName, kind: SegmentKind) -> Result<SegmentFile> {
        if Path::new(&name.file).file_name().is_none_or(|plain| plain != name.file.as_str()) {
            return Err(Error::Argument(format!("staged file: expected a plain name, found {:?}", name.file)));
        }
        let file = SegmentFile::open(self.staged.folder, name, kind)?;
        let damage = file.verify(&|_| (), self.cancel).into_iter().next();
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        damage.map_or(Ok(()), |damage| Err(file.format_error(format!("{}; stage it again", damage.message))))?;
        Ok(file)
    }

    fn copy_codebook(&self, generation: u64) -> Result<SegmentName> {
        let file = self.open(self.staged.codebook, SegmentKind::Codebook)?;
        Codebook::open(&file, self.snapshot.manifest.dim, self.snapshot.manifest.metric)?;
        let name = SegmentKind::Codebook.file_name(generation);
        let mut segment = SegmentWriter::create(self.folder, &name, SegmentKind::Codebook)?;
        for section in file.sections().iter().filter(|s| s.number != SectionKind::Checksums as u32) {
            let kind = SectionKind::from_number(section.number).ok_or_else(|| {
                file.format_error(format!("expected sections of a codebook, found {}; stage it again", section.name()))
            })?;
            segment.section(kind, section.element, file.section(kind)?)?;
        }
        segment.finish()
    }

    /// Joins the staged lists, as many in a file as it can hold; they must have the live entries and no others.
    fn join(&self, generation: u64) -> Result<Vec<ListsRecord>> {
        let manifest = &self.snapshot.manifest;
        let codebook = self.open(self.staged.codebook, SegmentKind::Codebook)?;
        let codebook = Codebook::open(&codebook, manifest.dim, manifest.metric)?;
        let ranges = self.ranges()?;
        let opened = self.staged.lists.iter().map(|part| self.open(&part.name, SegmentKind::Lists));
        let files = opened.collect::<Result<Vec<_>>>()?;
        let mut parts: Vec<(Range<u64>, Lists)> = Vec::with_capacity(files.len());
        for ((file, ids), part) in files.iter().zip(ranges).zip(self.staged.lists) {
            let lists = Lists::open(file, &codebook, ids.start, ids.end - ids.start)?;
            let live: u64 = self.snapshot.pieces(&ids).map(|piece| piece.rows.len() as u64).sum();
            if [lists.len() as u64, part.live] != [live; 2] {
                return Err(file.format_error(format!(
                    "expected codes of the {live} entries with ids {ids:?}, found {}; stage it again",
                    lists.len()
                )));
            }
            parts.push((ids, lists));
        }
        let mut records: Vec<ListsRecord> = Vec::new();
        while !parts.is_empty() {
            let start = parts[0].0.start;
            let count = parts.iter().take_while(|(ids, _)| ids.end - start <= LISTS_LIMIT).count().max(1);
            let (ids, lists): (Vec<Range<u64>>, Vec<Lists>) = parts.drain(..count).unzip();
            let end = ids[ids.len() - 1].end;
            let name = SegmentKind::Lists.part_name(generation, records.is_empty(), start);
            let mut segment = SegmentWriter::create(self.folder, &name, SegmentKind::Lists)?;
            let keep = |id| self.snapshot.locate(id).is_some();
            merge_lists(&codebook, &lists, start, &keep, self.progress, self.cancel, &mut segment)?;
            let record = ListsRecord { name: segment.finish()?, first_id: start, entries: end - start };
            let file = SegmentFile::open(self.folder.path(), &record.name, SegmentKind::Lists)?;
            let found = Lists::open(&file, &codebook, start, record.entries)?.len();
            let staged: usize = lists.iter().map(Lists::len).sum();
            if found != staged {
                return Err(Error::format(
                    self.staged.folder,
                    format!(
                        "expected codes of entries that are there, found {} others; stage them again",
                        staged - found
                    ),
                ));
            }
            records.push(record);
        }
        Ok(records)
    }

    /// Ids that each staged file stands for; the last one also for all deleted ones after it.
    fn ranges(&self) -> Result<Vec<Range<u64>>> {
        let entries = self.snapshot.manifest.entries;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut start = 0u64;
        for part in self.staged.lists {
            let end = start.checked_add(part.entries).filter(|&end| end <= entries);
            let Some(end) = end else {
                return Err(Error::Argument(format!(
                    "staged lists: expected ids up to {entries}, found {} more from {start}; stage them again",
                    part.entries
                )));
            };
            ranges.push(start..end);
            start = end;
        }
        match ranges.last_mut() {
            Some(last) => last.end = entries,
            None => return Err(Error::Argument("staged lists: expected at least one, found none".into())),
        }
        Ok(ranges)
    }

    /// The codebook stands for all entries: nothing counts as added since.
    fn fit(&self) -> Option<Fit> {
        let live = self.snapshot.manifest.live();
        let sum: f64 = self.staged.lists.iter().map(|part| f64::from(part.error) * part.live as f64).sum();
        (live > 0).then(|| Fit { trained_error: finite(sum / live as f64), ..Fit::default() })
    }

    fn calibrate(&self, manifest: &Manifest, truth: &Truth) -> Result<Option<Calibration>> {
        truth.check(manifest.dim)?;
        with_new_index(self.folder, manifest, Vec::new(), self.snapshot.deleted.spans(), |corpus| {
            let shown = |done: u64, total: u64| (self.progress)("measure recall", done, total);
            measure_against(corpus, truth, manifest.keep_keys.is_some(), self.pool, &shown, self.cancel)
        })
    }
}
