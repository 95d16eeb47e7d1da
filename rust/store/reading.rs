//! What is asked of a store without changing it: of the generation that readers see.

use super::datastore::Datastore;
use super::format::documents::Document;
use super::format::files::{Disk, Folder};
use super::format::manifest::Manifest;
use super::format::values::Values;
use super::read::info::Info;
use super::read::lookup::Entries;
use super::read::search::Neighbors;
use super::read::snapshot::Snapshot;
use super::read::verify::{Problem, verify};
use super::write::salvage::{Lost, Salvage};
use crate::search::{Explanation, Request};
use crate::work::Progress;
use crate::{Error, Result};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

impl Datastore {
    /// [`Snapshot::get`] of the generation that readers see.
    pub fn get(&self, ids: &[i64]) -> Result<Entries> {
        self.snapshot().get(ids)
    }

    /// Raw keys of a range of ids as f32, row-major; checked against their checksums.
    ///
    /// # Errors
    /// `Damaged`; `Argument` for a range that does not exist; `State` where raw keys are not kept.
    pub fn keys(&self, ids: Range<u64>) -> Result<Vec<f32>> {
        self.snapshot().keys(ids)
    }

    /// Values of a range of ids; all ones for those that are deleted. Checked against their checksums.
    ///
    /// # Errors
    /// `Damaged`; `Argument` for a range that does not exist.
    pub fn values(&self, ids: Range<u64>) -> Result<Values> {
        self.snapshot().values(ids)
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.snapshot().manifest.documents()
    }

    /// Document number `index`.
    pub fn document(&self, index: u64) -> Result<Document> {
        self.snapshot().document(index)
    }

    /// Number of the document of a name.
    pub fn find_document(&self, name: &str) -> Result<Option<u64>> {
        self.snapshot().find_document(name)
    }

    /// Numbers of the documents that ids lie in, −1 for ids that do not exist.
    pub fn document_of(&self, ids: &[i64]) -> Result<Vec<i64>> {
        self.snapshot().documents_of(ids)
    }

    /// First id and id after the last of every document, in order: what a table of many documents costs least as.
    ///
    /// # Errors
    /// `Damaged`; `Format` for records that do not fit.
    pub fn document_spans(&self) -> Result<(Vec<u64>, Vec<u64>)> {
        self.snapshot().document_spans()
    }

    /// [`Snapshot::search`] of the generation that readers see.
    pub fn search(
        &self,
        queries: &[f32],
        request: &Request,
        threads: Option<usize>,
        cancel: &AtomicBool,
    ) -> Result<Neighbors> {
        self.snapshot().search(queries, request, threads, cancel)
    }

    /// [`Snapshot::explain`] of the generation that readers see.
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
        self.snapshot().explain(query, request, id, threads, cancel)
    }

    /// A rough estimate of how long a search for `scalars` / d queries takes on one thread.
    pub fn search_seconds(&self, scalars: usize, request: &Request) -> f64 {
        self.snapshot().search_seconds(scalars, request)
    }

    /// Keys of entries as f32, row-major: raw where they are kept, else decoded from their codes.
    ///
    /// # Errors
    /// `Argument` names the first id that does not exist.
    pub fn reconstruct(&self, ids: &[i64]) -> Result<Vec<f32>> {
        self.snapshot().reconstruct(ids)
    }

    /// What the codes of entries decode to, row-major, whether raw keys are kept or not.
    ///
    /// # Errors
    /// `Argument` names the first id that is in no list; `State` without an index.
    pub fn decode(&self, ids: &[u64]) -> Result<Vec<f32>> {
        self.snapshot().decode(ids)
    }

    /// Sizes, parameters and statistics; reads list offsets, nothing per entry.
    pub fn info(&self) -> Result<Info> {
        self.snapshot().info(&self.folder)
    }

    /// Reads every byte of this generation and lists what is wrong.
    pub fn verify(&self) -> Result<Vec<Problem>> {
        self.verify_unless(&|_, _, _| (), &AtomicBool::new(false))
    }

    /// [`Self::verify`] that reports bytes as stage "verify" and ends with `Interrupted` once `cancel` is set.
    pub fn verify_unless(&self, progress: Progress, cancel: &AtomicBool) -> Result<Vec<Problem>> {
        let snapshot = self.snapshot();
        verify(&self.folder, &snapshot.manifest, Some(&snapshot), progress, cancel)
    }

    /// [`Self::verify`] for a store that may be too damaged to open.
    pub fn verify_path(path: &Path) -> Result<Vec<Problem>> {
        Datastore::verify_path_unless(path, &|_, _, _| (), &AtomicBool::new(false))
    }

    /// [`Self::verify_path`] that reports bytes as stage "verify" and ends with `Interrupted` once `cancel` is set.
    pub fn verify_path_unless(path: &Path, progress: Progress, cancel: &AtomicBool) -> Result<Vec<Problem>> {
        let folder = Folder::new(path, Arc::new(Disk));
        loop {
            // What is opened stays whole, whatever a writer does meanwhile.
            if let Ok(snapshot) = Snapshot::open(&folder) {
                return verify(&folder, &snapshot.manifest, Some(&snapshot), progress, cancel);
            }
            let Some(generation) = Manifest::newest(&folder)? else {
                return Snapshot::open(&folder).map(|_| Vec::new());
            };
            let found = Manifest::read(&folder, generation)
                .and_then(|manifest| verify(&folder, &manifest, None, progress, cancel));
            let sound = found.as_ref().is_ok_and(Vec::is_empty) || matches!(found, Err(Error::Interrupted));
            if sound || Manifest::newest(&folder)? == Some(generation) {
                return found;
            }
        }
    }

    /// The documents that [`Self::salvage`] would drop; reads every byte, changes nothing.
    ///
    /// # Errors
    /// `Format` for a codebook, without which no code means anything; `Interrupted`; `Io`.
    pub fn damaged(&self, progress: Progress, cancel: &AtomicBool) -> Result<Vec<Lost>> {
        Ok(Salvage::of(&self.snapshot(), progress, cancel)?.lost())
    }
}
