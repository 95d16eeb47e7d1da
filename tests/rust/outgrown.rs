//! A store that has outgrown its index says so, by the error of its codes and by its size.

use crate::store_support::{add, keeping, key, options};
use knnlm::error::Why;
use knnlm::keys::KeyRows;
use knnlm::search::Request;
use knnlm::store::{BuildOptions, Datastore, DocumentKey, IndexInfo, KeyType, ValueRows};
use knnlm::{Error, Result};
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

static NEVER: AtomicBool = AtomicBool::new(false);
const DIM: usize = 16;

fn build(store: &Datastore, retrain: bool) -> Result<()> {
    let options = BuildOptions { retrain, threads: Some(1), ..BuildOptions::default() };
    store.build(&options, &|_, _, _| (), &NEVER)
}

/// Keys of another scale.
fn add_odd(store: &Datastore, n: usize) {
    let keys: Vec<f32> = (0..n as u64).flat_map(|i| key(DIM, 5000 + i)).map(|x| 30.0 * x).collect();
    store.add(KeyRows::F32(&keys), ValueRows::U32(&vec![1; n]), Some("odd"), None).expect("add");
}

fn index(store: &Datastore) -> IndexInfo {
    store.info().expect("info").index.expect("built")
}

fn ask(store: &Datastore, recall: f32) -> Result<()> {
    let request = Request { k: 1, recall: Some(recall), ..Request::default() };
    store.search(&key(DIM, 5), &request, Some(1), &NEVER).map(drop)
}

#[test]
fn codes_learnt_from_one_key_or_from_equal_keys_fit_nothing() {
    for equal in [1, 40] {
        let folder = tempdir().expect("folder");
        let store = Datastore::create(folder.path(), &keeping(DIM, KeyType::Float32)).expect("create");
        let (keys, values) = (key(DIM, 7).repeat(equal), vec![1; equal]);
        store.add(KeyRows::F32(&keys), ValueRows::U32(&values), Some("first"), None).expect("add");
        build(&store, false).expect("build");
        assert_eq!((index(&store).retrain_advised, store.take_notices().len()), (false, 0));
        add(&store, 600, Some("rest"), None).expect("add");
        build(&store, false).expect("build");
        let found = index(&store);
        let reason = found.retrain_reason.expect("advised");
        assert!(
            found.retrain_advised && found.drift.is_none() && reason.contains("from one key, or from equal"),
            "{reason}"
        );
        let notices = store.take_notices();
        assert!(matches!(&notices[..], [Error::State { why: Why::Outgrown, .. }]), "{notices:?}");
        // Raw keys are there: what its searches reach was measured again.
        assert_eq!(index(&store).calibration.iter().map(|c| c.k).collect::<Vec<_>>(), [1, 8, 64]);
        build(&store, true).expect("retrain");
        assert_eq!((index(&store).retrain_advised, index(&store).retrain_reason), (false, None));
    }
}

#[test]
fn many_more_entries_than_a_store_was_built_for_are_a_reason_too() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(DIM)).expect("create");
    add(&store, 500, Some("first"), None).expect("add");
    build(&store, false).expect("build");
    ask(&store, 0.1).expect("measured");
    add(&store, 1400, Some("second"), None).expect("add");
    build(&store, false).expect("build");
    assert!(!index(&store).retrain_advised && store.take_notices().is_empty(), "one list is right for as many");
    ask(&store, 0.1).expect("not so many more");
    add(&store, 1000, Some("third"), None).expect("add");
    build(&store, false).expect("build");
    let found = index(&store);
    let reason = found.retrain_reason.expect("advised");
    assert!(found.drift.expect("known") < 0.2 && reason.contains("it has 1 lists, a new one 46"), "{reason}");
    assert_eq!(store.take_notices().len(), 1);
    // Without raw keys nobody can measure again: a recall is not promised.
    let error = ask(&store, 0.1).expect_err("measured on a sixth of the entries");
    assert!(matches!(&error, Error::State { why: Why::Outgrown, .. }), "{error}");
    store.search(&key(DIM, 5), &Request { k: 1, ..Request::default() }, Some(1), &NEVER).expect("searching goes on");
}

