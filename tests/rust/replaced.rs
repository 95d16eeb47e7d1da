//! The folder of a store is replaced as a whole while an object has it open: the object writes nothing into the new one.

use crate::store_support::{add, assert_entries, key, options, value};
use knnlm::Error;
use knnlm::keys::KeyRows;
use knnlm::store::{BuildOptions, Datastore, DocumentKey, Options, ValueRows};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

const DIM: usize = 8;

/// A store with `commits` documents of `n` entries, one in a commit.
fn filled(path: &Path, commits: u64, n: u64) -> Datastore {
    let store = Datastore::create(path, &options(DIM)).expect("create");
    for i in 0..commits {
        add(&store, n, Some(&format!("document {i}")), None).expect("add");
        store.commit().expect("commit");
    }
    store
}

/// Everything in a folder.
fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(path).expect("list").map(|e| e.expect("entry").path());
    entries.map(|p| (p.display().to_string(), std::fs::read(&p).expect("read"))).collect()
}

/// An open store of `commits` of 30 entries, and in `parent`: its place, taken by another one with commits of 29, and where it
/// lies aside. `before` is done to it before.
fn replaced<T>(
    parent: &Path,
    [commits, others]: [u64; 2],
    before: impl FnOnce(&Datastore) -> T,
) -> (Datastore, [PathBuf; 2], T) {
    let [path, aside, other] = ["store", "aside", "other"].map(|name| parent.join(name));
    let open = filled(&path, commits, 30);
    drop(filled(&other, others, 29));
    let kept = before(&open);
    std::fs::rename(&path, &aside).expect("rename");
    std::fs::rename(&other, &path).expect("rename");
    (open, [path, aside], kept)
}

type Write = fn(&Datastore) -> knnlm::Result<()>;

/// Every way to write.
const WRITES: [Write; 7] = [
    |store| add(store, 5, Some("more"), None).map(drop),
    |store| store.delete(&[DocumentKey::Name("document 0".into())]).map(drop),
    |store| store.supersede(&[DocumentKey::Name("document 0".into())]).map(drop),
    |store| store.compact(&|_, _, _| {}, &AtomicBool::new(false)),
    |store| store.set_attributes("{}"),
    |store| store.build(&BuildOptions::default(), &|_, _, _| {}, &AtomicBool::new(false)),
    |store| store.hold().map(drop),
];

fn assert_replaced(error: &Error, expected: &str) {
    assert!(matches!(error, Error::State { message: m, .. } if m.contains(expected)), "{error}");
}

#[test]
fn an_open_store_writes_nothing_into_another_one_in_its_place() {
    // Generations of the new one: fewer, as many, more.
    for commits in [1, 2, 3] {
        let parent = tempdir().expect("folder");
        let (open, [path, _], ()) = replaced(parent.path(), [2, commits], |_| ());
        let before = files(&path);
        for write in WRITES {
            let error = write(&open).expect_err("another store");
            assert_replaced(&error, "another store in its place");
            assert!(files(&path) == before);
        }
        assert_entries(&open, 60); // reading goes on
        drop(open);
        assert!(files(&path) == before);
        assert_entries(&Datastore::open(&path).expect("open"), 29 * commits);
    }
}

#[test]
fn what_was_added_is_not_committed_into_another_store() {
    let parent = tempdir().expect("folder");
    let pending = |open: &Datastore| add(open, 7, Some("lost"), None).expect("add");
    let (open, [path, aside], _) = replaced(parent.path(), [2, 2], pending);
    let before = files(&path);
    assert_replaced(&open.commit().expect_err("replaced"), "replaced or removed");
    assert!(files(&path) == before);
    // Nobody holds the new one.
    let new = Datastore::open(&path).expect("open");
    add(&new, 3, Some("new"), None).expect("add");
    new.commit().expect("commit");
    assert_entries(&new, 61);
    assert_eq!(Datastore::verify_path(&aside).expect("verify"), vec![]);
    assert_entries(&Datastore::open(&aside).expect("open"), 60);
}

#[test]
fn a_held_lock_does_not_stand_for_another_store() {
    let parent = tempdir().expect("folder");
    let (open, [path, _], held) = replaced(parent.path(), [1, 1], |open| open.hold().expect("hold"));
    let before = files(&path);
    for write in WRITES {
        assert_replaced(&write(&open).expect_err("replaced"), "replaced or removed");
    }
    drop(held);
    assert!(files(&path) == before);
}

#[test]
fn a_removed_store_comes_back_by_no_write() {
    let parent = tempdir().expect("folder");
    let path = parent.path().join("store");
    let open = filled(&path, 1, 30);
    std::fs::remove_dir_all(&path).expect("remove");
    for write in WRITES {
        write(&open).expect_err("nothing there");
    }
    assert!(!path.exists());
}

#[test]
fn a_store_replaced_by_a_later_one_in_the_same_folder_is_followed() {
    let folder = tempdir().expect("folder");
    let open = filled(folder.path(), 1, 30);
    drop(Datastore::create(folder.path(), &Options { overwrite: true, ..options(3) }).expect("overwrite"));
    add(&open, 1, None, None).expect_err("keys of another dimension");
    open.discard();
    assert_eq!(open.dim(), 3);
    open.add(KeyRows::F32(&key(3, 0)), ValueRows::U32(&[value(0)]), None, None).expect("add");
    open.commit().expect("commit");
    assert_entries(&Datastore::open(folder.path()).expect("open"), 1);
}
