//! Stores: what goes in comes out, and wrong arguments change nothing.

use crate::store_support::{add, assert_entries, keeping, key, options, value};
use half::f16;
use knnlm::Error;
use knnlm::index::Params;
use knnlm::keys::KeyRows;
use knnlm::store::{BuildOptions, Datastore, Document, DocumentKey, KeyType, Options, ValueRows, ValueType, Values};
use proptest::prelude::*;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

fn document(name: Option<&str>, start: u64, end: u64, metadata: Option<&str>) -> Document {
    Document { name: name.map(Into::into), start, end, metadata: metadata.map(Into::into) }
}

fn documents(store: &Datastore) -> Vec<Document> {
    (0..store.documents()).map(|i| store.document(i).expect("document")).collect()
}

fn assert_sound(path: &Path) {
    assert_eq!(Datastore::verify_path(path).expect("verify"), vec![]);
}

#[test]
fn entries_come_back_after_reopening() {
    for keep in [None, Some(KeyType::Float16), Some(KeyType::Float32)] {
        let folder = tempdir().expect("folder");
        let path = folder.path().join("deep").join("store");
        let store = Datastore::create(&path, &Options { keep_keys: keep, ..options(5) }).expect("create");
        assert_eq!(store.generation(), 1);
        assert_eq!(add(&store, 3, Some("a"), Some("{\"x\": 1.10}")).expect("add"), 0..3);
        assert_eq!(add(&store, 2, Some("a"), None).expect("add"), 3..5);
        assert_eq!(add(&store, 1, Some("b"), None).expect("add"), 5..6);
        assert_eq!(store.len(), 0, "not visible before commit");
        store.commit().expect("commit");
        assert_eq!(store.generation(), 2);
        store.commit().expect("an empty commit is no generation");
        assert_eq!(store.generation(), 2);
        for store in [&store, &Datastore::open(&path).expect("open")] {
            assert_entries(store, 6);
            assert!(store.keys(0..6).is_ok());
            let want = [document(Some("a"), 0, 5, Some("{\"x\": 1.10}")), document(Some("b"), 5, 6, None)];
            assert_eq!(documents(store), want);
            assert_eq!(store.document_of(&[0, 4, 5, 6, -1, i64::MIN]).expect("find"), [0, 0, 1, -1, -1, -1]);
            let entries = store.get(&[4, -1, 5, 99]).expect("get");
            assert_eq!(entries.values, Values::U32(vec![value(4), u32::MAX, value(5), u32::MAX]));
            assert_eq!((entries.documents, entries.positions), (vec![0, -1, 1, -1], vec![4, -1, 0, -1]));
            assert_eq!(store.find_document("b").expect("find"), Some(1));
            assert_eq!(store.find_document("c").expect("find"), None);
            assert_eq!(store.reconstruct(&[5]).expect("raw key"), key(5, 5));
            assert!(matches!(store.reconstruct(&[6]), Err(Error::Argument(m)) if m.contains("found 6")));
            assert!(matches!(store.values(3..7), Err(Error::Argument(_))));
        }
        assert_sound(&path);
    }
}

#[test]
fn an_empty_store_opens_and_has_nothing() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(8)).expect("create");
    assert!(store.is_empty() && store.documents() == 0 && !store.is_built());
    assert_eq!(store.get(&[0]).expect("get").documents, [-1]);
    assert_eq!(store.info().expect("info").bytes_per_entry, 0.0);
    assert_sound(folder.path());
}

#[test]
fn documents_go_on_across_commits() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &keeping(3, KeyType::Float16)).expect("create");
    let steps: [(u64, Option<&str>, bool); 9] = [
        (4, Some("a"), true),
        (3, Some("a"), true),
        (2, Some("a"), false),
        (0, Some("empty"), true),
        (1, None, true),
        (1, None, false),
        (5, Some("b"), true),
        (0, Some("b"), true),
        (1, Some("c"), true),
    ];
    for (n, name, commit) in steps {
        add(&store, n, name, None).expect("add");
        if commit {
            store.commit().expect("commit");
        }
    }
    let want = [
        document(Some("a"), 0, 9, None),
        document(Some("empty"), 9, 9, None),
        document(None, 9, 11, None),
        document(Some("b"), 11, 16, None),
        document(Some("c"), 16, 17, None),
    ];
    assert_eq!(documents(&store), want);
    for (i, d) in want.iter().enumerate() {
        if let Some(name) = &d.name {
            assert_eq!(store.find_document(name).expect("find"), Some(i as u64), "{name}");
        }
        for id in d.start..d.end {
            assert_eq!(store.document_of(&[id as i64]).expect("find"), [i as i64], "id {id}");
        }
    }
    assert_eq!(store.get(&[8]).expect("get").positions, [8], "position counts from the document's first segment");
    assert_entries(&store, 17);
    assert_sound(folder.path());
}

