//! A new index for entries whose raw keys are gone: whoever can compute them again stages a codebook and lists in another
//! folder, part by part; one generation then takes them all in.
//!
//! Staged files stay where they are until their owner removes them: the store gets a copy of the codebook and the lists
//! joined, so that a crash at any moment leaves either nothing in the store or all of it.

use super::batch::check_sample;
use super::build::{BuildOptions, Context, Encoded, drop_keys};
use super::calibrate::with_new_index;
use super::compact::LISTS_LIMIT;
use super::datastore::Datastore;
use super::drift::{Fit, finite};
use super::files::{Disk, Folder};
use super::layout::{SegmentKind, SegmentName};
use super::lock::Lock;
use super::manifest::{ListsRecord, Manifest};
use super::segment::SegmentFile;
use super::segment_writer::SegmentWriter;
use super::snapshot::Snapshot;
use crate::error::Why;
use crate::index::{Codebook, Lists, Progress, merge_lists, train};
use crate::keys::{KeyBlock, KeyRows};
use crate::search::calibrate::measure_against;
use crate::search::{Calibration, Pool, Truth};
use crate::sections::{SectionKind, SectionSource};
use crate::{Error, Result};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The writer's lock on a store at one generation, for work that takes long; let go when dropped.
#[derive(Debug)]
pub struct Held {
    generation: u64,
    lock: Arc<Lock>,
}

/// A codebook and lists of all entries, in files of another folder.
#[derive(Clone, Copy, Debug)]
pub struct Staged<'s> {
    /// Where they lie.
    pub folder: &'s Path,
    /// What [`Datastore::stage_codebook`] returned.
    pub codebook: &'s SegmentName,
    /// What [`Datastore::stage_lists`] returned, by ascending ids.
    pub lists: &'s [Encoded],
}

impl Datastore {
    /// Commits what was added, moves to the newest generation and keeps other writers out; this object may write.
    ///
    /// # Errors
    /// `State` if another writer holds the store; `Io`.
    pub fn hold(&self) -> Result<Held> {
        let mut guard = self.writing()?;
        self.commit_held(&mut guard)?;
        let lock = self.begin()?;
        *self.held() = Arc::downgrade(&lock);
        Ok(Held { generation: self.generation(), lock })
    }

    /// Learns a codebook from a sample of keys, into the file `name` of another folder; the store stays as it is.
    ///
    /// # Errors
    /// `Argument` for keys or parameters that do not fit; `Interrupted`; `Io`.
    pub fn stage_codebook(
        &self,
        folder: &Path,
        name: &str,
        sample: KeyRows,
        options: &BuildOptions,
        progress: Progress,
        cancel: &AtomicBool,
    ) -> Result<SegmentName> {
        let (pool, d) = (Pool::get(options.threads)?, self.dim());
        check_sample(d, &sample)?;
        let folder = Folder::new(folder, Arc::new(Disk));
        let mut segment = SegmentWriter::create(&folder, name, SegmentKind::Codebook)?;
        let block = KeyBlock { first_id: 0, d, rows: sample };
        train(&[block], self.metric(), &options.params, &pool, progress, cancel, &mut segment)?;
        let name = segment.finish()?;
        folder.sync()?;
        Ok(name)
    }

    /// Encodes keys with a staged codebook into the file `name` of its folder, without the lock: any number of processes
    /// may do so at once. The lists stand for `ids`, of which `runs` (first id, number), ascending, have the keys.
    ///
    /// # Errors
    /// `Argument` for keys or ids that do not fit; `Format` for a codebook that does not; `Interrupted`; `Io`.
    #[expect(clippy::too_many_arguments, reason = "keys, their ids and where they go")]
    pub fn stage_lists(
        &self,
        folder: &Path,
        codebook: &SegmentName,
        keys: KeyRows,
        runs: &[(u64, u64)],
        ids: Range<u64>,
        name: &str,
        threads: Option<usize>,
        cancel: &AtomicBool,
    ) -> Result<Encoded> {
        let d = self.dim();
        check_sample(d, &keys)?;
        let mut end = ids.start;
        let fits = runs.iter().all(|&(first, n)| {
            let fits = n > 0 && first >= end && first.checked_add(n).is_some_and(|stop| stop <= ids.end);
            end = first.saturating_add(n);
            fits
        });
        let rows: u64 = runs.iter().map(|run| run.1).fold(0, u64::saturating_add);
        if !fits || rows != (keys.len() / d) as u64 || ids.end - ids.start > LISTS_LIMIT {
            return Err(Error::Argument(format!(
                "ids: expected ascending runs in {ids:?} (at most {LISTS_LIMIT}) of as many entries as keys, {}, found {rows} in {} runs",
                keys.len() / d,
                runs.len()
            )));
        }
        let mut blocks = Vec::with_capacity(runs.len());
        let mut at = 0;
        for &(first_id, n) in runs {
            let span = at..at + n as usize * d;
            let rows = match keys {
                KeyRows::F32(x) => KeyRows::F32(&x[span.clone()]),
                KeyRows::F16(x) => KeyRows::F16(&x[span.clone()]),
            };
            blocks.push(KeyBlock { first_id, d, rows });
            at = span.end;
        }
        let file = SegmentFile::open(folder, codebook, SegmentKind::Codebook)?;
        let codebook = Codebook::open(&file, d, self.metric())?;
        let folder = Folder::new(folder, Arc::new(Disk));
        let pool = Pool::get(threads)?;
        let context = Context { folder: &folder, pool: &pool, progress: &|_, _, _| (), cancel };
        let encoded = context.write_lists(&codebook, &blocks, ids, name)?;
        folder.sync()?;
        Ok(encoded)
    }

    /// Publishes a staged index as the next generation: entries, ids and documents stay, deleted ones get no codes. The
    /// recall is measured against `truth`. Staged files stay; nothing in them is trusted.
    ///
    /// # Errors
    /// `State` for a lock on another store or generation; `Format`, naming the file, for staged files that are damaged or do not
    /// hold codes of exactly the entries that are there; `Interrupted`; `Io`. The store is then as it was.
    pub fn reindex(
        &self,
        held: &Held,
        staged: Staged,
        truth: &Truth,
        threads: Option<usize>,
        progress: Progress,
        cancel: &AtomicBool,
    ) -> Result<()> {
        let pool = Pool::get(threads)?;
        let _writing = self.writing()?;
        if self.held().upgrade().is_none_or(|lock| !Arc::ptr_eq(&lock, &held.lock)) {
            return Err(Error::state(
                Why::Broken,
                format!(
                    "{}: expected the lock that this store's `hold` returned, found that of another; hold this one",
                    self.path().display()
                ),
            ));
        }
        if held.generation != self.generation() {
            return Err(Error::state(
                Why::Changed,
                format!(
                    "{}: expected to be at generation {}, which is held, found {}; hold it again and stage anew",
                    self.path().display(),
                    held.generation,
                    self.generation()
                ),
            ));
        }
        self.publish_locked(&held.lock, |snapshot| {
            Reindex { folder: &self.folder, snapshot, staged, pool: &pool, progress, cancel }.next(truth)
        })
    }
}

struct Reindex<'r> {
    folder: &'r Folder,
    snapshot: &'r Snapshot,
    staged: Staged<'r>,
    pool: &'r Pool,
    progress: Progress<'r>,
    cancel: &'r AtomicBool,
}

impl Reindex<'_> {
    /// Writes the files of the next generation.
    fn next(&self, truth: &Truth) -> Result<Option<Manifest>> {
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
