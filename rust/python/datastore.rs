//! `knnlm._core.Datastore`: each method borrows its arrays, calls the core once and converts what comes back.

use super::arrays::{KeyArray, NewValues, ValueArray, empty, ranges, value_array};
use super::call::{brief, call};
use super::damage::{Lost, lines, lost, refuse_damaged};
use super::documents::{DocumentLists, Key};
use super::explain;
use super::options::{Code, key_type, metric, rerank, value_type};
use crate::error::Why;
use crate::index::Params;
use crate::search::{Request, entries_scanned};
use crate::store::{self, BuildOptions, NeighborsMut, Options, ValueType};
use crate::{Error, Metric};
use numpy::{IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

type Floats<'py> = Bound<'py, PyArray1<f32>>;
type Integers<'py> = Bound<'py, PyArray1<i64>>;
/// An array in the type of the store's values.
type ValuesOut<'py> = Bound<'py, PyAny>;

/// Distances, values, ids; documents and positions if asked for.
type Found<'py> = (Floats<'py>, ValuesOut<'py>, Integers<'py>, Option<(Integers<'py>, Integers<'py>)>);

/// Searches that are expected to end sooner stay on the caller's thread: starting another costs as much as they do.
const BRIEF_SECONDS: f64 = 0.05;
/// Numbers that `add` takes on the caller's thread: 64 MiB of float32.
const BRIEF_SCALARS: usize = 1 << 24;

/// A store on disk.
#[pyclass(frozen, module = "knnlm._core")]
pub struct Datastore {
    core: Mutex<Option<Arc<store::Datastore>>>,
    path: PathBuf,
    /// The process that opened it. A forked child may read, but what is being written belongs to its parent.
    process: u32,
}

impl Datastore {
    fn new(core: store::Datastore) -> Datastore {
        let path = core.path().to_path_buf();
        Datastore { core: Mutex::new(Some(Arc::new(core))), path, process: std::process::id() }
    }

    pub(super) fn reader(&self) -> crate::Result<Arc<store::Datastore>> {
        let core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        core.clone().ok_or_else(|| {
            Error::state(Why::Closed, format!("{}: the store is closed; open it again", self.path.display()))
        })
    }

    pub(super) fn writer(&self) -> crate::Result<Arc<store::Datastore>> {
        if self.process != std::process::id() {
            return Err(Error::state(
                Why::Forked,
                format!(
                    "{}: expected to write from process {}, which opened the store, found its forked child {}; open it again in this process",
                    self.path.display(),
                    self.process,
                    std::process::id()
                ),
            ));
        }
        self.reader()
    }
}

