//! A store that is read into memory: the same answers, whatever happens to its files.

use crate::flips::every_kind;
use crate::store_support::key;
use knnlm::Error;
use knnlm::search::Request;
use knnlm::store::{Datastore, DocumentKey, Neighbors};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

static NEVER: AtomicBool = AtomicBool::new(false);

fn search(store: &Datastore) -> Neighbors {
    let queries: Vec<f32> = [3, 700].iter().flat_map(|&id| key(store.dim(), id)).collect();
    store.search(&queries, &Request { k: 40, ..Request::default() }, Some(1), &NEVER).expect("search")
}

fn segments(path: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(path).expect("list").map(|e| e.expect("entry").path());
    all.filter(|path| path.extension().is_some_and(|ending| ending == "seg")).collect()
}

#[test]
fn answers_are_those_of_the_mapped_store_and_outlive_its_files() {
    let folder = tempdir().expect("folder");
    every_kind(folder.path());
    let (mapped, resident) =
        (Datastore::open(folder.path()).expect("open"), Datastore::open_resident(folder.path()).expect("load"));
    assert!(resident.is_resident() && !mapped.is_resident());
    let expected = search(&mapped);
    assert_eq!(search(&resident), expected);
    assert_eq!(resident.values(0..40).expect("values"), mapped.values(0..40).expect("values"));
    assert_eq!(resident.verify().expect("verify"), vec![]);
    drop(mapped);
    // Truncating a mapped file would end this process with SIGBUS.
    for path in segments(folder.path()) {
        std::fs::File::options().write(true).open(path).expect("open").set_len(0).expect("truncate");
    }
    assert_eq!(search(&resident), expected);
    assert!(Datastore::open(folder.path()).is_err());
}

#[test]
fn every_byte_is_checked_as_it_is_read() {
    let folder = tempdir().expect("folder");
    every_kind(folder.path());
    for path in segments(folder.path()) {
        let whole = std::fs::read(&path).expect("read");
        let mut bytes = whole.clone();
        bytes[64] ^= 1; // the first section
        std::fs::write(&path, &bytes).expect("write");
        let error = Datastore::open_resident(folder.path()).expect_err("damaged");
        assert!(matches!(&error, Error::Damaged { path: named, .. } if *named == path), "{error}");
        bytes.truncate(whole.len() - 64);
        std::fs::write(&path, &bytes).expect("write");
        let error = Datastore::open_resident(folder.path()).expect_err("truncated");
        assert!(matches!(&error, Error::Format { path: named, .. } if *named == path), "{error}");
        std::fs::write(&path, &whole).expect("write");
    }
    Datastore::open_resident(folder.path()).expect("whole again");
}

#[test]
fn it_follows_changes_and_reads_what_it_has_only_once() {
    let folder = tempdir().expect("folder");
    every_kind(folder.path());
    let (writer, reader) =
        (Datastore::open(folder.path()).expect("open"), Datastore::open_resident(folder.path()).expect("load"));
    writer.delete(&[DocumentKey::Name("document 5".into())]).expect("delete");
    // What was read stays read: damage to a file that both generations name is not seen by a refresh, but by who loads it.
    let lists =
        segments(folder.path()).into_iter().find(|path| path.to_string_lossy().contains("lists")).expect("lists");
    let mut bytes = std::fs::read(&lists).expect("read");
    bytes[64] ^= 1;
    std::fs::remove_file(&lists).expect("remove"); // the writer has it mapped
    std::fs::write(&lists, bytes).expect("write");
    reader.refresh().expect("refresh");
    assert_eq!((reader.generation(), reader.is_resident()), (writer.generation(), true));
    assert_eq!(search(&reader), search(&writer));
    assert!(Datastore::open_resident(folder.path()).is_err());
    // It writes, too.
    reader.delete(&[DocumentKey::Name("document 6".into())]).expect("delete");
    assert_eq!(reader.len(), writer.len() - 40);
}
