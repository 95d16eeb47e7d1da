//! Entries and documents by id, range and name, in a store of 64-bit values where some are deleted.

use crate::store_support::{add, keeping, key};
use knnlm::Error;
use knnlm::keys::KeyRows;
use knnlm::store::{Datastore, DocumentKey, KeyType, Options, ValueRows, ValueType, Values};
use tempfile::{TempDir, tempdir};

const DIM: usize = 3;

fn value(id: u64) -> u64 {
    (1 << 40) + id
}

/// Documents "a" of ids 0 to 3, "b" of 4 to 6 (deleted) and "c" of 7 to 9, the last in a segment of its own.
fn sample() -> (TempDir, Datastore) {
    let folder = tempdir().expect("folder");
    let options = Options { values: ValueType::Uint64, ..keeping(DIM, KeyType::Float32) };
    let store = Datastore::create(folder.path(), &options).expect("create");
    for (name, ids) in [("a", 0..4), ("b", 4..7), ("c", 7..10)] {
        let keys: Vec<f32> = ids.clone().flat_map(|id| key(DIM, id)).collect();
        let values: Vec<u64> = ids.map(value).collect();
        store.add(KeyRows::F32(&keys), ValueRows::U64(&values), Some(name), None).expect("add");
        if name != "a" {
            store.commit().expect("commit");
        }
    }
    store.delete(&[DocumentKey::Name("b".into())]).expect("delete");
    (folder, store)
}

#[test]
fn ids_of_deleted_entries_have_no_value() {
    let (_folder, store) = sample();
    let gone = u64::MAX;
    let values = store.values(2..9).expect("values");
    assert_eq!(values, Values::U64(vec![value(2), value(3), gone, gone, gone, value(7), value(8)]));
    assert_eq!((values.len(), values.is_empty()), (7, false));
    assert!(store.values(5..5).expect("no ids").is_empty());
    let entries = store.get(&[9, 5, 0, -1, 10]).expect("get");
    assert_eq!(entries.values, Values::U64(vec![value(9), gone, value(0), gone, gone]));
    assert_eq!(entries.documents, [1, -1, 0, -1, -1]);
    assert_eq!(entries.positions, [2, -1, 0, -1, -1]);
    assert!(matches!(store.values(0..11), Err(Error::Argument(_))));
}

#[test]
fn keys_of_deleted_entries_are_not_given() {
    let (_folder, store) = sample();
    let keys = |ids: std::ops::Range<u64>| ids.flat_map(|id| key(DIM, id)).collect::<Vec<f32>>();
    assert_eq!(store.keys(0..4).expect("keys"), keys(0..4));
    assert_eq!(store.keys(7..10).expect("keys"), keys(7..10));
    assert!(matches!(store.keys(2..8), Err(Error::Argument(m)) if m.contains("found 3 that are deleted")));
    assert_eq!(store.reconstruct(&[9, 0]).expect("raw keys"), [keys(9..10), keys(0..1)].concat());
    assert!(matches!(store.reconstruct(&[5]), Err(Error::Argument(m)) if m.contains("found 5")));
}

#[test]
fn documents_by_number_and_by_name() {
    let (_folder, store) = sample();
    let name = |name: &str| DocumentKey::Name(name.into());
    let ids = |documents: &[DocumentKey]| store.snapshot().ids_of(documents).map(|ids| ids.to_vec());
    assert_eq!(ids(&[name("c"), DocumentKey::Index(0)]).expect("both"), [0..4, 7..10]);
    assert!(matches!(ids(&[name("b")]), Err(Error::Argument(m)) if m.contains("one of 2 documents, found \"b\"")));
    assert!(matches!(ids(&[DocumentKey::Index(2)]), Err(Error::Argument(m)) if m.contains("below 2, found 2")));
    assert!(matches!(store.document(2), Err(Error::Argument(m)) if m.contains("less than 2, found 2")));
    assert_eq!(store.document_of(&[8, 4, 0, -7]).expect("places"), [1, -1, 0, -1]);
}

#[test]
fn values_of_either_width_go_into_a_store_of_the_other() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &keeping(DIM, KeyType::Float16)).expect("create");
    add(&store, 2, None, None).expect("narrow");
    let keys: Vec<f32> = (2..4).flat_map(|id| key(DIM, id)).collect();
    store.add(KeyRows::F32(&keys), ValueRows::U64(&[7, 8]), None, None).expect("wide that fits");
    let error = store.add(KeyRows::F32(&keys), ValueRows::U64(&[7, 1 << 32]), None, None).expect_err("too large");
    assert!(error.to_string().contains("value of row 1") && error.to_string().contains("uint64"), "{error}");
    store.commit().expect("commit");
    assert_eq!(store.values(2..4).expect("values"), Values::U32(vec![7, 8]));
    assert!(ValueRows::U32(&[]).is_empty() && !ValueRows::U64(&[1]).is_empty());
}

#[test]
fn spans_are_those_of_the_documents() {
    let agree = |store: &Datastore| {
        let documents: Vec<_> = (0..store.documents()).map(|i| store.document(i).expect("document")).collect();
        let (starts, ends) = store.document_spans().expect("spans");
        assert_eq!(starts, documents.iter().map(|d| d.start).collect::<Vec<_>>());
        assert_eq!(ends, documents.iter().map(|d| d.end).collect::<Vec<_>>());
        documents.len()
    };
    let (_folder, store) = sample();
    assert_eq!(agree(&store), 2);
    // Documents that go on in further segments, empty ones, one without a name; compacted, and deleted again.
    let folder = tempdir().expect("folder");
    crate::flips::every_kind(folder.path());
    let store = Datastore::open(folder.path()).expect("open");
    agree(&store);
    for i in 0..4 {
        add(&store, 5 * (i % 3), Some("goes on"), None).expect("add");
        store.commit().expect("commit");
        agree(&store);
    }
    add(&store, 0, Some("empty"), None).expect("add");
    add(&store, 3, Some("last"), None).expect("add");
    store.commit().expect("commit");
    store.delete(&[DocumentKey::Name("document 9".into()), DocumentKey::Name("goes on".into())]).expect("delete");
    let before = agree(&store);
    store.compact(&|_, _, _| (), &std::sync::atomic::AtomicBool::new(false)).expect("compact");
    assert_eq!(agree(&store), before);
}