#[pymethods]
impl Datastore {
    #[staticmethod]
    #[pyo3(signature = (path, *, dim, metric, keep_keys, value_dtype, max_value, attributes, overwrite))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn create(
        py: Python<'_>,
        path: PathBuf,
        dim: usize,
        metric: &str,
        keep_keys: Option<&str>,
        value_dtype: &str,
        max_value: Option<u64>,
        attributes: String,
        overwrite: bool,
    ) -> PyResult<Datastore> {
        let options = Options {
            dim,
            metric: self::metric(metric)?,
            keep_keys: keep_keys.map(key_type).transpose()?,
            values: value_type(value_dtype)?,
            max_value,
            attributes: Some(attributes),
            overwrite,
        };
        call(py, None, |_| store::Datastore::create(&path, &options)).map(Datastore::new)
    }

    #[staticmethod]
    #[pyo3(signature = (path, *, verify = false, generation = None, resident = false))]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        verify: bool,
        generation: Option<u64>,
        resident: bool,
    ) -> PyResult<Datastore> {
        let core = call(py, None, |reporter| {
            if verify {
                refuse_damaged(&path, reporter.cancel())?;
            }
            let open = if resident { store::Datastore::open_resident } else { store::Datastore::open };
            let core = open(&path)?;
            match generation.filter(|&wanted| wanted != core.generation()) {
                None => Ok(core),
                Some(wanted) => Err(Error::state(
                    Why::Changed,
                    format!(
                        "{}: expected generation {wanted}, found {}: the store was changed and the old files are gone; open the path for the newest",
                        path.display(),
                        core.generation()
                    ),
                )),
            }
        })?;
        Ok(Datastore::new(core))
    }

    #[staticmethod]
    #[pyo3(signature = (path, progress = None))]
    fn verify_path(py: Python<'_>, path: PathBuf, progress: Option<Py<PyAny>>) -> PyResult<Vec<String>> {
        call(py, progress.as_ref(), |reporter| {
            let report = |stage: &str, done: u64, total: u64| reporter.report(stage, done, total);
            Ok(lines(store::Datastore::verify_path_unless(&path, &report, reporter.cancel())?))
        })
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.core.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ours = self.process == std::process::id();
        brief(py, || {
            if let Some(core) = core.filter(|_| ours) {
                core.discard();
            }
            Ok(())
        })
    }

    fn check_open(&self) -> PyResult<()> {
        self.reader()?;
        Ok(())
    }

    fn add(
        &self,
        py: Python<'_>,
        keys: KeyArray,
        values: ValueArray,
        document: Option<String>,
        metadata: Option<String>,
    ) -> PyResult<(u64, u64)> {
        let (core, keys, values) = (self.writer()?, keys.rows()?, values.rows()?);
        let work = || core.add(keys, values, document.as_deref(), metadata.as_deref());
        let ids = if keys.len() <= BRIEF_SCALARS { brief(py, work)? } else { call(py, None, |_| work())? };
        Ok((ids.start, ids.end))
    }

    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.writer()?;
        call(py, None, |_| core.commit())
    }

    fn refresh(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.reader()?;
        call(py, None, |_| core.refresh())
    }

    fn discard(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.writer()?;
        brief(py, || {
            core.discard();
            Ok(())
        })
    }

    #[pyo3(signature = (*, seed, nlist, code, retrain, threads, progress))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn build(
        &self,
        py: Python<'_>,
        seed: Option<u64>,
        nlist: Option<usize>,
        code: Option<Code>,
        retrain: bool,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let core = self.writer()?;
        let params = Params { nlist, code: Code::choice(code)?, seed, expected: None };
        let options = BuildOptions { params, retrain, threads };
        call(py, progress.as_ref(), |reporter| {
            core.build(&options, &|stage, done, total| reporter.report(stage, done, total), reporter.cancel())
        })
    }

    #[pyo3(signature = (keys, *, expected, seed, nlist, code, threads, progress))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn train(
        &self,
        py: Python<'_>,
        keys: KeyArray,
        expected: usize,
        seed: u64,
        nlist: Option<usize>,
        code: Option<Code>,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let (core, keys) = (self.writer()?, keys.rows()?);
        let params = Params { nlist, code: Code::choice(code)?, seed: Some(seed), expected: Some(expected) };
        let options = BuildOptions { params, retrain: false, threads };
        call(py, progress.as_ref(), |reporter| {
            core.train(keys, &options, &|stage, done, total| reporter.report(stage, done, total), reporter.cancel())
        })
    }

    fn delete(&self, py: Python<'_>, documents: Vec<Key>) -> PyResult<u64> {
        let core = self.writer()?;
        let documents: Vec<_> = documents.into_iter().map(Key::core).collect();
        call(py, None, |_| core.delete(&documents))
    }

    fn supersede(&self, py: Python<'_>, documents: Vec<Key>) -> PyResult<u64> {
        let core = self.writer()?;
        let documents: Vec<_> = documents.into_iter().map(Key::core).collect();
        brief(py, || core.supersede(&documents))
    }

    fn compact(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<()> {
        let core = self.writer()?;
        call(py, progress.as_ref(), |reporter| {
            core.compact(&|stage, done, total| reporter.report(stage, done, total), reporter.cancel())
        })
    }

    /// Names (None: without one, or it cannot be read), first ids, ids after the last and damaged sections of what `salvage`
    /// would drop.
    #[pyo3(signature = (progress = None))]
    fn damaged(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<Vec<Lost>> {
        let core = self.reader()?;
        call(py, progress.as_ref(), |reporter| {
            let report = |stage: &str, done: u64, total: u64| reporter.report(stage, done, total);
            Ok(core.damaged(&report, reporter.cancel())?.into_iter().map(lost).collect())
        })
    }

    /// Compacts without what is damaged; returns what `damaged` tells.
    #[pyo3(signature = (progress = None))]
    fn salvage(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<Vec<Lost>> {
        let core = self.writer()?;
        call(py, progress.as_ref(), |reporter| {
            let report = |stage: &str, done: u64, total: u64| reporter.report(stage, done, total);
            Ok(core.salvage(&report, reporter.cancel())?.into_iter().map(lost).collect())
        })
    }

    /// What changes have left as it was since the last call.
    fn notices(&self) -> PyResult<Vec<String>> {
        Ok(self.reader()?.take_notices().iter().map(ToString::to_string).collect())
    }

    fn set_attributes(&self, py: Python<'_>, attributes: String) -> PyResult<()> {
        let core = self.writer()?;
        call(py, None, |_| core.set_attributes(&attributes))
    }

    #[pyo3(signature = (queries, k, *, nprobe, recall, depth, rerank, exact, exclude, allow, deny, return_documents, threads))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn search<'py>(
        &self,
        py: Python<'py>,
        queries: PyReadonlyArray2<'_, f32>,
        k: usize,
        nprobe: Option<usize>,
        recall: Option<f32>,
        depth: Option<usize>,
        rerank: Option<&str>,
        exact: bool,
        exclude: Option<PyReadonlyArray2<'_, i64>>,
        allow: Option<DocumentLists>,
        deny: Option<DocumentLists>,
        return_documents: bool,
        threads: Option<usize>,
    ) -> PyResult<Found<'py>> {
        let (core, queries) = (self.reader()?, queries.as_slice()?);
        let exclude = exclude.as_ref().map(ranges).transpose()?;
        let rerank = self::rerank(rerank)?;
        let snapshot = core.snapshot();
        let n = (queries.len() / core.dim()).saturating_mul(k);
        let (distances, ids) = (empty::<f32>(py, n)?, empty::<i64>(py, n)?);
        let values = NewValues::empty(py, snapshot.manifest.values, n)?;
        let mut lent = (distances.readwrite(), values.lend(), ids.readwrite());
        let room = (lent.0.as_slice_mut()?, lent.1.slice()?, lent.2.as_slice_mut()?);
        let work = |cancel: &AtomicBool| {
            let sets = |lists: Option<DocumentLists>| lists.map(|l| l.id_sets(&snapshot)).transpose();
            let (allow, deny) = (sets(allow)?, sets(deny)?);
            let request = Request {
                k,
                nprobe,
                recall,
                depth,
                rerank,
                exact,
                exclude: exclude.as_deref(),
                allow: allow.as_deref(),
                deny: deny.as_deref(),
                ..Request::default()
            };
            let out = NeighborsMut { distances: room.0, values: room.1, ids: &mut *room.2 };
            snapshot.search_into(queries, &request, threads, cancel, out)?;
            if return_documents { Ok(Some(snapshot.positions_of(room.2)?)) } else { Ok(None) }
        };
        let asked = Request { k, nprobe, rerank, exact, ..Request::default() };
        let documents = if core.search_seconds(queries.len(), &asked) < BRIEF_SECONDS {
            brief(py, || work(&AtomicBool::new(false)))?
        } else {
            call(py, None, |reporter| work(reporter.cancel()))?
        };
        let documents = documents.map(|(numbers, positions)| (numbers.into_pyarray(py), positions.into_pyarray(py)));
        drop(lent);
        Ok((distances, values.into_any(), ids, documents))
    }

    /// Why an entry is among the neighbors of a query, or why not.
    #[pyo3(signature = (query, k, id, *, nprobe, recall, depth, rerank, exact, exclude, allow, deny, threads))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn explain<'py>(
        &self,
        py: Python<'py>,
        query: PyReadonlyArray2<'_, f32>,
        k: usize,
        id: u64,
        nprobe: Option<usize>,
        recall: Option<f32>,
        depth: Option<usize>,
        rerank: Option<&str>,
        exact: bool,
        exclude: Option<PyReadonlyArray2<'_, i64>>,
        allow: Option<DocumentLists>,
        deny: Option<DocumentLists>,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (core, query) = (self.reader()?, query.as_slice()?);
        let exclude = exclude.as_ref().map(ranges).transpose()?;
        let rerank = self::rerank(rerank)?;
        let snapshot = core.snapshot();
        let told = call(py, None, |reporter| {
            let sets = |lists: Option<DocumentLists>| lists.map(|l| l.id_sets(&snapshot)).transpose();
            let (allow, deny) = (sets(allow)?, sets(deny)?);
            let (exclude, allow, deny) = (exclude.as_deref(), allow.as_deref(), deny.as_deref());
            let request =
                Request { k, nprobe, recall, depth, rerank, exact, exclude, allow, deny, ..Request::default() };
            snapshot.explain(query, &request, id, threads, reporter.cancel())
        })?;
        explain::dict(py, &told)
    }

    /// Entries that an approximate search of each query looks at: what benchmarks print beside recall and speed.
    #[pyo3(signature = (queries, k, *, nprobe, recall, depth, rerank))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn entries_scanned<'py>(
        &self,
        py: Python<'py>,
        queries: PyReadonlyArray2<'_, f32>,
        k: usize,
        nprobe: Option<usize>,
        recall: Option<f32>,
        depth: Option<usize>,
        rerank: Option<&str>,
    ) -> PyResult<Integers<'py>> {
        let (core, queries) = (self.reader()?, queries.as_slice()?);
        let request = Request { k, nprobe, recall, depth, rerank: self::rerank(rerank)?, ..Request::default() };
        let scanned = call(py, None, |_| entries_scanned(&core.snapshot().corpus()?, queries, &request))?;
        Ok(scanned.into_iter().map(|n| n as i64).collect::<Vec<i64>>().into_pyarray(py))
    }

    fn get<'py>(
        &self,
        py: Python<'py>,
        ids: PyReadonlyArray1<'_, i64>,
    ) -> PyResult<(ValuesOut<'py>, Integers<'py>, Integers<'py>)> {
        let (core, ids) = (self.reader()?, ids.as_slice()?);
        let found = brief(py, || core.get(ids))?;
        Ok((value_array(py, found.values), found.documents.into_pyarray(py), found.positions.into_pyarray(py)))
    }

    fn reconstruct<'py>(&self, py: Python<'py>, ids: PyReadonlyArray1<'_, i64>) -> PyResult<Floats<'py>> {
        let (core, ids) = (self.reader()?, ids.as_slice()?);
        Ok(call(py, None, |_| core.reconstruct(ids))?.into_pyarray(py))
    }

    fn keys<'py>(&self, py: Python<'py>, start: u64, stop: u64) -> PyResult<Floats<'py>> {
        let core = self.reader()?;
        Ok(call(py, None, |_| core.keys(start..stop))?.into_pyarray(py))
    }

    fn values<'py>(&self, py: Python<'py>, start: u64, stop: u64) -> PyResult<ValuesOut<'py>> {
        let core = self.reader()?;
        Ok(value_array(py, brief(py, || core.values(start..stop))?))
    }

    /// Without a thread of its own: one record of a mapped table, asked for a hundred thousand times.
    fn document(&self, index: u64) -> PyResult<(Option<String>, u64, u64, Option<String>)> {
        let document = self.reader()?.document(index)?;
        Ok((document.name, document.start, document.end, document.metadata))
    }

    /// First ids and ids after the last of all documents.
    fn document_spans<'py>(&self, py: Python<'py>) -> PyResult<(Integers<'py>, Integers<'py>)> {
        let core = self.reader()?;
        let (starts, stops) = brief(py, || core.document_spans())?;
        let array = |ids: Vec<u64>| ids.into_iter().map(|id| id as i64).collect::<Vec<i64>>().into_pyarray(py);
        Ok((array(starts), array(stops)))
    }

    fn find_document(&self, name: &str) -> PyResult<Option<u64>> {
        Ok(self.reader()?.find_document(name)?)
    }

    fn info(&self, py: Python<'_>) -> PyResult<String> {
        let core = self.reader()?;
        brief(py, || {
            serde_json::to_string(&core.info()?)
                .map_err(|e| Error::state(Why::Broken, format!("cannot write info as JSON: {e}")))
        })
    }

    #[pyo3(signature = (progress = None))]
    fn verify(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<Vec<String>> {
        let core = self.reader()?;
        call(py, progress.as_ref(), |reporter| {
            let report = |stage: &str, done: u64, total: u64| reporter.report(stage, done, total);
            Ok(lines(core.verify_unless(&report, reporter.cancel())?))
        })
    }

    #[getter]
    fn document_count(&self) -> PyResult<u64> {
        Ok(self.reader()?.documents())
    }

    #[getter]
    fn attributes(&self) -> PyResult<String> {
        Ok(self.reader()?.attributes())
    }

    #[getter]
    fn n(&self) -> PyResult<u64> {
        Ok(self.reader()?.len())
    }

    #[getter]
    fn next_id(&self) -> PyResult<u64> {
        Ok(self.reader()?.next_id())
    }

    #[getter]
    fn dim(&self) -> PyResult<usize> {
        Ok(self.reader()?.dim())
    }

    #[getter]
    fn metric(&self) -> PyResult<&'static str> {
        Ok(match self.reader()?.metric() {
            Metric::L2 => "l2",
            Metric::Ip => "ip",
        })
    }

    #[getter]
    fn value_dtype(&self) -> PyResult<&'static str> {
        Ok(match self.reader()?.snapshot().manifest.values {
            ValueType::Uint32 => "uint32",
            ValueType::Uint64 => "uint64",
        })
    }

    #[getter]
    fn path(&self) -> &OsStr {
        self.path.as_os_str()
    }

    #[getter]
    fn generation(&self) -> PyResult<u64> {
        Ok(self.reader()?.generation())
    }

    #[getter]
    fn is_built(&self) -> PyResult<bool> {
        Ok(self.reader()?.is_built())
    }

    #[getter]
    fn resident(&self) -> PyResult<bool> {
        Ok(self.reader()?.is_resident())
    }

    #[getter]
    fn closed(&self) -> bool {
        self.reader().is_err()
    }
}
