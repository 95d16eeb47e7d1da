//! The steps that are interrupted, and what a store holds, entry by entry.

use knnlm::Metric;
use knnlm::index::Params;
use knnlm::keys::KeyRows;
use knnlm::search::Truth;
use knnlm::store::{
    BuildOptions, Datastore, Document, DocumentKey, Encoded, KeyType, Options, SegmentName, Staged, ValueRows,
    ValueType, Values,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

const DIM: usize = 8;
const DOCUMENTS: u64 = 50;
const GONE: u64 = 5;

/// How large the stores are.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Entries before the step.
    pub entries: u64,
}

impl Size {
    /// For every run of the tests.
    pub const SHORT: Size = Size { entries: 3_000 };
    /// For the campaign.
    pub const FULL: Size = Size { entries: 100_000 };
}

/// A change of a store: one commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Documents to a store without an index.
    Add,
    /// An index, raw keys dropped.
    Build,
    /// An index, raw keys kept, of what was appended to an indexed store.
    Append,
    /// Documents out of an indexed store.
    Delete,
    /// Documents of an indexed store by others of their names.
    Replace,
    /// What was deleted off the disk.
    Compact,
    /// A staged index for all entries, some of which were deleted.
    Reindex,
    /// Documents to a trained store, encoded as they are added; their lists are joined with those before.
    Encode,
    /// A part that another process encoded, to a trained store.
    Adopt,
}

/// All of them.
pub const STEPS: [Step; 9] = [
    Step::Add,
    Step::Build,
    Step::Append,
    Step::Delete,
    Step::Replace,
    Step::Compact,
    Step::Reindex,
    Step::Encode,
    Step::Adopt,
];

impl Step {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Step::Add => "add",
            Step::Build => "build",
            Step::Append => "append",
            Step::Delete => "delete",
            Step::Replace => "replace",
            Step::Compact => "compact",
            Step::Reindex => "reindex",
            Step::Encode => "encode",
            Step::Adopt => "adopt",
        }
    }

    /// The store that it starts from.
    pub fn prepare(self, path: &Path, size: Size) {
        let keep_keys = matches!(self, Step::Add | Step::Append).then_some(KeyType::Float16);
        let options = Options {
            dim: DIM,
            metric: Metric::L2,
            keep_keys,
            values: ValueType::Uint32,
            max_value: None,
            attributes: Some("{\"crash\": true}".into()),
            overwrite: false,
        };
        let store = Datastore::create(path, &options).expect("create");
        let is_trained = matches!(self, Step::Encode | Step::Adopt);
        if is_trained {
            train(&store, size);
        }
        for i in 0..DOCUMENTS {
            add(&store, size.entries / DOCUMENTS, &format!("document {i}"));
        }
        store.commit().expect("commit");
        if !matches!(self, Step::Add | Step::Build) && !is_trained {
            build(&store);
        }
        if self == Step::Append {
            append(&store, size.entries / 10, "appended, not indexed");
        }
        if self == Step::Compact {
            append(&store, size.entries / 10, "appended");
            build(&store);
            delete(&store);
        }
        if self == Step::Reindex {
            delete(&store);
            append(&store, size.entries / 10, "appended, not indexed");
            stage(&store);
        }
        if self == Step::Adopt {
            encode(&store, size);
        }
    }

    /// Does it.
    pub fn run(self, store: &Datastore, size: Size) {
        match self {
            Step::Add => {
                for i in 0..10 {
                    add(store, size.entries / 20, &format!("added {i}"));
                }
                store.commit().expect("commit");
            }
            Step::Build | Step::Append => build(store),
            Step::Delete => delete(store),
            Step::Replace => {
                store.supersede(&gone()).expect("supersede");
                for i in 0..GONE {
                    add(store, size.entries / 20, &format!("document {}", 7 * i + 1));
                }
                store.commit().expect("commit");
            }
            Step::Compact => store.compact(&|_, _, _| {}, &AtomicBool::new(false)).expect("compact"),
            Step::Reindex => reindex(store),
            Step::Encode => {
                for i in 0..10 {
                    add(store, size.entries / 20, &format!("added {i}"));
                }
                store.commit().expect("commit");
                assert_eq!(store.snapshot().manifest.lists.len(), 1, "joined within the commit");
            }
            Step::Adopt => adopt(store),
        }
    }
}