#[test]
fn few_lists_that_were_asked_for_are_no_reason() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(DIM)).expect("create");
    add(&store, 3000, Some("first"), None).expect("add");
    let params = knnlm::index::Params { nlist: Some(2), ..Default::default() };
    store.build(&BuildOptions { params, ..BuildOptions::default() }, &|_, _, _| (), &NEVER).expect("build");
    assert!(!index(&store).retrain_advised);
}

#[test]
fn deletions_do_not_hide_how_much_is_new() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(DIM)).expect("create");
    add(&store, 100, Some("kept"), None).expect("add");
    add(&store, 900, Some("deleted"), None).expect("add");
    build(&store, false).expect("build");
    ask(&store, 0.1).expect("measured");
    store.delete(&[DocumentKey::Name("deleted".into())]).expect("delete");
    let error = ask(&store, 0.1).expect_err("measured with ten times the entries");
    assert!(matches!(&error, Error::State { why: Why::Outgrown, .. }), "{error}");
    let reason = index(&store).retrain_reason.expect("advised");
    assert_eq!(reason, "recall was measured with 1000 entries, most of which were deleted since");
    add_odd(&store, 890);
    build(&store, false).expect("build");
    let error = ask(&store, 0.1).expect_err("nearly all are new, and otherwise, though fewer than there were");
    assert!(matches!(&error, Error::State { why: Why::Outgrown, .. }), "{error}");
}

#[test]
fn recall_is_measured_anew_where_most_entries_are_deleted() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &keeping(DIM, KeyType::Float32)).expect("create");
    for name in ["kept", "few", "many"] {
        add(&store, if name == "many" { 600 } else { 200 }, Some(name), None).expect("add");
    }
    build(&store, false).expect("build");
    store.delete(&[DocumentKey::Name("few".into())]).expect("delete");
    let generation = store.snapshot().manifest.generation;
    build(&store, false).expect("nothing to do");
    assert_eq!(store.snapshot().manifest.generation, generation);
    ask(&store, 0.1).expect("most are there");
    store.delete(&[DocumentKey::Name("many".into())]).expect("delete");
    ask(&store, 0.1).expect_err("most are not");
    build(&store, false).expect("measures");
    ask(&store, 0.1).expect("measured");
    let measured = store.snapshot().manifest.calibration.clone().expect("measured");
    assert_eq!(measured.entries, 200);
    assert!(!index(&store).retrain_advised && store.verify().expect("reads").is_empty());
}

#[test]
fn recall_is_measured_anew_in_a_store_that_still_holds_deleted_entries() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &keeping(DIM, KeyType::Float32)).expect("create");
    add(&store, 100, Some("kept"), None).expect("add");
    add(&store, 900, Some("deleted"), None).expect("add");
    build(&store, false).expect("build");
    store.delete(&[DocumentKey::Name("deleted".into())]).expect("delete");
    add_odd(&store, 300);
    build(&store, false).expect("build");
    let measured = store.snapshot().manifest.calibration.clone().expect("measured");
    assert_eq!((measured.entries, measured.ids, measured.queries), (400, 1300, 256));
    ask(&store, 0.1).expect("all of it is new to no measurement");
}

#[test]
fn a_few_odd_entries_are_no_reason_and_an_empty_store_has_none() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(DIM)).expect("create");
    add(&store, 1000, Some("first"), None).expect("add");
    build(&store, false).expect("build");
    add_odd(&store, 3);
    build(&store, false).expect("build");
    let found = index(&store);
    assert!(found.drift.is_some_and(|drift| drift > 0.2) && !found.retrain_advised, "{found:?}");
    let names = ["first", "odd"].map(|name| DocumentKey::Name(name.into()));
    store.delete(&names).expect("delete");
    assert_eq!(index(&store).retrain_reason, None);
}

#[test]
fn a_build_with_nothing_to_do_publishes_nothing() {
    for n in [1, 2, 40] {
        let folder = tempdir().expect("folder");
        let store = Datastore::create(folder.path(), &keeping(DIM, KeyType::Float32)).expect("create");
        add(&store, n, Some("all"), None).expect("add");
        build(&store, false).expect("build");
        let generation = store.snapshot().manifest.generation;
        build(&store, false).expect("nothing to do");
        assert_eq!(store.snapshot().manifest.generation, generation, "{n} entries");
    }
}
