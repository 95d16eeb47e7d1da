//! Replacing: the old document goes and the new one comes in one generation, or nothing changes.

use crate::failing_disk::{FailingDisk, Failure};
use crate::store_support::{add, keeping, key, options, value};
use knnlm::index::Params;
use knnlm::keys::KeyRows;
use knnlm::search::Request;
use knnlm::store::{BuildOptions, Datastore, Document, DocumentKey, KeyType, Options, ValueRows, Values};
use knnlm::{Error, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

const DIM: usize = 16;
const LENGTH: u64 = 50;

fn name(i: u64) -> DocumentKey {
    DocumentKey::Name(format!("document {i}"))
}

fn build(store: &Datastore) {
    let params = Params { nlist: Some(4), ..Params::default() };
    let options = BuildOptions { params, retrain: false, threads: Some(1) };
    store.build(&options, &|_, _, _| {}, &AtomicBool::new(false)).expect("build");
}

fn filled(path: &Path, options: &Options, documents: u64) -> Datastore {
    let store = Datastore::create(path, options).expect("create");
    for i in 0..documents {
        add(&store, LENGTH, Some(&format!("document {i}")), Some("{}")).expect("add");
    }
    store.commit().expect("commit");
    store
}

/// Every document with its values.
fn contents(store: &Datastore) -> Vec<(Document, Vec<u32>)> {
    let documents = (0..store.documents()).map(|i| store.document(i).expect("document"));
    let values = |d: &Document| match store.values(d.start..d.end).expect("values") {
        Values::U32(values) => values,
        Values::U64(_) => panic!("u32 values"),
    };
    documents.map(|d| (d.clone(), values(&d))).collect()
}

fn nearest(store: &Datastore, id: u64, k: usize) -> Vec<i64> {
    let request = Request { k, nprobe: Some(99), ..Request::default() };
    store.search(&key(DIM, id), &request, Some(1), &AtomicBool::new(false)).expect("search").ids
}

#[test]
fn old_and_new_change_places_in_one_generation() {
    for (options, built) in [
        (options(DIM), false),
        (options(DIM), true),
        (keeping(DIM, KeyType::Float16), true),
        (keeping(DIM, KeyType::Float32), false),
    ] {
        for gone in [vec![3], vec![0, 9], vec![9], (0..10).collect::<Vec<u64>>()] {
            let folder = tempdir().expect("folder");
            let store = filled(folder.path(), &options, 10);
            if built {
                build(&store);
            }
            let (before, generation) = (contents(&store), store.generation());
            let names: Vec<DocumentKey> = gone.iter().map(|&i| name(i)).collect();
            let entries = gone.len() as u64 * LENGTH;
            assert_eq!(store.supersede(&names).expect("supersede"), entries);
            assert_eq!(store.supersede(&names).expect("again"), entries, "asked for twice, done once");
            for &i in &gone {
                add(&store, LENGTH + 1, Some(&format!("document {i}")), Some("[1]")).expect("the name is free");
            }
            let reader = Datastore::open(folder.path()).expect("open");
            assert!(contents(&store) == before && contents(&reader) == before, "nothing shows before the commit");
            store.commit().expect("commit");
            assert_eq!(store.generation(), generation + 1, "one generation");
            let again = Datastore::open(folder.path()).expect("open");
            assert!(contents(&again) == contents(&store));
            assert_eq!(store.len(), 10 * LENGTH + gone.len() as u64);
            assert_eq!(store.documents(), 10);
            for (document, values) in contents(&store) {
                assert_eq!(values, (document.start..document.end).map(value).collect::<Vec<_>>());
            }
            for &i in &gone {
                let index = store.find_document(&format!("document {i}")).expect("find").expect("there");
                let document = store.document(index).expect("document");
                assert!(document.start >= 10 * LENGTH && document.end - document.start == LENGTH + 1);
                assert_eq!(nearest(&store, document.start, 1), vec![document.start as i64]);
                let all = nearest(&store, i * LENGTH, store.len() as usize);
                assert!(!all.iter().any(|&id| (i * LENGTH..(i + 1) * LENGTH).contains(&(id as u64))));
            }
            assert_eq!(store.verify().expect("verify"), vec![]);
            build(&store);
            store.compact(&|_, _, _| {}, &AtomicBool::new(false)).expect("compact");
            assert_eq!(store.verify().expect("verify"), vec![]);
            assert_eq!(store.len(), 10 * LENGTH + gone.len() as u64);
            for (document, _) in contents(&store) {
                assert_eq!(nearest(&store, document.end - 1, 1), vec![document.end as i64 - 1], "{gone:?}");
            }
        }
    }
}

#[test]
fn the_last_document_is_replaced_not_extended() {
    let folder = tempdir().expect("folder");
    let store = filled(folder.path(), &keeping(DIM, KeyType::Float16), 2);
    store.supersede(&[name(1)]).expect("supersede");
    add(&store, 5, Some("document 1"), Some("[]")).expect("other metadata: another document");
    add(&store, 5, Some("document 1"), None).expect("goes on with the new one");
    store.commit().expect("commit");
    let found = contents(&store);
    assert_eq!(found.iter().map(|(d, _)| d.start..d.end).collect::<Vec<_>>(), [0..LENGTH, 100..110]);
    assert_eq!(found[1].0.metadata.as_deref(), Some("[]"));

    add(&store, 5, Some("document 1"), None).expect("extends what was committed");
    let error = store.supersede(&[name(1)]).expect_err("neither old nor new");
    assert!(matches!(&error, Error::Argument(m) if m.contains("commit first")), "{error}");
    store.commit().expect("commit");
    assert_eq!(store.supersede(&[name(1)]).expect("supersede"), 15);
    store.discard();
    assert_eq!(contents(&store).len(), 2);
}

#[test]
fn without_additions_it_deletes_and_discard_takes_it_back() {
    let folder = tempdir().expect("folder");
    let store = filled(folder.path(), &options(DIM), 4);
    build(&store);
    let before = contents(&store);
    store.supersede(&[name(1), DocumentKey::Index(3)]).expect("supersede");
    store.discard();
    store.commit().expect("nothing to do");
    assert!(contents(&store) == before);
    for wrong in [name(9), DocumentKey::Index(4)] {
        let generation = store.generation();
        let error = store.supersede(&[name(0), wrong]).expect_err("unknown");
        assert!(matches!(error, Error::Argument(_)), "{error}");
        // The lock is free again, and nothing waits.
        Datastore::open(folder.path()).expect("open").commit().expect("commit");
        store.commit().expect("commit");
        assert_eq!(store.generation(), generation);
    }
    store.supersede(&[]).expect("nothing");
    store.commit().expect("commit");
    assert!(contents(&store) == before);
    store.supersede(&[name(1), DocumentKey::Index(3)]).expect("supersede");
    store.commit().expect("commit");
    assert_eq!(store.documents(), 2);
    assert_eq!(store.verify().expect("verify"), vec![]);
    let files = std::fs::read_dir(folder.path()).expect("list").map(|e| e.expect("entry").file_name());
    let data = files.filter(|f| f.to_string_lossy().starts_with("data-")).count();
    assert_eq!(data, 1, "no data segment without data");
}

#[test]
fn a_refused_row_leaves_the_old_document() {
    let folder = tempdir().expect("folder");
    let store = filled(folder.path(), &options(DIM), 3);
    let before = contents(&store);
    store.supersede(&[name(1)]).expect("supersede");
    let nan = [f32::NAN; DIM];
    let error = store.add(KeyRows::F32(&nan), ValueRows::U32(&[1]), Some("document 1"), None).expect_err("NaN");
    assert!(matches!(error, Error::Argument(_)), "{error}");
    store.discard();
    assert!(contents(&store) == before);
    assert!(contents(&Datastore::open(folder.path()).expect("open")) == before);
}

fn replace(path: &Path, disk: &FailingDisk) -> Result<()> {
    let store = Datastore::open_through(path, Arc::new(disk.clone()))?;
    store.supersede(&[name(2), name(4)])?;
    add(&store, 70, Some("document 4"), None)?;
    add(&store, 70, Some("document 2"), None)?;
    store.commit()
}

#[test]
fn a_replacement_is_whole_or_did_not_happen_whichever_operation_fails() {
    let original = tempdir().expect("folder");
    let store = filled(original.path(), &options(DIM), 5);
    build(&store);
    let before = contents(&store);
    drop(store);
    for (failure, once) in [(Failure::Full, false), (Failure::Torn, false), (Failure::Denied, true)] {
        let (mut old, mut new) = (0, 0);
        for operation in 0.. {
            let folder = tempdir().expect("folder");
            for entry in std::fs::read_dir(original.path()).expect("list") {
                let entry = entry.expect("entry");
                std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("copy");
            }
            let disk = FailingDisk::new(operation, failure, once);
            let outcome = replace(folder.path(), &disk);
            let store = Datastore::open(folder.path()).expect("open");
            let found = contents(&store);
            if found == before {
                outcome.expect_err("a change that is acknowledged is there");
                old += 1;
            } else {
                let names: Vec<_> = found.iter().map(|(d, v)| (d.name.clone().expect("name"), v.len())).collect();
                let names: Vec<_> = names.iter().map(|(n, l)| (n.as_str(), *l)).collect();
                let expected = [
                    ("document 0", 50),
                    ("document 1", 50),
                    ("document 3", 50),
                    ("document 4", 70),
                    ("document 2", 70),
                ];
                assert_eq!(names, expected, "operation {operation}, {failure:?}");
                new += 1;
            }
            assert_eq!(store.verify().expect("verify"), vec![]);
            add(&store, 3, Some("after"), None).expect("add after the failure");
            store.commit().expect("commit after the failure");
            if !disk.has_failed() {
                break;
            }
        }
        assert!(old > 10 && new > 0, "{failure:?}: {old} old, {new} new");
    }
}
