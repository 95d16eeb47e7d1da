//! Search of an opened store: hands mapped sections to [`crate::search`] and adds the values.

use super::lookup::keys_not_kept;
use super::snapshot::{CheckedIndex, Snapshot};
use crate::disk::has_read;
use crate::index::{Codebook, Lists, reconstruct};
use crate::search::{Corpus, Explanation, HitsMut, Reason, Request, Rerank, explain, search_into};
use crate::sections::{Advise, SectionKind, SectionSource};
use crate::store::format::segment::SegmentFile;
use crate::store::format::values::{Values, ValuesMut};
use crate::threads::Pool;
use crate::{Error, Result};
use std::sync::atomic::AtomicBool;

/// Neighbors of `q` queries, `q * k` each, best first. Missing: id −1, value all ones, distance +∞ (ip: −∞).
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbors {
    /// Squared L2 distances (ascending) or inner products (descending).
    pub distances: Vec<f32>,
    /// Values, in the type of the store.
    pub values: Values,
    /// Ids.
    pub ids: Vec<i64>,
}

/// Where neighbors are written, `q * k` of each.
pub struct NeighborsMut<'n> {
    /// See [`Neighbors`].
    pub distances: &'n mut [f32],
    /// See [`Neighbors`].
    pub values: ValuesMut<'n>,
    /// See [`Neighbors`].
    pub ids: &'n mut [i64],
}

impl Snapshot {
    fn index(&self) -> Result<Option<(Codebook<'_>, Vec<Lists<'_>>)>> {
        let Some(file) = self.codebook.as_deref() else { return Ok(None) };
        if let Some(checked) = self.checked.get() {
            let codebook = Codebook::view(file, &checked.codebook)?;
            let pairs = self.lists.iter().zip(&checked.lists);
            return Ok(Some((codebook, pairs.map(|(file, kept)| Lists::view(&**file, kept)).collect::<Result<_>>()?)));
        }
        let codebook = Codebook::open(file, self.manifest.dim, self.manifest.metric)?;
        let mut lists = Vec::with_capacity(self.lists.len());
        for (file, record) in self.lists.iter().zip(&self.manifest.lists) {
            let opened = Lists::open(&**file, &codebook, record.first_id, record.entries)?;
            lists.push(opened.without(self.deleted.spans()));
        }
        let checked = CheckedIndex { codebook: codebook.keep(), lists: lists.iter().map(Lists::keep).collect() };
        let _ = self.checked.set(Box::new(checked)); // another thread may have been quicker with the same
        Ok(Some((codebook, lists)))
    }

    /// Whether codebook and lists fit together.
    pub(crate) fn check_index(&self) -> Result<()> {
        self.index().map(drop)
    }

    /// Calls `use_index` with the codebook and the lists of this generation, if it was built.
    pub(crate) fn with_index<T>(&self, use_index: impl FnOnce(&Codebook, &[Lists]) -> Result<T>) -> Result<Option<T>> {
        self.index()?.map(|(codebook, lists)| use_index(&codebook, &lists)).transpose()
    }