#[test]
fn wrong_batches_add_nothing() {
    let folder = tempdir().expect("folder");
    let options = Options { max_value: Some(100), ..keeping(2, KeyType::Float16) };
    let store = Datastore::create(folder.path(), &options).expect("create");
    let refuse = |keys: &[f32], values: &[u64], name: Option<&str>, metadata: Option<&str>, says: &[&str]| {
        let error = store.add(KeyRows::F32(keys), ValueRows::U64(values), name, metadata).expect_err("refused");
        assert!(matches!(error, Error::Argument(_)));
        let text = error.to_string();
        for word in says {
            assert!(text.contains(word), "{text:?} should say {word:?}");
        }
    };
    let good = |n: u64, name| {
        store.add(KeyRows::F32(&vec![1.0; 2 * n as usize]), ValueRows::U64(&vec![7; n as usize]), name, None)
    };
    let all_wrong = || {
        refuse(&[1.0, 2.0, f32::NAN, 4.0], &[1, 2], None, None, &["row 1, column 0", "NaN"]);
        refuse(&[1.0, f32::NEG_INFINITY], &[1], None, None, &["row 0, column 1", "inf"]);
        refuse(&[1.0, 70_000.0], &[1], None, None, &["65504", "70000", "float16"]);
        refuse(&[1.0, 2.0], &[101], None, None, &["row 0", "100", "101"]);
        refuse(&[1.0, 2.0, 3.0], &[1], None, None, &["1 rows × 2"]);
        refuse(&[1.0, 2.0], &[1], Some("x"), Some("{nonsense"), &["JSON"]);
        refuse(&[1.0, 2.0], &[1], Some(""), None, &["name"]);
        refuse(&[1.0, 2.0], &[1], None, Some("{}"), &["name"]);
    };
    all_wrong();
    let other = Datastore::open(folder.path()).expect("open");
    assert!(add(&other, 0, Some("lock is free after a refused first batch"), None).is_ok());
    other.discard();
    good(2, Some("a")).expect("add");
    all_wrong();
    good(1, Some("b")).expect("add");
    refuse(&[1.0, 2.0], &[1], Some("a"), None, &["\"a\"", "earlier document"]);
    refuse(&[1.0, 2.0], &[1], Some("b"), Some("{}"), &["document \"b\": expected the metadata"]);
    store.commit().expect("commit");
    refuse(&[1.0, 2.0], &[1], Some("a"), None, &["\"a\"", "earlier document"]);
    all_wrong();
    assert_eq!(good(1, Some("b")).expect("add"), 3..4);
    store.commit().expect("commit");
    assert_eq!(documents(&store), [document(Some("a"), 0, 2, None), document(Some("b"), 2, 4, None)]);
    assert_sound(folder.path());
    // The largest f16 and what rounds to it are no overflow.
    let rows = [65_504.0f32, 65_519.0];
    assert!(store.add(KeyRows::F32(&rows), ValueRows::U64(&[1]), None, None).is_ok());
    refuse(&[0.0, 65_520.0], &[1], None, None, &["65520"]);
    store.commit().expect("commit");
    assert_eq!(store.keys(4..5).expect("keys"), [65_504.0, 65_504.0]);
}

#[test]
fn values_must_fit_their_type() {
    let folder = tempdir().expect("folder");
    let narrow = Datastore::create(&folder.path().join("32"), &options(1)).expect("create");
    let big = [u64::from(u32::MAX) + 1];
    let error = narrow.add(KeyRows::F32(&[0.0]), ValueRows::U64(&big), None, None).expect_err("too large");
    assert!(error.to_string().contains("4294967296") && error.to_string().contains("uint64"), "{error}");
    let missing = [u64::from(u32::MAX)];
    let error = narrow.add(KeyRows::F32(&[0.0]), ValueRows::U64(&missing), None, None).expect_err("means missing");
    assert!(error.to_string().contains("found 4294967295, which means a missing value"), "{error}");
    let wide = Options { values: ValueType::Uint64, ..options(1) };
    let wide = Datastore::create(&folder.path().join("64"), &wide).expect("create");
    let error = wide.add(KeyRows::F32(&[0.0]), ValueRows::U64(&[u64::MAX]), None, None).expect_err("means missing");
    assert!(error.to_string().contains("means a missing value"), "{error}");
    wide.add(KeyRows::F32(&[0.5]), ValueRows::U32(&[u32::MAX]), None, None).expect("add: no missing value of 64 bits");
    wide.discard();
    wide.add(KeyRows::F16(&[f16::from_f32(0.5)]), ValueRows::U64(&big), None, None).expect("add");
    wide.add(KeyRows::F32(&[0.5]), ValueRows::U32(&[3]), None, None).expect("add");
    wide.commit().expect("commit");
    assert_eq!(wide.values(0..2).expect("values"), Values::U64(vec![big[0], 3]));
    assert_eq!(wide.keys(0..2).expect("keys"), [0.5, 0.5]);
    assert_eq!(wide.get(&[-1]).expect("get").values, Values::U64(vec![u64::MAX]));
}

