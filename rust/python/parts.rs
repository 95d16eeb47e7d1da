//! One pass over a text: parts that several processes encode, and exact neighbors found while the keys pass by.

use super::arrays::{KeyArray, ValueArray, ranges};
use super::call::call;
use super::datastore::Datastore;
use crate::error::Why;
use crate::keys::KeyBlock;
use crate::search::{Corpus, Protocol, Request, Truth, search};
use crate::store::{Encoded, PartDocument};
use crate::threads::Pool;
use crate::{Error, Metric};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use std::path::PathBuf;

type Neighbors<'py> = (Bound<'py, PyArray1<f32>>, Bound<'py, PyArray1<i64>>);

/// Encodes keys of a part into files of a folder; what `add_part` needs, as JSON.
#[pyfunction]
#[pyo3(signature = (store, keys, folder, stem, *, threads))]
pub fn encode_part(
    py: Python<'_>,
    store: &Bound<'_, Datastore>,
    keys: KeyArray,
    folder: PathBuf,
    stem: &str,
    threads: Option<usize>,
) -> PyResult<String> {
    let (core, keys) = (store.get().reader()?, keys.rows()?);
    let encoded = call(py, None, |reporter| core.encode_part(keys, &folder, stem, threads, reporter.cancel()))?;
    Ok(serde_json::to_string(&encoded)
        .map_err(|e| Error::state(Why::Broken, format!("cannot write a part as JSON: {e}")))?)
}

/// Adds documents (name, metadata, number of entries) whose keys were encoded; raw keys where the store keeps them.
#[pyfunction]
#[pyo3(signature = (store, folder, encoded, documents, values, keys))]
pub fn add_part(
    py: Python<'_>,
    store: &Bound<'_, Datastore>,
    folder: PathBuf,
    encoded: &str,
    documents: Vec<PartDocument>,
    values: ValueArray,
    keys: Option<KeyArray>,
) -> PyResult<(u64, u64)> {
    let (core, values) = (store.get().writer()?, values.rows()?);
    let keys = keys.as_ref().map(KeyArray::rows).transpose()?;
    let encoded: Vec<Encoded> = serde_json::from_str(encoded)
        .map_err(|e| Error::Argument(format!("part: expected what encode_part returned, found {e}")))?;
    let ids = call(py, None, |_| core.add_part(&folder, encoded, &documents, values, keys))?;
    Ok((ids.start, ids.end))
}

/// Measures the recall of the index against exact neighbors found elsewhere.
#[pyfunction]
#[pyo3(signature = (store, queries, own, ids, *, threads, progress))]
pub fn calibrate(
    py: Python<'_>,
    store: &Bound<'_, Datastore>,
    queries: PyReadonlyArray2<'_, f32>,
    own: PyReadonlyArray2<'_, i64>,
    ids: PyReadonlyArray2<'_, i64>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<()> {
    let core = store.get().writer()?;
    let truth = truth(&queries, &own, &ids)?;
    call(py, progress.as_ref(), |reporter| {
        let report = |stage: &str, done: u64, total: u64| reporter.report(stage, done, total);
        core.calibrate(&truth, threads, &report, reporter.cancel())
    })
}

/// Queries `(q, d)`, their own ids `(q, 2)` and their neighbors `(q, k)` as the core takes them.
pub(super) fn truth(
    queries: &PyReadonlyArray2<'_, f32>,
    own: &PyReadonlyArray2<'_, i64>,
    ids: &PyReadonlyArray2<'_, i64>,
) -> PyResult<Truth> {
    let k = ids.as_array().ncols();
    Ok(Truth { queries: queries.as_slice()?.to_vec(), own: ranges(own)?, ids: ids.as_slice()?.to_vec(), k })
}

/// Exact `k` nearest of some keys, whose ids count from `first_id`, for each query, less one range of ids each.
#[pyfunction]
#[pyo3(signature = (keys, queries, k, *, metric, first_id, exclude, threads))]
#[expect(clippy::too_many_arguments, reason = "keywords in Python")]
pub fn exact_nearest<'py>(
    py: Python<'py>,
    keys: KeyArray,
    queries: PyReadonlyArray2<'_, f32>,
    k: usize,
    metric: &str,
    first_id: u64,
    exclude: PyReadonlyArray2<'_, i64>,
    threads: Option<usize>,
) -> PyResult<Neighbors<'py>> {
    let d = queries.as_array().ncols();
    let (rows, queries, exclude) = (keys.rows()?, queries.as_slice()?, ranges(&exclude)?);
    let metric: Metric = super::options::metric(metric)?;
    let found = call(py, None, |reporter| {
        let keys = vec![KeyBlock { first_id, d, rows }];
        let corpus =
            Corpus { d, metric, keys, index: None, unindexed: Vec::new(), deleted: &[], measured: None, advise: None };
        let request = Request { k, exact: true, exclude: Some(&exclude), ..Request::default() };
        search(&corpus, queries, &request, &Pool::get(threads)?, reporter.cancel())
    })?;
    Ok((found.distances.into_pyarray(py), found.ids.into_pyarray(py)))
}

/// What a calibration of `n` entries needs: stored keys as queries, at most; exact neighbors of each; entries before and
/// after its own that it leaves out.
#[pyfunction]
pub fn plan_calibration(n: u64) -> (usize, usize, u64) {
    let Protocol { queries, neighbors, nearby } = Protocol::of(n);
    (queries, neighbors, nearby)
}
