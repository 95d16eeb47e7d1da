//! Entries that are encoded as they are added: their raw keys wait in memory and are never written.

use super::lists::{Context, Encoded, LISTS_LIMIT, join_small_lists};
use crate::index::{Codebook, Lists};
use crate::keys::{KeyBlock, KeyRows};
use crate::sections::SectionSource;
use crate::store::format::files::Folder;
use crate::store::format::layout::{SegmentKind, SegmentName};
use crate::store::format::manifest::Manifest;
use crate::store::format::segment::SegmentFile;
use crate::threads::Pool;
use crate::{Error, Result};
use half::slice::HalfFloatSliceExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Floats that wait at most: 256 MiB. Batches end at multiples of it, however the rows come.
const WAITING: usize = 64 << 20;

/// Floats of a batch of keys of dimension `d`.
pub(crate) fn batch(d: usize) -> usize {
    (WAITING / d).max(1).min(LISTS_LIMIT as usize) * d
}

/// Raw keys on their way into lists.
#[derive(Debug)]
pub(crate) struct Encoding {
    folder: Folder,
    codebook: SegmentFile,
    /// The next generation in the making: only its lists and their fit are used.
    manifest: Manifest,
    first_id: u64,
    keys: Vec<f32>,
}

impl Encoding {
    /// Starts after the entries of a manifest; none unless the store encodes what is added.
    pub(crate) fn start(folder: &Folder, base: &Manifest) -> Result<Option<Encoding>> {
        let Some(name) = base.codebook.as_ref().filter(|_| base.encode) else { return Ok(None) };
        let codebook = SegmentFile::open(folder.path(), name, SegmentKind::Codebook)?;
        codebook.check_all()?;
        let manifest = base.next(folder)?;
        Ok(Some(Encoding { folder: folder.clone(), codebook, manifest, first_id: base.entries, keys: Vec::new() }))
    }

    /// Takes rows; encodes whenever a batch is full.
    pub(crate) fn add(&mut self, rows: KeyRows) -> Result<()> {
        let (mut at, most) = (0, batch(self.manifest.dim));
        while at < rows.len() {
            let old = self.keys.len();
            let n = (most - old).min(rows.len() - at);
            match rows {
                KeyRows::F32(x) => self.keys.extend_from_slice(&x[at..at + n]),
                KeyRows::F16(x) => {
                    self.keys.resize(old + n, 0.0);
                    x[at..at + n].convert_to_f32_slice(&mut self.keys[old..]);
                }
            }
            at += n;
            if self.keys.len() == most {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Name of the next lists file of this generation.
    fn next_name(&self) -> String {
        let first = SegmentKind::Lists.file_name(self.manifest.generation);
        let mine = self.manifest.lists.iter().any(|l| l.name.file == first);
        SegmentKind::Lists.part_name(self.manifest.generation, !mine, self.first_id)
    }

    fn flush(&mut self) -> Result<()> {
        let d = self.manifest.dim;
        let keys = std::mem::take(&mut self.keys);
        let n = (keys.len() / d) as u64;
        if n == 0 {
            return Ok(());
        }
        let codebook = Codebook::open(&self.codebook, d, self.manifest.metric)?;
        let name = self.next_name();
        let (pool, never) = (Pool::get(None)?, AtomicBool::new(false));
        let context = Context { folder: &self.folder, pool: &pool, progress: &|_, _, _| (), cancel: &never };
        let block = KeyBlock { first_id: self.first_id, d, rows: KeyRows::F32(&keys) };
        let ids = self.first_id..self.first_id + n;
        let encoded = context.write_lists(&codebook, &[block], ids, &name)?;
        self.manifest.add_lists(encoded);
        self.first_id += n;
        Ok(())
    }

    /// Takes lists that `Datastore::encode_part` wrote in a folder on the same disk: the files move here.
    ///
    /// # Errors
    /// `Format` for files that are not lists of this codebook; `Io`.
    pub(crate) fn adopt(&mut self, from: &Path, parts: Vec<Encoded>) -> Result<()> {
        self.flush()?;
        let codebook = Codebook::open(&self.codebook, self.manifest.dim, self.manifest.metric)?;
        for part in parts {
            let file = SegmentFile::open(from, &part.name, SegmentKind::Lists)?;
            let found = Lists::open(&file, &codebook, self.first_id, part.entries)?.len() as u64;
            if found != part.live || part.live != part.entries {
                return Err(file.format_error(format!(
                    "expected lists of {} entries, found {found}; compute the part again",
                    part.entries
                )));
            }
            drop(file); // Windows renames no open file
            let name = self.next_name();
            self.folder.adopt(&from.join(&part.name.file), &name)?;
            self.first_id += part.entries;
            self.manifest.add_lists(Encoded { name: SegmentName { file: name, ..part.name }, ..part });
        }
        Ok(())
    }

    /// Encodes what waits and hands the lists to the manifest of the next generation; returns what kept some of them from
    /// being joined.
    pub(crate) fn finish(mut self, manifest: &mut Manifest) -> Result<Option<Error>> {
        self.flush()?;
        let notice = join_small_lists(&self.folder, &mut self.manifest, &AtomicBool::new(false))?;
        manifest.lists = self.manifest.lists;
        manifest.fit = self.manifest.fit;
        Ok(notice)
    }
}
