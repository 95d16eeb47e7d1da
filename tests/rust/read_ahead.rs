//! The system reads raw keys ahead where they are read in order, and nothing where a search picks some of them.

use crate::store_support::{add, keeping, key};
use knnlm::search::{Request, Rerank};
use knnlm::store::{BuildOptions, Datastore, KeyType};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

const DIM: usize = 64;

/// Whether a part of the data of a store is mapped for reading in no order, as the kernel has it.
fn is_in_no_order(store: &Path) -> bool {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
    let store = store.canonicalize().expect("path").display().to_string();
    let mut of_store = false;
    smaps.lines().any(|line| {
        match line.split_once(' ') {
            Some(("VmFlags:", flags)) => return of_store && flags.split(' ').any(|flag| flag == "rr"),
            Some((range, _)) if range.contains('-') => of_store = line.contains(&store) && line.contains("/data-"),
            _ => (),
        }
        false
    })
}

#[test]
fn the_system_reads_ahead_what_is_read_in_order() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &keeping(DIM, KeyType::Float16)).expect("create");
    add(&store, 2000, Some("a"), None).expect("add");
    let never = AtomicBool::new(false);
    store.build(&BuildOptions::default(), &|_, _, _| {}, &never).expect("build");
    let ask = |request: Request| {
        store.search(&key(DIM, 7), &request, Some(1), &never).expect("search");
        is_in_no_order(folder.path())
    };
    let k = 10;
    assert!(!ask(Request { k, ..Request::default() }));
    assert!(ask(Request { k, rerank: Rerank::Keys, ..Request::default() }));
    assert!(ask(Request { k, ..Request::default() }), "of no concern");
    assert!(!ask(Request { k, exact: true, ..Request::default() }));
    assert!(ask(Request { k, rerank: Rerank::Keys, ..Request::default() }));
    store.keys(0..2000).expect("keys");
    assert!(!is_in_no_order(folder.path()));
}
