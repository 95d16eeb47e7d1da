//! Builds the index of a store: trains a codebook, writes lists, drops raw keys that need not be kept.
//!
//! Everything goes to new files; one manifest makes them the next generation. A build that fails or is interrupted
//! leaves the store as it was.

use super::datastore::Datastore;
use super::documents::{DocumentTable, NAMED, Record};
use super::files::Folder;
use super::lookup::keys_not_kept;
use super::manifest::{DataRecord, ListsRecord, Manifest, collect};
use super::segment::{SegmentFile, SegmentKind, SegmentName};
use super::segment_writer::SegmentWriter;
use super::snapshot::Snapshot;
use super::writer::{data_name, value_element};
use crate::index::{CodeChoice, Codebook, Params, Progress, train, write_lists};
use crate::search::Pool;
use crate::sections::{Element, SectionKind, SectionSink, SectionSource};
use crate::{Error, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Entries of one lists segment: its ids are 32-bit numbers relative to its first.
const LISTS_LIMIT: u64 = u32::MAX as u64;

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
        let mut guard = self.writing();
        self.commit_held(&mut guard)?;
        let lock = self.begin()?;
        let snapshot = self.snapshot();
        let build = Build { folder: &self.folder, snapshot: &snapshot, pool: &pool, progress, cancel };
        let outcome = build.next(options).and_then(|next| match next {
            Some(manifest) => manifest.publish(&self.folder).and_then(|()| self.switch(manifest)),
            None => Ok(()),
        });
        if outcome.is_err() {
            let _ = self.refresh();
            collect(&self.folder, &self.snapshot().manifest);
        }
        drop(lock);
        outcome
    }
}

struct Build<'b> {
    folder: &'b Folder,
    snapshot: &'b Snapshot,
    pool: &'b Pool,
    progress: Progress<'b>,
    cancel: &'b AtomicBool,
}