#[test]
fn a_second_writer_is_refused_until_the_first_has_committed() {
    let folder = tempdir().expect("folder");
    let first = Datastore::create(folder.path(), &options(2)).expect("create");
    let second = Datastore::open(folder.path()).expect("open");
    add(&first, 2, Some("a"), None).expect("add");
    for refused in [add(&second, 1, None, None).map(drop), second.set_attributes("{}")] {
        let error = refused.expect_err("locked");
        assert!(matches!(&error, Error::State { message: m, .. } if m.contains("another writer")), "{error}");
    }
    first.commit().expect("commit");
    assert_eq!(second.len(), 0, "readers keep their generation");
    // The second writer goes on from what the first has committed.
    let keys: Vec<f32> = key(2, 2);
    assert_eq!(second.add(KeyRows::F32(&keys), ValueRows::U32(&[value(2)]), None, None).expect("add"), 2..3);
    second.commit().expect("commit");
    assert_entries(&second, 3);
    assert_eq!(first.len(), 2);
    first.refresh().expect("refresh");
    assert_entries(&first, 3);
}

#[test]
fn readers_outlive_the_files_of_their_generation() {
    let folder = tempdir().expect("folder");
    let writer = Datastore::create(folder.path(), &keeping(4, KeyType::Float32)).expect("create");
    add(&writer, 100, Some("a"), None).expect("add");
    writer.commit().expect("commit");
    let reader = Datastore::open(folder.path()).expect("open");
    let empty = Datastore::create(folder.path(), &Options { overwrite: true, ..options(9) }).expect("overwrite");
    assert_eq!((empty.len(), empty.dim(), empty.generation()), (0, 9, 3));
    assert_entries(&reader, 100);
    let left: Vec<String> = names(folder.path());
    assert_eq!(left, ["lock", "manifest-00000003.json"]);
}

fn names(path: &Path) -> Vec<String> {
    let list = std::fs::read_dir(path).expect("list");
    let mut names: Vec<String> = list.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn create_never_touches_what_is_there() {
    let folder = tempdir().expect("folder");
    std::fs::write(folder.path().join("notes.txt"), "mine").expect("write");
    let error = Datastore::create(folder.path(), &Options { overwrite: true, ..options(2) }).expect_err("foreign");
    assert!(matches!(&error, Error::State { message: m, .. } if m.contains("notes.txt")), "{error}");
    assert_eq!(names(folder.path()), ["notes.txt"]);
    let store = folder.path().join("store");
    Datastore::create(&store, &options(2)).expect("create");
    let error = Datastore::create(&store, &options(2)).expect_err("exists");
    assert!(matches!(&error, Error::State { message: m, .. } if m.contains("overwrite")), "{error}");
    for wrong in [options(0), options(70_000), Options { max_value: Some(1 << 40), ..options(2) }] {
        assert!(matches!(Datastore::create(&folder.path().join("x"), &wrong), Err(Error::Argument(_))));
    }
    let error = Datastore::open(&folder.path().join("nowhere")).expect_err("missing");
    assert!(error.to_string().contains("nowhere"), "{error}");
    let error = Datastore::open(folder.path()).expect_err("no store");
    assert!(error.to_string().contains("expected a knnlm store"), "{error}");
}

#[test]
fn a_dropped_writer_leaves_nothing_that_counts() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(2)).expect("create");
    add(&store, 2, Some("a"), None).expect("add");
    store.commit().expect("commit");
    let before = names(folder.path());
    add(&store, 50, Some("b"), None).expect("add");
    drop(store);
    assert!(names(folder.path()).iter().any(|n| n.ends_with(".tmp")));
    let store = Datastore::open(folder.path()).expect("open");
    assert_entries(&store, 2);
    add(&store, 1, Some("b"), None).expect("the name is free again");
    store.discard();
    assert_eq!((names(folder.path()), store.pending()), (before, 0));
}

