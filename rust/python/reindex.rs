//! A new index for entries that are there: held for long, staged by several processes, published at once.

use super::arrays::KeyArray;
use super::call::call;
use super::datastore::Datastore;
use super::options::Code;
use super::parts::truth;
use crate::Error;
use crate::error::Why;
use crate::index::Params;
use crate::store::{self, BuildOptions, Encoded, SegmentName, Staged};
use numpy::PyReadonlyArray2;
use pyo3::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// The writer's lock on a store.
#[pyclass(frozen, module = "knnlm._core")]
pub struct Held {
    held: Mutex<Option<store::Held>>,
}

#[pymethods]
impl Held {
    fn release(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Takes the lock for work that takes long.
#[pyfunction]
pub fn hold(py: Python<'_>, store: &Bound<'_, Datastore>) -> PyResult<Held> {
    let core = store.get().writer()?;
    let held = call(py, None, |_| core.hold())?;
    Ok(Held { held: Mutex::new(Some(held)) })
}

/// Learns a codebook from a sample into a file of a folder; its name, as JSON.
#[pyfunction]
#[pyo3(signature = (store, folder, name, sample, *, expected, seed, nlist, code, threads, progress))]
#[expect(clippy::too_many_arguments, reason = "keywords in Python")]
pub fn stage_codebook(
    py: Python<'_>,
    store: &Bound<'_, Datastore>,
    folder: PathBuf,
    name: &str,
    sample: KeyArray,
    expected: usize,
    seed: u64,
    nlist: Option<usize>,
    code: Option<Code>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let (core, sample) = (store.get().reader()?, sample.rows()?);
    let params = Params { nlist, code: Code::choice(code)?, seed: Some(seed), expected: Some(expected) };
    let options = BuildOptions { params, retrain: false, threads };
    let staged = call(py, progress.as_ref(), |reporter| {
        let report = |stage: &str, done: u64, total: u64| reporter.report(stage, done, total);
        core.stage_codebook(&folder, name, sample, &options, &report, reporter.cancel())
    })?;
    to_json(&staged)
}

/// Encodes keys with a staged codebook into a file of its folder; what `reindex` needs, as JSON.
#[pyfunction]
#[pyo3(signature = (store, folder, codebook, keys, runs, ids, name, *, threads))]
#[expect(clippy::too_many_arguments, reason = "keywords in Python")]
pub fn stage_lists(
    py: Python<'_>,
    store: &Bound<'_, Datastore>,
    folder: PathBuf,
    codebook: &str,
    keys: KeyArray,
    runs: Vec<(u64, u64)>,
    ids: (u64, u64),
    name: &str,
    threads: Option<usize>,
) -> PyResult<String> {
    let (core, keys) = (store.get().reader()?, keys.rows()?);
    let codebook: SegmentName = from_json("codebook", codebook)?;
    let staged = call(py, None, |reporter| {
        core.stage_lists(&folder, &codebook, keys, &runs, ids.0..ids.1, name, threads, reporter.cancel())
    })?;
    to_json(&staged)
}

/// Publishes a staged index.
#[pyfunction]
#[pyo3(signature = (store, held, folder, codebook, lists, queries, own, ids, *, threads, progress))]
#[expect(clippy::too_many_arguments, reason = "keywords in Python")]
pub fn reindex(
    py: Python<'_>,
    store: &Bound<'_, Datastore>,
    held: &Bound<'_, Held>,
    folder: PathBuf,
    codebook: &str,
    lists: &str,
    queries: PyReadonlyArray2<'_, f32>,
    own: PyReadonlyArray2<'_, i64>,
    ids: PyReadonlyArray2<'_, i64>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<()> {
    let core = store.get().writer()?;
    let codebook: SegmentName = from_json("codebook", codebook)?;
    let lists: Vec<Encoded> = from_json("lists", lists)?;
    let truth = truth(&queries, &own, &ids)?;
    let held = held.get();
    call(py, progress.as_ref(), |reporter| {
        let held = held.held.lock().unwrap_or_else(PoisonError::into_inner);
        let held = held.as_ref().ok_or_else(|| {
            Error::state(
                Why::Broken,
                "reindex: expected a lock that is held, found one that was released; hold it again",
            )
        })?;
        let report = |stage: &str, done: u64, total: u64| reporter.report(stage, done, total);
        let staged = Staged { folder: &folder, codebook: &codebook, lists: &lists };
        core.reindex(held, staged, &truth, threads, &report, reporter.cancel())
    })
}

fn to_json(value: &impl Serialize) -> PyResult<String> {
    Ok(serde_json::to_string(value)
        .map_err(|e| Error::state(Why::Broken, format!("cannot write a staged file as JSON: {e}")))?)
}

fn from_json<T: DeserializeOwned>(what: &str, text: &str) -> PyResult<T> {
    Ok(serde_json::from_str(text)
        .map_err(|e| Error::Argument(format!("{what}: expected what staging returned, found {e}")))?)
}
