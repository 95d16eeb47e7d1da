//! A store of every format version, written once and opened for ever.

use crate::store_support::{add, assert_entries, key, options, value};
use knnlm::search::Request;
use knnlm::store::{BuildOptions, Datastore, Options, Values};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

const DIM: usize = 8;
const ENTRIES: u64 = 120;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn answer(store: &Datastore) -> (Vec<i64>, Vec<f32>) {
    let queries: Vec<f32> = [3, 77, 110, 5000].iter().flat_map(|&id| key(DIM, id)).collect();
    let request = Request { k: 6, nprobe: Some(usize::MAX), ..Request::default() };
    let found = store.search(&queries, &request, Some(1), &AtomicBool::new(false)).expect("search");
    (found.ids, found.distances)
}

/// Writes the golden store of the current version: `cargo test --test main write_golden -- --ignored`.
#[test]
#[ignore = "writes tests/data; only for a new format version"]
fn write_golden() {
    let path = golden("v1");
    let attributes = Some("{\"model\": \"golden\", \"lambda\": 0.25}".to_owned());
    let store =
        Datastore::create(&path, &Options { max_value: Some(50_000), attributes, overwrite: true, ..options(DIM) })
            .expect("create");
    add(&store, 60, Some("first"), Some("{\"year\": 2020}")).expect("add");
    add(&store, 30, Some("zweites, größer"), None).expect("add");
    let build = BuildOptions { threads: Some(1), ..BuildOptions::default() };
    store.build(&build, &|_, _, _| {}, &AtomicBool::new(false)).expect("build");
    add(&store, 20, Some("zweites, größer"), None).expect("add");
    add(&store, 10, None, None).expect("add");
    store.commit().expect("commit");
    std::fs::remove_file(path.join("lock")).expect("the lock is not part of a store at rest");
    let text = serde_json::to_string(&answer(&store)).expect("JSON");
    std::fs::write(golden("v1-answer.json"), text + "\n").expect("write");
}

#[test]
fn version_1_opens_and_answers() {
    let path = golden("v1");
    assert_eq!(Datastore::verify_path(&path).expect("verify"), vec![]);
    let store = Datastore::open(&path).expect("open");
    assert_entries(&store, ENTRIES);
    assert_eq!(store.attributes(), "{\"model\": \"golden\", \"lambda\": 0.25}");
    let info = store.info().expect("info");
    assert_eq!((info.indexed, info.entries_with_keys, info.max_value), (90, 30, Some(50_000)));
    let second = store.document(1).expect("document");
    assert_eq!((second.name.as_deref(), second.start, second.end), (Some("zweites, größer"), 60, 110));
    assert_eq!(store.document(0).expect("document").metadata.as_deref(), Some("{\"year\": 2020}"));
    assert_eq!(store.document(2).expect("document").name, None);
    let entries = store.get(&[61, 115]).expect("get");
    assert_eq!(entries.values, Values::U32(vec![value(61), value(115)]));
    assert_eq!((entries.documents, entries.positions), (vec![1, 2], vec![1, 5]));
    let text = std::fs::read_to_string(golden("v1-answer.json")).expect("read");
    let (ids, distances): (Vec<i64>, Vec<f32>) = serde_json::from_str(&text).expect("JSON");
    let found = answer(&store);
    // Instruction sets may round differently in the last bits.
    for (a, b) in found.1.iter().zip(&distances) {
        assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} {b}");
    }
    assert_eq!(found.0, ids);
}
