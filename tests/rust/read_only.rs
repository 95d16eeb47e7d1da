//! A disk that is mounted read-only: everything that reads works, everything that writes says why not and changes nothing.
//! `tests/python/store/test_read_only.py` does the same on a real one.

use crate::failing_disk::{FailingDisk, Failure};
use crate::store_support::{add, assert_entries, keeping, key, options};
use knnlm::index::Params;
use knnlm::keys::KeyRows;
use knnlm::search::Request;
use knnlm::store::{BuildOptions, Datastore, DocumentKey, KeyType, Options};
use knnlm::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

const DIM: usize = 8;

/// Every operation that would change the disk fails.
fn disk() -> Arc<FailingDisk> {
    Arc::new(FailingDisk::new(0, Failure::ReadOnly, false))
}

fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(path).expect("list").map(|e| e.expect("entry"));
    entries.map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).expect("read"))).collect()
}

fn build(store: &Datastore, retrain: bool) -> Result<()> {
    let options = BuildOptions { params: Params::default(), retrain, threads: Some(1) };
    store.build(&options, &|_, _, _| {}, &AtomicBool::new(false))
}

fn assert_refused<T: std::fmt::Debug>(what: &str, outcome: Result<T>) {
    let error = outcome.expect_err(what);
    assert!(
        matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem),
        "{what}: {error}"
    );
    let said = error.to_string();
    assert!(said.contains("expected a disk that can be written") && said.contains("nothing was changed"), "{said}");
}

#[test]
fn reading_works_and_writing_changes_nothing() {
    let folder = tempdir().expect("folder");
    let there = Datastore::create(folder.path(), &keeping(DIM, KeyType::Float32)).expect("create");
    for name in ["a", "b", "c"] {
        add(&there, 100, Some(name), Some("{}")).expect("add");
        there.commit().expect("commit");
    }
    build(&there, false).expect("build");
    add(&there, 20, Some("late"), None).expect("add");
    there.commit().expect("commit");
    let request = Request { k: 5, ..Request::default() };
    let search = |store: &Datastore, request: &Request| {
        store.search(&key(DIM, 7), request, Some(1), &AtomicBool::new(false)).expect("search")
    };
    let (expected, before) = (search(&there, &request), files(folder.path()));
    drop(there);

    let store = Datastore::open_through(folder.path(), disk()).expect("open");
    let gone = [DocumentKey::Name("b".into())];
    assert_refused("add", add(&store, 3, Some("d"), None));
    store.commit().expect("nothing was added");
    assert_refused("supersede", store.supersede(&gone));
    assert_refused("delete", store.delete(&gone));
    assert_refused("compact", store.compact(&|_, _, _| {}, &AtomicBool::new(false)));
    assert_refused("build", build(&store, false));
    assert_refused("build", build(&store, true));
    assert_refused("set_attributes", store.set_attributes("{}"));
    assert_refused("create", Datastore::create_through(&folder.path().join("new"), &options(DIM), disk()));
    let replacing = Options { overwrite: true, ..options(DIM) };
    assert_refused("overwrite", Datastore::create_through(folder.path(), &replacing, disk()));

    assert!(files(folder.path()) == before, "no file was touched");
    assert_entries(&store, 320);
    assert!(search(&store, &request) == expected);
    assert_eq!(search(&store, &Request { exact: true, ..request }).ids[0], 7);
    store.refresh().expect("refresh");
    assert_eq!(store.verify().expect("verify"), vec![]);
    assert_eq!(store.info().expect("info").entries, 320);
    assert_eq!(store.find_document("late").expect("find"), Some(3));
}

#[test]
fn an_empty_store_is_not_trained_there() {
    let folder = tempdir().expect("folder");
    Datastore::create(folder.path(), &options(DIM)).expect("create");
    let before = files(folder.path());
    let store = Datastore::open_through(folder.path(), disk()).expect("open");
    let sample: Vec<f32> = (0..200).flat_map(|id| key(DIM, id)).collect();
    let never = AtomicBool::new(false);
    assert_refused("train", store.train(KeyRows::F32(&sample), &BuildOptions::default(), &|_, _, _| {}, &never));
    assert!(files(folder.path()) == before && !store.is_built());
}
