//! Parts that others encode: the store has the bytes of one that the keys were added to, and takes in nothing else.

use crate::store_support::{assert_entries, key, options, value};
use knnlm::index::Params;
use knnlm::keys::KeyRows;
use knnlm::search::Truth;
use knnlm::store::{BuildOptions, Datastore, Encoded, KeyType, Options, PartDocument, ValueRows};
use knnlm::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

const DIM: usize = 8;
const SIZES: [u64; 5] = [300, 20, 500, 1, 90];

fn keys(ids: std::ops::Range<u64>) -> Vec<f32> {
    ids.flat_map(|id| key(DIM, id)).collect()
}

fn trained(path: &Path, keep: Option<KeyType>) -> Datastore {
    let store = Datastore::create(path, &Options { keep_keys: keep, ..options(DIM) }).expect("create");
    let params = Params { nlist: Some(6), expected: Some(900), ..Params::default() };
    let options = BuildOptions { params, retrain: false, threads: Some(1) };
    let sample = keys(0..400);
    store.train(KeyRows::F32(&sample), &options, &|_, _, _| (), &AtomicBool::new(false)).expect("train");
    store
}

fn encode(store: &Datastore, folder: &Path, part: usize, ids: std::ops::Range<u64>) -> Vec<Encoded> {
    let stem = format!("lists-{part:08}");
    store.encode_part(KeyRows::F32(&keys(ids)), folder, &stem, Some(2), &AtomicBool::new(false)).expect("encode")
}

fn add(store: &Datastore, folder: &Path, part: Vec<Encoded>, names: &[(&str, u64)], raw: Option<&[f32]>) -> Result<()> {
    let documents: Vec<PartDocument> = names.iter().map(|(name, n)| (Some((*name).into()), None, *n)).collect();
    let first = store.next_id();
    let n: u64 = documents.iter().map(|d| d.2).sum();
    let values: Vec<u32> = (first..first + n).map(value).collect();
    store.add_part(folder, part, &documents, ValueRows::U32(&values), raw.map(KeyRows::F32)).map(|_| ())
}

fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(path).expect("list").map(|e| e.expect("entry"));
    let files = entries.filter(|e| e.path().is_file());
    files.map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).expect("read"))).collect()
}

#[test]
fn parts_give_the_bytes_of_a_store_that_keys_were_added_to() {
    for keep in [None, Some(KeyType::Float16), Some(KeyType::Float32)] {
        compare(keep);
    }
}

fn compare(keep: Option<KeyType>) {
    let (one, two) = (tempdir().expect("folder"), tempdir().expect("folder"));
    let (added, parted) = (trained(one.path(), keep), trained(two.path(), keep));
    let folder = two.path().join("parts");
    std::fs::create_dir(&folder).expect("create");
    // Encoded in another order than they are taken in, by a reader of the store.
    let reader = Datastore::open(two.path()).expect("open");
    let starts: Vec<u64> = SIZES
        .iter()
        .scan(0, |sum, n| {
            *sum += n;
            Some(*sum - n)
        })
        .collect();
    let mut parts: Vec<(usize, Vec<Encoded>)> =
        (0..SIZES.len()).rev().map(|i| (i, encode(&reader, &folder, i, starts[i]..starts[i] + SIZES[i]))).collect();
    parts.sort_by_key(|p| p.0);
    for (i, part) in parts {
        let (first, n) = (starts[i], SIZES[i]);
        let values: Vec<u32> = (first..first + n).map(value).collect();
        let keys = keys(first..first + n);
        added.add(KeyRows::F32(&keys), ValueRows::U32(&values), Some(&format!("{i}")), None).expect("add");
        added.commit().expect("commit");
        add(&parted, &folder, part, &[(&format!("{i}"), n)], keep.map(|_| &keys[..])).expect("add");
        parted.commit().expect("commit");
    }
    assert!(files(one.path()) == files(two.path()));
    assert!(files(&folder).is_empty(), "the files moved");
    assert_eq!(parted.verify().expect("verify"), vec![]);
    let info = parted.info().expect("info");
    assert_eq!((info.indexed, info.entries_with_keys), (911, if keep.is_some() { 911 } else { 0 }));
    if keep.is_some() {
        assert_entries(&parted, 911);
    }
}

#[test]
fn what_is_not_a_part_of_this_store_is_refused() {
    let (mine, other) = (tempdir().expect("folder"), tempdir().expect("folder"));
    let store = trained(mine.path(), None);
    let folder = other.path();
    let refuse = |part: Vec<Encoded>, names: &[(&str, u64)], raw: Option<&[f32]>, why: &str| {
        let before = files(mine.path());
        let error = add(&store, folder, part, names, raw).expect_err(why);
        assert!(matches!(error, Error::Argument(_) | Error::Format { .. } | Error::Io { .. }), "{why}: {error}");
        store.discard();
        assert!(files(mine.path()) == before, "{why}");
    };
    let refused = |part, names: &[(&str, u64)], why: &str| refuse(part, names, None, why);
    let part = encode(&store, folder, 0, 0..50);
    refuse(part.clone(), &[("a", 50)], Some(&keys(0..50)), "raw keys that are not kept");
    refused(part.clone(), &[("a", 49)], "fewer entries than codes");
    refused(part.clone(), &[("a", 25), ("a", 0), ("b", 25), ("a", 0)], "a name twice");
    let wrong = vec![Encoded { entries: 60, live: 60, ..part[0].clone() }];
    refused(wrong, &[("a", 60)], "more entries than are in the file");
    for error in [f32::INFINITY, f32::NAN, -1.0] {
        refused(vec![Encoded { error, ..part[0].clone() }], &[("a", 50)], "an error that no keys have");
    }
    let mut bytes = std::fs::read(folder.join(&part[0].name.file)).expect("read");
    let middle = bytes.len() - 70;
    bytes[middle] ^= 1;
    std::fs::write(folder.join(&part[0].name.file), bytes).expect("write");
    refused(part.clone(), &[("a", 50)], "a damaged table");
    std::fs::remove_file(folder.join(&part[0].name.file)).expect("remove");
    refused(part, &[("a", 50)], "no file");
    let keeper = tempdir().expect("folder");
    let keeping = trained(keeper.path(), Some(KeyType::Float16));
    let part = encode(&keeping, folder, 0, 0..50);
    let mut huge = keys(0..50);
    huge[9] = 1e5;
    for raw in [None, Some(keys(0..49)), Some(huge)] {
        let error = add(&keeping, folder, part.clone(), &[("a", 50)], raw.as_deref()).expect_err("raw keys do not fit");
        assert!(matches!(error, Error::Argument(_)), "{error}");
    }
    add(&keeping, folder, part, &[("a", 50)], Some(&keys(0..50))).expect("add");
    let unbuilt = tempdir().expect("folder");
    let plain = Datastore::create(unbuilt.path(), &options(DIM)).expect("create");
    let never = AtomicBool::new(false);
    let error = plain.encode_part(KeyRows::F32(&keys(0..5)), folder, "x", None, &never).expect_err("not trained");
    assert!(matches!(error, Error::State { .. }), "{error}");
    let truth = Truth { queries: keys(0..2), own: vec![0..1, 1..2], ids: vec![3, 4], k: 1 };
    let error = plain.calibrate(&truth, None, &|_, _, _| (), &never).expect_err("no index");
    assert!(matches!(error, Error::State { .. }), "{error}");
    let wrong = Truth { queries: keys(0..1), ..truth };
    let error = store.calibrate(&wrong, None, &|_, _, _| (), &never).expect_err("too few queries");
    assert!(matches!(error, Error::Argument(_)), "{error}");
}