impl Build<'_> {
    /// Writes the files of the next generation; none if there is nothing to index.
    fn next(&self, options: &BuildOptions) -> Result<Option<Manifest>> {
        let mut manifest = self.snapshot.manifest.clone();
        if manifest.entries == 0 {
            return Ok(None);
        }
        manifest.generation += 1;
        let train_anew = manifest.codebook.is_none() || options.retrain;
        if train_anew {
            if !self.snapshot.has_all_keys() {
                return Err(keys_not_kept(self.snapshot, "build with retrain=True"));
            }
            manifest.codebook = Some(self.train(&manifest, &options.params)?);
            manifest.lists.clear();
        } else {
            self.check_same_parameters(&options.params)?;
        }
        let indexed = manifest.indexed();
        if indexed == manifest.entries {
            return Ok(None);
        }
        self.write_all_lists(&mut manifest, indexed)?;
        if manifest.keep_keys.is_none() {
            self.drop_keys(&mut manifest)?;
        }
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        Ok(Some(manifest))
    }

    fn train(&self, manifest: &Manifest, params: &Params) -> Result<SegmentName> {
        let name = format!("codebook-{:08}.seg", manifest.generation);
        let mut segment = SegmentWriter::create(self.folder, &name, SegmentKind::Codebook)?;
        let keys = self.snapshot.key_blocks(&(0..manifest.entries))?;
        train(&keys, manifest.metric, params, self.pool, self.progress, self.cancel, &mut segment)?;
        segment.finish()
    }

    /// New entries get the codes of the old ones; other wishes need a new codebook.
    fn check_same_parameters(&self, params: &Params) -> Result<()> {
        let same = |codebook: &Codebook| {
            let nlist = params.nlist.filter(|&n| n != codebook.nlist());
            let code = match params.code {
                // 4-bit codes are padded to whole units of 8 sub-quantisers.
                CodeChoice::Pq { m, bits: 4 } if (m.next_multiple_of(8), 4) == (codebook.m(), codebook.bits()) => None,
                CodeChoice::Pq { m, bits } if (m, bits) != (codebook.m(), codebook.bits()) => Some((m, bits)),
                _ => None,
            };
            if nlist.is_none() && code.is_none() {
                return Ok(());
            }
            Err(Error::Argument(format!(
                "expected the parameters that the store was built with (nlist {}, code {:?}) or retrain=True, found nlist {:?}, code {:?}",
                codebook.nlist(),
                (codebook.m(), codebook.bits()),
                params.nlist,
                params.code
            )))
        };
        self.snapshot.with_index(|codebook, _| same(codebook)).map(|_| ())
    }

    fn write_all_lists(&self, manifest: &mut Manifest, indexed: u64) -> Result<()> {
        let Some(name) = &manifest.codebook else { return Ok(()) };
        let file = SegmentFile::open(self.folder.path(), name, SegmentKind::Codebook)?;
        let codebook = Codebook::open(&file, manifest.dim, manifest.metric)?;
        let mut start = indexed;
        while start < manifest.entries {
            let ids = start..manifest.entries.min(start + LISTS_LIMIT);
            let name = self.write_lists(&codebook, manifest, &ids, start == indexed)?;
            manifest.lists.push(ListsRecord { name, first_id: ids.start, entries: ids.end - ids.start });
            start = ids.end;
        }
        Ok(())
    }

    fn write_lists(
        &self,
        codebook: &Codebook,
        manifest: &Manifest,
        ids: &Range<u64>,
        first: bool,
    ) -> Result<SegmentName> {
        let part = if first { String::new() } else { format!("-{}", ids.start) };
        let name = format!("lists-{:08}{part}.seg", manifest.generation);
        let mut segment = SegmentWriter::create(self.folder, &name, SegmentKind::Lists)?;
        let keys = self.snapshot.key_blocks(ids)?;
        write_lists(codebook, &keys, self.pool, self.progress, self.cancel, &mut segment)?;
        segment.finish()
    }

    /// Copies values and documents of all segments with raw keys into one without.
    fn drop_keys(&self, manifest: &mut Manifest) -> Result<()> {
        let Some(first) = manifest.data.iter().position(|d| d.keys.is_some()) else { return Ok(()) };
        let old = &self.snapshot.data[first..];
        let total: u64 = old.iter().map(|s| s.entries).sum();
        let mut segment = SegmentWriter::create(self.folder, &data_name(manifest.generation), SegmentKind::Data)?;
        segment.begin_as(SectionKind::Values, value_element(manifest.values))?;
        let mut done = 0;
        for s in old {
            for chunk in s.file.section(SectionKind::Values)?.chunks(1 << 24) {
                if self.cancel.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                segment.write(chunk)?;
            }
            done += s.entries;
            (self.progress)("drop raw keys", done, total);
        }
        segment.end()?;
        let merged = merge_documents(old.iter().map(|s| &s.file), &manifest.data[first..])?;
        segment.section(SectionKind::Documents, Element::Bytes, bytemuck::cast_slice(&merged.records))?;
        segment.section(SectionKind::DocumentText, Element::Bytes, &merged.text)?;
        segment.section(SectionKind::DocumentNames, Element::U32, bytemuck::cast_slice(&merged.names))?;
        let record = DataRecord {
            name: segment.finish()?,
            first_id: manifest.data[first].first_id,
            entries: total,
            keys: None,
            documents: merged.records.len() as u64,
            continues: manifest.data[first].continues,
        };
        manifest.data.truncate(first);
        manifest.data.push(record);
        Ok(())
    }
}

struct Merged {
    records: Vec<Record>,
    text: Vec<u8>,
    names: Vec<u32>,
}

/// One document table of several consecutive ones; a document that goes on keeps its later record.
fn merge_documents<'a>(files: impl Iterator<Item = &'a SegmentFile>, data: &[DataRecord]) -> Result<Merged> {
    let mut merged = Merged { records: Vec::new(), text: Vec::new(), names: Vec::new() };
    let mut named: Vec<(String, u32)> = Vec::new();
    for (i, (file, record)) in files.zip(data).enumerate() {
        if i > 0 && record.continues {
            let dropped = merged.records.pop();
            if dropped.is_some_and(|r| r.flags & NAMED != 0) {
                named.pop();
            }
            merged.text.truncate(dropped.map_or(merged.text.len(), |r| r.text as usize));
        }
        let table = DocumentTable::open(file)?;
        for j in 0..table.len() {
            let document = table.get(j)?;
            let number = u32::try_from(merged.records.len()).map_err(|_| {
                Error::State("expected at most 4294967295 documents in one build; build more often".into())
            })?;
            let name = document.name.as_deref().unwrap_or("");
            let metadata = document.metadata.as_deref().unwrap_or("");
            merged.records.push(Record {
                start: document.start,
                end: document.end,
                text: merged.text.len() as u64,
                name: name.len() as u32,
                metadata: metadata.len() as u32,
                flags: if document.name.is_some() { NAMED } else { 0 },
                reserved: 0,
            });
            merged.text.extend(name.as_bytes());
            merged.text.extend(metadata.as_bytes());
            named.extend(document.name.map(|name| (name, number)));
        }
    }
    named.sort_unstable();
    merged.names = named.into_iter().map(|(_, number)| number).collect();
    Ok(merged)
}
