//! Why an entry of a store is a neighbor and why not, before and after it is deleted and compacted away.

use crate::store_support::{add, key, options};
use knnlm::search::{Reason, Request};
use knnlm::store::{BuildOptions, Datastore, DocumentKey};
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

#[test]
fn what_became_of_an_entry_is_told_at_every_generation() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(&folder.path().join("store"), &options(16)).expect("create");
    let never = AtomicBool::new(false);
    for (name, n) in [("kept", 200), ("gone", 50), ("late", 10)] {
        add(&store, n, Some(name), None).expect("add");
        if name != "late" {
            store.build(&BuildOptions::default(), &|_, _, _| (), &never).expect("build");
        }
    }
    store.commit().expect("commit");
    let request = Request { k: 5, ..Request::default() };
    let told = |query: u64, id: u64| {
        let query = key(16, query);
        let told = store.explain(&query, &request, id, Some(2), &never).expect("explains");
        let found = store.search(&query, &request, None, &never).expect("searches");
        let rank = found.ids.iter().position(|&found| found == id as i64);
        assert_eq!((told.rank, told.distance), (rank, rank.map(|rank| found.distances[rank])));
        told
    };
    assert_eq!(told(7, 7).reason, Reason::Returned);
    assert_eq!(told(220, 220).reason, Reason::Returned);
    let late = told(255, 255); // in no list yet
    assert!(late.scanned_exactly && late.lists.is_none() && late.distance == Some(0.0), "{late:?}");
    store.delete(&[DocumentKey::Name("gone".into())]).expect("delete");
    assert_eq!(told(220, 220).reason, Reason::Deleted);
    store.compact(&|_, _, _| (), &never).expect("compact");
    assert_eq!(told(220, 220).reason, Reason::Deleted);
    assert_eq!(told(7, 260).reason, Reason::Unknown);
}