#[test]
fn attributes_stay_as_written() {
    let folder = tempdir().expect("folder");
    let text = r#"{"z": 0.1, "a": [1e-7, 12345678901234567890], "é": "\u00e9"}"#;
    let store =
        Datastore::create(folder.path(), &Options { attributes: Some(text.into()), ..options(2) }).expect("create");
    assert_eq!(store.attributes(), text);
    store.set_attributes("[]").expect("set");
    assert_eq!(store.generation(), 2);
    assert_eq!(Datastore::open(folder.path()).expect("open").attributes(), "[]");
    assert!(matches!(store.set_attributes("{NaN}"), Err(Error::Argument(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_of_adds_and_commits_equals_a_list(
        steps in prop::collection::vec((0u64..40, prop::option::of(0u8..4), any::<bool>()), 1..20),
        dim in 1usize..9,
        half in any::<bool>(),
    ) {
        let folder = tempdir().expect("folder");
        let keep = if half { KeyType::Float16 } else { KeyType::Float32 };
        let store = Datastore::create(folder.path(), &keeping(dim, keep)).expect("create");
        let mut want: Vec<Document> = Vec::new();
        let mut n = 0;
        for (count, name, commit) in steps {
            let name = name.map(|i| format!("document {i}"));
            let extends = want.last().is_some_and(|d| d.name == name);
            let taken = name.is_some() && !extends && want.iter().any(|d| d.name == name);
            let outcome = add(&store, count, name.as_deref(), None);
            prop_assert_eq!(outcome.is_err(), taken);
            if taken {
                continue;
            }
            if extends {
                want.last_mut().expect("last").end += count;
            } else if count > 0 || name.is_some() {
                want.push(Document { name, start: n, end: n + count, metadata: None });
            }
            n += count;
            if commit {
                store.commit().expect("commit");
            }
        }
        store.commit().expect("commit");
        let store = Datastore::open(folder.path()).expect("open");
        assert_entries(&store, n);
        prop_assert_eq!(documents(&store), want);
        prop_assert_eq!(Datastore::verify_path(folder.path()).expect("verify"), vec![]);
    }
}

#[test]
fn verify_of_an_older_generation_finds_no_fault_in_what_a_writer_removed() {
    let folder = tempdir().expect("folder");
    let writer = Datastore::create(folder.path(), &options(8)).expect("create");
    let never = AtomicBool::new(false);
    let build = || {
        let params = Params { nlist: Some(4), ..Params::default() };
        let options = BuildOptions { params, retrain: false, threads: Some(1) };
        writer.build(&options, &|_, _, _| (), &never).expect("build");
    };
    let mut next = 0;
    let mut replace = || {
        next += 1;
        add(&writer, 20, Some(&format!("document {next}")), None).expect("add");
        add(&writer, 20, Some(&format!("and {next}")), None).expect("add");
        build();
        writer.delete(&[DocumentKey::Name(format!("and {next}"))]).expect("delete");
    };
    let compact = || writer.compact(&|_, _, _| (), &never).expect("compact");
    replace();
    let reader = Datastore::open(folder.path()).expect("open");
    assert_eq!(reader.verify().expect("verify"), vec![]);
    compact();
    assert!(!folder.path().join(&reader.snapshot().manifest.data[0].name.file).exists());
    assert_eq!(reader.verify().expect("verify"), vec![]);
    assert_eq!(reader.generation() + 1, writer.generation());
    // In the middle of it.
    let changing = std::sync::Mutex::new((&mut replace, 0));
    let progress = |_: &str, _: u64, _: u64| {
        let mut changing = changing.lock().expect("one thread");
        changing.1 += 1;
        if changing.1 == 2 {
            (changing.0)();
            compact();
        }
    };
    let generation = writer.generation();
    assert_eq!(Datastore::verify_path_unless(folder.path(), &progress, &never).expect("verify"), vec![]);
    assert!(writer.generation() > generation);
    // What is missing of the newest generation is a fault.
    let file = writer.snapshot().manifest.lists[0].name.file.clone();
    std::fs::remove_file(folder.path().join(&file)).expect("remove");
    for problems in [writer.verify(), Datastore::verify_path(folder.path())] {
        assert_eq!(problems.expect("verify")[0].file, file);
    }
}

#[test]
fn verify_ends_when_it_is_told_to() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(5)).expect("create");
    add(&store, 3, None, None).expect("add");
    store.commit().expect("commit");
    let stopped = AtomicBool::new(true);
    assert!(matches!(store.verify_unless(&|_, _, _| (), &stopped), Err(Error::Interrupted)));
    assert!(matches!(Datastore::verify_path_unless(folder.path(), &|_, _, _| (), &stopped), Err(Error::Interrupted)));
}