    /// Everything that a search may touch.
    pub(crate) fn corpus(&self) -> Result<Corpus<'_>> {
        let entries = self.manifest.entries;
        Ok(Corpus {
            d: self.manifest.dim,
            metric: self.manifest.metric,
            keys: self.stored_key_blocks(&(0..entries))?,
            index: self.index()?,
            unindexed: self.stored_key_blocks(&(self.manifest.indexed()..entries))?,
            deleted: self.deleted.spans(),
            measured: self.manifest.measured(),
            advise: Some(self),
        })
    }

    /// Whether every entry has its raw key.
    pub(crate) fn has_all_keys(&self) -> bool {
        self.manifest.data.iter().all(|d| d.keys.is_some() || d.entries == 0)
    }

    /// Finds the nearest entries of every query (`queries`: q × d, row-major).
    ///
    /// # Errors
    /// `Argument` for arguments that do not fit; `State` for `exact` or `rerank` without raw keys; `Format` for damaged
    /// files; `Interrupted` once `cancel` is set.
    pub fn search(
        &self,
        queries: &[f32],
        request: &Request,
        threads: Option<usize>,
        cancel: &AtomicBool,
    ) -> Result<Neighbors> {
        let n = (queries.len() / self.manifest.dim.max(1)).checked_mul(request.k);
        let Some(n) = n.filter(|&n| n <= isize::MAX as usize / 16) else {
            return Err(Error::Argument(format!("k must be at least 1 and fit memory, found {}", request.k)));
        };
        let (mut distances, mut ids) = (vec![0.0; n], vec![0; n]);
        let mut values = Values::zeros(self.manifest.values, n);
        let out = NeighborsMut { distances: &mut distances, values: values.as_mut(), ids: &mut ids };
        self.search_into(queries, request, threads, cancel, out)?;
        Ok(Neighbors { distances, values, ids })
    }

    /// [`Self::search`] into memory of the caller.
    ///
    /// # Errors
    /// As [`Self::search`]; `Argument` if the memory is not for `q * k` neighbors.
    pub fn search_into(
        &self,
        queries: &[f32],
        request: &Request,
        threads: Option<usize>,
        cancel: &AtomicBool,
        out: NeighborsMut,
    ) -> Result<()> {
        self.prepare(request)?;
        let hits = HitsMut { distances: &mut *out.distances, ids: &mut *out.ids };
        search_into(&self.corpus()?, queries, request, &Pool::get(threads)?, cancel, hits)?;
        if has_read() {
            self.advise_values(out.ids)?;
        }
        self.values_found(out.ids, out.values)
    }

    /// Refuses a request for raw keys that are not kept, and says how those that are will be read.
    fn prepare(&self, request: &Request) -> Result<()> {
        if request.exact && !self.has_all_keys() {
            return Err(keys_not_kept(self, "exact search"));
        }
        if request.rerank == Rerank::Keys && !self.has_all_keys() {
            return Err(keys_not_kept(self, "rerank by keys"));
        }
        // An asked recall may need raw keys, too.
        if request.exact || request.rerank == Rerank::Keys || request.recall.is_some() {
            self.read_keys(request.exact);
        }
        Ok(())
    }

    /// Why an entry is among the neighbors of one query, or why not; slower than a search by far.
    ///
    /// # Errors
    /// As [`Self::search`]; `Argument` for more than one query.
    pub fn explain(
        &self,
        query: &[f32],
        request: &Request,
        id: u64,
        threads: Option<usize>,
        cancel: &AtomicBool,
    ) -> Result<Explanation> {
        self.prepare(request)?;
        let mut told = explain(&self.corpus()?, query, request, id, &Pool::get(threads)?, cancel)?;
        // Ids are never given again: one that nothing has any more was compacted away.
        if told.reason == Reason::Unknown && id < self.manifest.entries {
            told.reason = Reason::Deleted;
        }
        Ok(told)
    }
}

impl Advise for Snapshot {
    fn advise(&self, part: &[u8]) {
        self.data.iter().for_each(|segment| segment.file.advise(part));
    }
}

impl Snapshot {
    /// A rough estimate of how long a search for `scalars` / d queries takes on one thread.
    pub fn search_seconds(&self, scalars: usize, request: &Request) -> f64 {
        let manifest = &self.manifest;
        let (n, waiting) = (manifest.entries as f64, manifest.entries.saturating_sub(manifest.indexed()) as f64);
        // Exact scans do some 20 multiplications a nanosecond; a coded entry costs a nanosecond or two.
        let (exact, coded) = match (request.exact, request.nprobe) {
            (true, _) => (n, 0.0),
            (false, None) => (waiting, n / 10.0),
            (false, Some(_)) => (waiting, n),
        };
        let queries = scalars as f64 / manifest.dim as f64;
        let candidates = request.k as f64 * if request.rerank == Rerank::Keys { 1e-6 } else { 1e-7 };
        5e-11 * exact * scalars as f64 + queries * (2e-9 * coded + candidates + 1e-4)
    }

    /// Keys of entries as f32, row-major: raw where they are kept, else decoded from their codes.
    ///
    /// # Errors
    /// `Argument` names the first id that does not exist.
    pub fn reconstruct(&self, ids: &[i64]) -> Result<Vec<f32>> {
        let d = self.manifest.dim;
        let mut out = vec![0f32; ids.len() * d];
        let (mut coded, mut places) = (Vec::new(), Vec::new());
        for (place, (&id, row)) in ids.iter().zip(out.chunks_exact_mut(d)).enumerate() {
            let known = u64::try_from(id).ok().and_then(|id| Some((id, self.locate(id)?)));
            let Some((id, (segment, i))) = known else {
                return Err(Error::Argument(format!(
                    "ids: expected 0 to {} and not deleted, found {id}",
                    self.manifest.entries as i64 - 1
                )));
            };
            segment.check(SectionKind::Keys, i..i + 1)?;
            match segment.keys(id, i..i + 1)? {
                Some(block) => block.read_row(0, row),
                None => {
                    coded.push(id);
                    places.push(place);
                }
            }
        }
        if !coded.is_empty() {
            let decoded = self.decode(&coded)?;
            for (&place, row) in places.iter().zip(decoded.chunks_exact(d)) {
                out[place * d..(place + 1) * d].copy_from_slice(row);
            }
        }
        Ok(out)
    }

    /// What the codes of entries decode to, row-major, whether raw keys are kept or not.
    ///
    /// # Errors
    /// `Argument` names the first id that is in no list; `State` without an index.
    pub fn decode(&self, ids: &[u64]) -> Result<Vec<f32>> {
        self.codebook.as_deref().map_or(Ok(()), SegmentFile::check_all)?;
        let decoded = self.with_index(|codebook, lists| reconstruct(codebook, lists, ids))?;
        decoded.ok_or_else(|| keys_not_kept(self, "reconstruct"))
    }
}
