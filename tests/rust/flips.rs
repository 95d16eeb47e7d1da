//! Single flipped bits anywhere in a store: `verify` finds every one and says where; nothing crashes on the way.

use crate::store_support::{add, keeping, key};
use knnlm::Error;
use knnlm::index::Params;
use knnlm::search::{Request, Rerank};
use knnlm::store::{BuildOptions, Datastore, DocumentKey, KeyType};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

const DIM: usize = 16;

/// A store with files of every kind: data with raw keys and with runs, codebook, lists, deleted documents.
pub fn every_kind(path: &Path) {
    let store = Datastore::create(path, &keeping(DIM, KeyType::Float16)).expect("create");
    let build = || {
        let params = Params { nlist: Some(8), ..Params::default() };
        let options = BuildOptions { params, retrain: false, threads: Some(1) };
        store.build(&options, &|_, _, _| {}, &AtomicBool::new(false)).expect("build");
    };
    let delete = |names: &[&str]| {
        let keys: Vec<DocumentKey> = names.iter().map(|&n| DocumentKey::Name(n.into())).collect();
        store.delete(&keys).expect("delete");
    };
    for i in 0..30 {
        add(&store, 40, Some(&format!("document {i}")), Some("{\"a\": [1, 2]}")).expect("add");
    }
    build();
    delete(&["document 3", "document 20"]);
    store.compact(&|_, _, _| {}, &AtomicBool::new(false)).expect("compact");
    add(&store, 200, Some("indexed later"), None).expect("add");
    build();
    add(&store, 50, None, None).expect("add");
    store.commit().expect("commit");
    delete(&["document 7"]);
}

/// Everything that a reader may ask; answers do not matter, only that they come or are errors.
pub fn use_store(path: &Path) -> Result<(), Error> {
    let store = Datastore::open(path)?;
    let queries: Vec<f32> = [3, 700].iter().flat_map(|&id| key(store.dim().min(64), id)).collect();
    if queries.len() == 2 * store.dim() {
        for request in [
            Request { k: 9, ..Request::default() },
            Request { k: 300, nprobe: Some(usize::MAX), ..Request::default() },
            Request { k: 20, exact: true, ..Request::default() },
            Request { k: 20, rerank: Rerank::Keys, ..Request::default() },
        ] {
            let _ = store.search(&queries, &request, Some(1), &AtomicBool::new(false));
        }
    }
    let n = store.next_id();
    let ids: Vec<i64> = (0..n.min(2000) as i64).step_by(37).collect();
    let _ = (store.get(&ids), store.reconstruct(&ids[..ids.len().min(5)]), store.info());
    let _ = (store.values(0..n.min(5000)), store.keys(0..n.min(100)), store.find_document("document 5"));
    (0..store.documents().min(60)).for_each(|i| drop(store.document(i)));
    Ok(())
}

fn files(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(path).expect("list").map(|e| e.expect("entry").path());
    let mut files: Vec<_> = entries.filter(|p| p.file_name().is_some_and(|n| n != "lock")).collect();
    files.sort();
    files.into_iter().map(|p| (p.clone(), std::fs::read(p).expect("read"))).collect()
}

fn flip(count: usize, seed: u64) {
    let folder = tempdir().expect("folder");
    every_kind(folder.path());
    assert_eq!(Datastore::verify_path(folder.path()).expect("verify"), vec![]);
    let files = files(folder.path());
    let total: usize = files.iter().map(|f| f.1.len()).sum();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut found, mut named_section, mut named_entries, mut opened) = (0, 0, 0, 0);
    let mut by_file: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..count {
        let mut at = (rng.next_u64() % total as u64) as usize;
        let (path, bytes) = files
            .iter()
            .find(|(_, b)| {
                at < b.len() || {
                    at -= b.len();
                    false
                }
            })
            .expect("within the files");
        let bit = rng.next_u32() % 8;
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << bit;
        // In a new file: the old one may still be mapped.
        std::fs::remove_file(path).expect("remove");
        std::fs::write(path, &damaged).expect("write");
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        match Datastore::verify_path(folder.path()) {
            Ok(problems) => {
                let problem = problems.iter().find(|p| p.file == name);
                let problem = problem.unwrap_or_else(|| panic!("{name}, byte {at}, bit {bit}: found {problems:?}"));
                named_section += usize::from(problem.section.is_some());
                named_entries += usize::from(problem.entries.is_some());
            }
            Err(e) => assert!(e.to_string().contains(&name), "{name}, byte {at}, bit {bit}: {e}"),
        }
        found += 1;
        opened += usize::from(use_store(folder.path()).is_ok());
        *by_file.entry(name).or_default() += 1;
        std::fs::remove_file(path).expect("remove");
        std::fs::write(path, bytes).expect("write");
    }
    println!("{found} of {count} flipped bits found, {named_section} with their section, {named_entries} with entries");
    println!("{opened} of the damaged stores opened without a full check and were used; by file: {by_file:?}");
    assert_eq!(found, count);
    assert!(named_section * 10 > count * 8, "most bytes lie in sections");
}

#[test]
fn verify_finds_every_flipped_bit() {
    flip(300, 1);
}

/// The full count: `cargo test --release --test main ten_thousand -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes"]
fn verify_finds_ten_thousand_flipped_bits() {
    flip(10_000, 2);
}

#[test]
fn truncated_files_are_refused() {
    let folder = tempdir().expect("folder");
    every_kind(folder.path());
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (path, bytes) in files(folder.path()) {
        for _ in 0..12 {
            let length = (rng.next_u64() % bytes.len() as u64) as usize;
            std::fs::remove_file(&path).expect("remove");
            std::fs::write(&path, &bytes[..length]).expect("write");
            let sound = Datastore::verify_path(folder.path()).is_ok_and(|problems| problems.is_empty());
            assert!(!sound, "{} cut to {length} bytes", path.display());
            assert!(use_store(folder.path()).is_err(), "{} cut to {length} bytes", path.display());
        }
        std::fs::remove_file(&path).expect("remove");
        std::fs::write(&path, &bytes).expect("write");
    }
    assert_eq!(Datastore::verify_path(folder.path()).expect("verify"), vec![]);
}