fn key(id: u64) -> [f32; DIM] {
    let mix = |x: u64| (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    std::array::from_fn(|j| ((mix(mix(id * 131 + j as u64 + 1)) >> 40) as u32 % 97) as f32 / 4.0 - 12.0)
}

fn value(id: u64) -> u32 {
    (id * 2_654_435_761 % 50_000) as u32
}

fn add(store: &Datastore, n: u64, document: &str) {
    let first = store.next_id() + store.pending();
    let keys: Vec<f32> = (first..first + n).flat_map(key).collect();
    let values: Vec<u32> = (first..first + n).map(value).collect();
    store.add(KeyRows::F32(&keys), ValueRows::U32(&values), Some(document), Some("{}")).expect("add");
}

/// One document more, committed.
pub fn append(store: &Datastore, n: u64, document: &str) {
    add(store, n, document);
    store.commit().expect("commit");
}

fn build(store: &Datastore) {
    let params = Params { nlist: Some(32), ..Params::default() };
    let options = BuildOptions { params, retrain: false, threads: Some(2) };
    store.build(&options, &|_, _, _| {}, &AtomicBool::new(false)).expect("build");
}

fn train(store: &Datastore, size: Size) {
    let params = Params { nlist: Some(32), expected: Some(size.entries as usize), ..Params::default() };
    let options = BuildOptions { params, retrain: false, threads: Some(2) };
    let sample: Vec<f32> = (0..size.entries / 2).flat_map(key).collect();
    store.train(KeyRows::F32(&sample), &options, &|_, _, _| {}, &AtomicBool::new(false)).expect("train");
}

/// A part of half as many entries as there are, beside the store, its record with it.
fn encode(store: &Datastore, size: Size) {
    let folder = store.path().with_file_name("encoded");
    std::fs::create_dir_all(&folder).expect("create folder");
    let first = store.next_id();
    let rows: Vec<f32> = (first..first + size.entries / 2).flat_map(key).collect();
    let encoded = store.encode_part(KeyRows::F32(&rows), &folder, "part", Some(2), &AtomicBool::new(false));
    let record = serde_json::to_string(&encoded.expect("encode")).expect("JSON");
    std::fs::write(folder.join("record.json"), record).expect("write");
}

/// Takes a part in; its files move, so that each run has links of its own.
fn adopt(store: &Datastore) {
    let encoded = store.path().with_file_name("encoded");
    let record = std::fs::read_to_string(encoded.join("record.json")).expect("read");
    let parts: Vec<Encoded> = serde_json::from_str(&record).expect("JSON");
    let folder = store.path().join("parts");
    std::fs::create_dir_all(&folder).expect("create folder");
    for part in &parts {
        let link = folder.join(&part.name.file);
        let _ = std::fs::remove_file(&link);
        std::fs::hard_link(encoded.join(&part.name.file), link).expect("link");
    }
    let (first, n) = (store.next_id(), parts.iter().map(|part| part.entries).sum::<u64>());
    let values: Vec<u32> = (first..first + n).map(value).collect();
    let documents = [(Some("part".into()), Some("{}".into()), n - 10), (Some("end".into()), None, 10)];
    store.add_part(&folder, parts, &documents, ValueRows::U32(&values), None).expect("add part");
    store.commit().expect("commit");
}

/// Documents that are deleted or replaced.
fn gone() -> Vec<DocumentKey> {
    (0..GONE).map(|i| DocumentKey::Name(format!("document {}", 7 * i + 1))).collect()
}

fn delete(store: &Datastore) {
    store.delete(&gone()).expect("delete");
}

/// Folder of what is staged for a store: beside it, because copies of the store share it.
fn staging(store: &Datastore) -> PathBuf {
    store.path().with_file_name("staged")
}

/// A codebook and lists of all live entries, in four files; their records beside them.
fn stage(store: &Datastore) {
    let (folder, never) = (staging(store), AtomicBool::new(false));
    std::fs::create_dir_all(&folder).expect("create folder");
    let documents: Vec<_> = (0..store.documents()).map(|i| store.document(i).expect("document")).collect();
    let keys =
        |documents: &[Document]| documents.iter().flat_map(|d| d.start..d.end).flat_map(key).collect::<Vec<f32>>();
    let params = Params { nlist: Some(24), ..Params::default() };
    let options = BuildOptions { params, retrain: false, threads: Some(2) };
    let sample = keys(&documents);
    let codebook = store
        .stage_codebook(&folder, "codebook.seg", KeyRows::F32(&sample), &options, &|_, _, _| {}, &never)
        .expect("stage a codebook");
    let (mut lists, mut start) = (Vec::new(), 0);
    for (i, part) in documents.chunks(documents.len().div_ceil(4)).enumerate() {
        let (rows, end) = (keys(part), part[part.len() - 1].end);
        let runs: Vec<(u64, u64)> = part.iter().map(|d| (d.start, d.end - d.start)).collect();
        let name = format!("lists-{i}.seg");
        let staged =
            store.stage_lists(&folder, &codebook, KeyRows::F32(&rows), &runs, start..end, &name, Some(2), &never);
        lists.push(staged.expect("stage lists"));
        start = end;
    }
    let record = serde_json::to_string(&(codebook, lists)).expect("JSON");
    std::fs::write(folder.join("record.json"), record).expect("write");
}

fn reindex(store: &Datastore) {
    let folder = staging(store);
    let record = std::fs::read_to_string(folder.join("record.json")).expect("read");
    let (codebook, lists): (SegmentName, Vec<Encoded>) = serde_json::from_str(&record).expect("JSON");
    let truth = Truth { queries: key(7).to_vec(), own: std::iter::once(7..8).collect(), ids: vec![8], k: 1 };
    let held = store.hold().expect("hold");
    let staged = Staged { folder: &folder, codebook: &codebook, lists: &lists };
    store.reindex(&held, staged, &truth, Some(2), &|_, _, _| {}, &AtomicBool::new(false)).expect("reindex");
}

/// Everything that a store tells about its entries.
#[derive(PartialEq)]
pub struct Contents {
    generation: u64,
    indexed: u64,
    values: Vec<u32>,
    documents: Vec<knnlm::store::Document>,
    attributes: String,
    nearest: Vec<i64>,
}

impl Contents {
    /// Reads all of it; raw keys are compared with what they must be.
    pub fn of(store: &Datastore) -> Contents {
        let n = store.next_id();
        let Values::U32(values) = store.values(0..n).expect("values") else { panic!("u32 values") };
        for (id, &found) in (0..).zip(&values) {
            assert!(found == value(id) || found == u32::MAX, "entry {id}: value {found}");
        }
        let documents: Vec<_> = (0..store.documents()).map(|i| store.document(i).expect("document")).collect();
        for document in documents.iter().filter(|_| store.info().expect("info").keep_keys.is_some()) {
            let keys = store.keys(document.start..document.end).expect("keys");
            assert!(keys == (document.start..document.end).flat_map(key).collect::<Vec<f32>>(), "raw keys differ");
        }
        let queries: Vec<f32> = (0..5).flat_map(|i| key(i * 977 + 13)).collect();
        let request = knnlm::search::Request { k: 50, ..Default::default() };
        let found = store.search(&queries, &request, Some(1), &AtomicBool::new(false)).expect("search");
        let info = store.info().expect("info");
        Contents {
            generation: store.generation(),
            indexed: info.indexed,
            values,
            documents,
            attributes: store.attributes(),
            nearest: found.ids,
        }
    }

    /// Entries that are not deleted.
    pub fn len(&self) -> u64 {
        self.values.iter().filter(|&&v| v != u32::MAX).count() as u64
    }

    /// The generation that holds it.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}
