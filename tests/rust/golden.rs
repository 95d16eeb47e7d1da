//! Stores of every format version, written once by the version that they are of, and opened for ever.
//!
//! `tests/data/vMAJOR.MINOR/NAME/` is a store, `NAME.json` beside it what it answers: documents, values, decoded keys,
//! neighbors. What this version writes must have a golden of this version, with the same files, sections and fields, so
//! that nobody can change the format and forget it.

use crate::store_support::{add, keeping, key, options};
use knnlm::Metric;
use knnlm::index::{CodeChoice, Params};
use knnlm::keys::KeyRows;
use knnlm::search::{Request, Rerank};
use knnlm::store::{
    BuildOptions, Datastore, DocumentKey, FORMAT_MAJOR, FORMAT_MINOR, KeyType, Options, Snapshot, ValueRows, ValueType,
    Values,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// What `Case::write` writes, each with something that the others have not.
type Case = (&'static str, fn(&Path));
const CASES: [Case; 5] =
    [("plain", plain), ("second", second), ("flat-ip", flat_ip), ("eight-bits", eight_bits), ("encoded", encoded)];

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn current() -> String {
    format!("v{FORMAT_MAJOR}.{FORMAT_MINOR}")
}

fn build(store: &Datastore, code: CodeChoice) {
    let params = Params { code, ..Params::default() };
    let options = BuildOptions { params, threads: Some(1), ..BuildOptions::default() };
    store.build(&options, &|_, _, _| {}, &AtomicBool::new(false)).expect("build");
}

fn compact(store: &Datastore) {
    store.compact(&|_, _, _| {}, &AtomicBool::new(false)).expect("compact");
}

fn name(name: &str) -> DocumentKey {
    DocumentKey::Name(name.to_owned())
}

/// One product code; entries that wait for a build; a document that goes on in a second data segment; one without a name.
fn plain(path: &Path) {
    let attributes = Some("{\"model\": \"golden\", \"lambda\": 0.25}".to_owned());
    let options = Options { max_value: Some(50_000), attributes, overwrite: true, ..options(8) };
    let store = Datastore::create(path, &options).expect("create");
    add(&store, 60, Some("first"), Some("{\"year\": 2020}")).expect("add");
    add(&store, 30, Some("zweites, größer"), None).expect("add");
    build(&store, CodeChoice::Auto);
    add(&store, 20, Some("zweites, größer"), None).expect("add");
    add(&store, 10, None, None).expect("add");
    store.commit().expect("commit");
}

/// Two levels of codes, d no power of two (the rotation's blocks overlap), ids that are gone, documents that are deleted,
/// two lists segments, float16 keys.
fn second(path: &Path) {
    let store = Datastore::create(path, &keeping(100, KeyType::Float16)).expect("create");
    for (document, n) in [("a", 40), ("b", 25), ("c", 30)] {
        add(&store, n, Some(document), Some("{\"source\": \"golden\"}")).expect("add");
    }
    build(&store, CodeChoice::Auto);
    store.delete(&[name("b")]).expect("delete");
    compact(&store);
    for (document, n) in [("d", 10), ("e", 8)] {
        add(&store, n, Some(document), None).expect("add");
    }
    build(&store, CodeChoice::Auto);
    store.delete(&[name("d"), name("a")]).expect("delete");
}

/// One level of 4 bits a coordinate, inner products, 64-bit values, no raw keys.
fn flat_ip(path: &Path) {
    let options = Options { metric: Metric::Ip, values: ValueType::Uint64, ..options(100) };
    let store = Datastore::create(path, &options).expect("create");
    let keys: Vec<f32> = (0..50).flat_map(|id| key(100, id)).collect();
    let values: Vec<u64> = (0..50).map(|id| id << 40 | 7).collect();
    store.add(KeyRows::F32(&keys), ValueRows::U64(&values), Some("a"), None).expect("add");
    build(&store, CodeChoice::Flat);
}

/// Words of 8 bits over several dimensions.
fn eight_bits(path: &Path) {
    let store = Datastore::create(path, &options(12)).expect("create");
    add(&store, 70, Some("a"), None).expect("add");
    build(&store, CodeChoice::Pq { m: 5, bits: 8 });
}

/// Entries that are encoded as they are added, float32 keys that are kept, several lists; deleted, then compacted.
fn encoded(path: &Path) {
    let store = Datastore::create(path, &keeping(20, KeyType::Float32)).expect("create");
    let sample: Vec<f32> = (0..200).flat_map(|id| key(20, id * 3)).collect();
    let params = Params { nlist: Some(5), seed: Some(7), code: CodeChoice::Small, expected: Some(300) };
    let options = BuildOptions { params, threads: Some(1), ..BuildOptions::default() };
    store.train(KeyRows::F32(&sample), &options, &|_, _, _| {}, &AtomicBool::new(false)).expect("train");
    for (document, n) in [("a", 50), ("b", 20), ("c", 40)] {
        add(&store, n, Some(document), None).expect("add");
        store.commit().expect("commit");
    }
    store.delete(&[name("b")]).expect("delete");
    compact(&store);
}

/// Everything that a reader of the store is told.
fn answers(path: &Path) -> Value {
    let store = Datastore::open(path).expect("open");
    let (info, indexed) = (store.info().expect("info"), store.snapshot().manifest.indexed());
    let documents: Vec<Value> = (0..store.documents())
        .map(|i| store.document(i).expect("document"))
        .map(|d| json!([d.name, d.start, d.end, d.metadata]))
        .collect();
    let ids: Vec<i64> = (0..store.next_id() as i64).collect();
    let entries = store.get(&ids).expect("get");
    let live: Vec<i64> = ids.iter().copied().zip(&entries.documents).filter(|e| *e.1 >= 0).map(|e| e.0).collect();
    let listed: Vec<u64> = live.iter().map(|&id| id as u64).filter(|&id| id < indexed).collect();
    let some: Vec<u64> = listed.iter().copied().step_by(listed.len() / 7).collect();
    // Of entries with raw keys, too: the codes are what must be read the same for ever.
    let decoded = store.decode(&some).expect("decode");
    let queries: Vec<f32> = [3, 77, 110, 5000].iter().flat_map(|&id| key(store.dim(), id)).collect();
    let search = |rerank: Rerank| {
        let request = Request { k: 6, nprobe: Some(usize::MAX), rerank, ..Request::default() };
        let found = store.search(&queries, &request, Some(1), &AtomicBool::new(false)).expect("search");
        json!({"ids": found.ids, "distances": found.distances})
    };
    json!({
        "entries": [store.len(), store.next_id(), info.indexed, info.entries_with_keys, info.deleted_entries],
        "max_value": info.max_value,
        "attributes": serde_json::from_str::<Value>(&store.attributes()).expect("JSON"),
        "documents": documents,
        "values": match &entries.values { Values::U32(v) => json!(v), Values::U64(v) => json!(v) },
        "document_of": entries.documents,
        "decoded": {"ids": some, "keys": decoded},
        "found": {"best": search(Rerank::Auto), "first": search(Rerank::None)},
    })
}

/// Writes the goldens of the current version that are missing: `cargo test --test main write_golden -- --ignored`.
/// Those that are there stay: a change of the format needs a new version.
#[test]
#[ignore = "writes tests/data; only for a new format version"]
fn write_golden() {
    for (name, write) in CASES {
        let path = data().join(current()).join(name);
        if path.exists() {
            continue;
        }
        std::fs::create_dir_all(&path).expect("folder");
        write(&path);
        std::fs::remove_file(path.join("lock")).expect("the lock is not part of a store at rest");
        let text = serde_json::to_string(&answers(&path)).expect("JSON");
        std::fs::write(path.with_extension("json"), text + "\n").expect("write");
    }
}

/// Equal but for the last bits of floats, in which instruction sets may round differently.
fn assert_same(found: &Value, golden: &Value, what: &str) {
    match (found, golden) {
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{what}");
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| assert_same(a, b, &format!("{what}[{i}]")));
        }
        (Value::Object(a), Value::Object(b)) => {
            assert!(a.keys().eq(b.keys()), "{what}: {a:?} {b:?}");
            a.iter().zip(b.values()).for_each(|((k, a), b)| assert_same(a, b, &format!("{what}.{k}")));
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
            let (a, b) = (a.as_f64().expect("float"), b.as_f64().expect("float"));
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{what}: {a} {b}");
        }
        _ => assert_eq!(found, golden, "{what}"),
    }
}

