//! Whatever a store's files say, with checksums that agree: errors or nonsense, never a panic and never a hang.

use crate::forge::{change_manifest, manifest, seal, sum, table, u64_at};
use crate::store_support::{add, key, options};
use knnlm::Error;
use knnlm::search::Request;
use knnlm::store::{BuildOptions, Datastore, DocumentKey};
use proptest::prelude::*;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use tempfile::{TempDir, tempdir};

const DIM: usize = 8;
const SEGMENTS: [&str; 4] = ["data-00000003.seg", "codebook-00000003.seg", "lists-00000003.seg", "data-00000004.seg"];

/// A built store with entries added afterwards.
fn sample() -> TempDir {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(DIM)).expect("create");
    add(&store, 150, Some("a"), Some("{}")).expect("add");
    store.build(&BuildOptions::default(), &|_, _, _| {}, &AtomicBool::new(false)).expect("build");
    add(&store, 30, Some("b"), None).expect("add");
    store.commit().expect("commit");
    folder
}

/// Files of the sample, made once.
fn contents() -> &'static Vec<(String, Vec<u8>)> {
    static CONTENTS: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    CONTENTS.get_or_init(|| {
        let folder = sample();
        let mut names: Vec<String> = SEGMENTS.map(str::to_owned).to_vec();
        names.push(manifest(folder.path()).file_name().expect("name").to_string_lossy().into_owned());
        names.into_iter().map(|name| (name.clone(), std::fs::read(folder.path().join(name)).expect("read"))).collect()
    })
}

fn copy() -> TempDir {
    let folder = tempdir().expect("folder");
    for (name, bytes) in contents() {
        std::fs::write(folder.path().join(name), bytes).expect("write");
    }
    folder
}

/// Everything that reads.
fn exercise(path: &Path) {
    let _ = Datastore::verify_path(path);
    let Ok(store) = Datastore::open(path) else { return };
    let _ = (store.info(), store.len(), store.attributes());
    let ids = [0, 1, 75, 149, 150, 179, 180, -1, i64::MAX];
    let _ = (store.get(&ids), store.document_of(&ids));
    let _ = (store.find_document("a"), store.find_document("b"), store.find_document(""));
    for i in [0, 1, 2, u64::MAX] {
        let _ = store.document(i);
    }
    let _ = (store.values(0..180), store.keys(150..180), store.reconstruct(&[3, 160]), store.reconstruct(&[149]));
    let queries: Vec<f32> = [3, 160].iter().flat_map(|&id| key(DIM, id)).collect();
    for nprobe in [None, Some(1), Some(usize::MAX)] {
        let request = Request { k: 20, nprobe, ..Request::default() };
        let _ = store.search(&queries, &request, Some(1), &AtomicBool::new(false));
    }
    // Writing on top of it.
    let keys = key(DIM, 180);
    let _ = store.add(knnlm::keys::KeyRows::F32(&keys), knnlm::store::ValueRows::U32(&[1]), Some("c"), None);
    let _ = store.commit();
    let _ = store.build(
        &BuildOptions { threads: Some(1), ..BuildOptions::default() },
        &|_, _, _| {},
        &AtomicBool::new(false),
    );
}