/// Folders and files of `tests/data/vX.Y`, all versions.
fn goldens() -> Vec<PathBuf> {
    let list = |path: &Path| std::fs::read_dir(path).expect("list").map(|e| e.expect("entry").path());
    list(&data()).flat_map(|version| list(&version).collect::<Vec<_>>()).filter(|path| path.is_dir()).collect()
}

#[test]
fn stores_of_every_version_open_and_answer() {
    let all = goldens();
    assert!(all.len() > CASES.len(), "expected those of former versions, too: {all:?}");
    for path in all {
        let what = path.display().to_string();
        assert_eq!(Datastore::verify_path(&path).expect("verify"), vec![], "{what}");
        let text = std::fs::read_to_string(path.with_extension("json")).expect("read");
        assert_same(&answers(&path), &serde_json::from_str(&text).expect("JSON"), &what);
    }
}

/// Names, kinds and lengths of all that a store consists of; not what depends on the last bits of floats.
fn skeleton(path: &Path) -> BTreeSet<String> {
    fn fields(value: &Value, at: &str, out: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| fields(value, &format!("{at}.{key}"), out)),
            Value::Array(list) if list.iter().all(Value::is_string) => {
                out.insert(format!("{at} = {list:?}"));
            }
            Value::Array(list) => list.iter().for_each(|value| fields(value, &format!("{at}[]"), out)),
            _ => {
                out.insert(at.to_owned());
            }
        }
    }
    let mut out = BTreeSet::new();
    let store = Datastore::open(path).expect("open");
    let snapshot: &Snapshot = &store.snapshot();
    let mut manifest = serde_json::to_value(&snapshot.manifest).expect("JSON");
    manifest["attributes"] = Value::Null;
    fields(&manifest, "manifest", &mut out);
    for file in store.info().expect("info").files {
        for section in file.sections {
            // Lengths of JSON follow the digits of floats.
            let bytes = if section.section == "Parameters" { 0 } else { section.bytes };
            out.insert(format!("{} {} {bytes}", file.file, section.section));
        }
    }
    let codebook = std::fs::read_dir(path).expect("list").map(|e| e.expect("entry").path());
    for path in codebook.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("codebook"))) {
        let bytes = std::fs::read(path).expect("read");
        let start = bytes.iter().position(|&b| b == b'{').expect("JSON");
        let mut values = serde_json::Deserializer::from_slice(&bytes[start..]).into_iter::<Value>();
        fields(&values.next().expect("one").expect("JSON"), "parameters", &mut out);
    }
    out
}

#[test]
fn what_is_written_today_has_a_golden_of_its_version() {
    for (name, write) in CASES {
        let golden = data().join(current()).join(name);
        assert!(
            golden.is_dir(),
            "the format is {}, and {} is missing: write it with `cargo test --test main write_golden -- --ignored`",
            current(),
            golden.display()
        );
        let folder = tempfile::tempdir().expect("folder");
        write(folder.path());
        assert_eq!(
            skeleton(folder.path()),
            skeleton(&golden),
            "{name}: what is written is not what format {} holds; a change of the format needs a new version",
            current()
        );
    }
}