/// Numbers that trouble arithmetic.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        Just(i64::MAX as u64),
        Just(0x7ff8_0000_7fc0_0000), // NaN as f64 and as f32
        0u64..400,
        any::<u64>()
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn sections_of_any_content(
        file in 0usize..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), number(), 1usize..9), 1..4),
    ) {
        let folder = copy();
        let (name, bytes) = &contents()[file];
        let mut bytes = bytes.clone();
        let end = table(&bytes).0;
        for (place, number, length) in changes {
            let at = 64 + place.index(end - 64);
            let span = at..end.min(at + length);
            let n = span.len();
            bytes[span].copy_from_slice(&number.to_le_bytes()[..n]);
        }
        sum(&mut bytes);
        seal(folder.path(), name, &mut bytes);
        exercise(folder.path());
    }

    #[test]
    fn tables_of_any_content(
        file in 0usize..4,
        entry in any::<prop::sample::Index>(),
        field in prop_oneof![Just(0usize), Just(4), Just(8), Just(16), Just(24)],
        value in prop_oneof![number().boxed(), (1u64..40).prop_map(|n| n * 64).boxed()],
    ) {
        let folder = copy();
        let (name, bytes) = &contents()[file];
        let mut bytes = bytes.clone();
        let (start, count) = table(&bytes);
        let at = start + 48 * entry.index(count) + field;
        let width = if field < 8 { 4 } else { 8 };
        bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        seal(folder.path(), name, &mut bytes);
        exercise(folder.path());
    }

    #[test]
    fn manifests_with_any_numbers(
        places in prop::collection::vec((any::<prop::sample::Index>(), number()), 1..3),
    ) {
        let folder = copy();
        change_manifest(folder.path(), |body| {
            let mut all = pointers(body, "");
            all.sort();
            for (place, number) in &places {
                *body.pointer_mut(place.get::<String>(&all)).expect("place") = (*number).into();
            }
        });
        exercise(folder.path());
    }
}

/// Where the numbers and nulls of a JSON value are.
fn pointers(value: &serde_json::Value, at: &str) -> Vec<String> {
    match value {
        serde_json::Value::Array(items) => {
            items.iter().enumerate().flat_map(|(i, v)| pointers(v, &format!("{at}/{i}"))).collect()
        }
        serde_json::Value::Object(fields) => {
            fields.iter().flat_map(|(k, v)| pointers(v, &format!("{at}/{k}"))).collect()
        }
        serde_json::Value::Number(_) | serde_json::Value::Null => vec![at.to_owned()],
        _ => vec![],
    }
}

#[test]
fn the_sample_itself_is_sound() {
    let folder = copy();
    assert_eq!(Datastore::verify_path(folder.path()).expect("verify"), vec![]);
    let (_, lists) = &contents()[2];
    assert_eq!(u64_at(lists, 64), 0, "list offsets start with 0");
    exercise(folder.path());
    assert_eq!(Datastore::open(folder.path()).expect("open").len(), 181);
}

#[test]
fn a_delete_that_a_damaged_document_table_would_break_changes_nothing() {
    // Found by fuzzing: the deletion was published, and the store could not be opened any more.
    for end in [151u64, 181, 10_000, u64::MAX] {
        let folder = copy();
        let (name, sound) = &contents()[0];
        let mut bytes = sound.clone();
        let record = [0u64.to_le_bytes(), 150u64.to_le_bytes()].concat();
        let at = bytes.windows(16).position(|window| window == record).expect("the record of document a");
        bytes[at + 8..at + 16].copy_from_slice(&end.to_le_bytes());
        sum(&mut bytes);
        seal(folder.path(), name, &mut bytes);
        let store = Datastore::open(folder.path()).expect("open");
        let generation = store.generation();
        let both = [DocumentKey::Name("b".into()), DocumentKey::Name("a".into())];
        let error = store.delete(&both).expect_err("a document of more entries than there are");
        assert!(matches!(error, Error::Format { .. }), "{error}");
        store.supersede(&both).expect("not yet");
        let error = store.commit().expect_err("the same");
        assert!(matches!(error, Error::Format { .. }), "{error}");
        let again = Datastore::open(folder.path()).expect("open");
        assert_eq!((again.generation(), again.documents()), (generation, 2));
    }
}

#[test]
fn a_segment_that_continues_a_document_needs_one_before_it() {
    for documents in [0, 1] {
        let folder = copy();
        change_manifest(folder.path(), |body| {
            body["data"][0]["documents"] = documents.into();
            body["data"][1]["continues"] = true.into();
        });
        let error = Datastore::open(folder.path()).map(drop);
        assert_eq!(error.is_err_and(|e| e.to_string().contains("continues a document")), documents == 0);
        exercise(folder.path());
    }
}
