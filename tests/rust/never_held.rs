//! Deleting 5 % of the documents: the store answers as one that never held them, and after `compact` no byte of them is left.
//!
//! Two stores learn the same codebook from the same entries; the documents that go are only ever added to one of them.

use crate::lists_file::{Lane, ListsFile, section};
use crate::store_support::{key, options};
use knnlm::Metric;
use knnlm::index::{CodeChoice, CodeKind, Params, code_kind};
use knnlm::keys::KeyRows;
use knnlm::search::{Calibration, Request, Rerank, Truth};
use knnlm::sections::SectionKind;
use knnlm::store::{BuildOptions, Datastore, DocumentKey, KeyType, Options, ValueRows, Values};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

const DOCUMENTS: u64 = 100;
/// Documents that the codebook is learnt from, where a build learns it.
const FIRST: u64 = 40;
const LENGTH: u64 = 30;
/// The first after a build, one that goes on after a commit, two neighbors, the last.
const GONE: [u64; 5] = [40, 59, 70, 71, 99];
const KEPT: u64 = 60;

/// How a store comes to its index.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    /// Learnt from a sample; entries are encoded as they are added.
    Trained,
    /// Learnt from the first documents; the others are added to the index.
    Built,
    /// Never.
    Unbuilt,
}

#[derive(Clone, Copy, Debug)]
struct Kind {
    dim: usize,
    metric: Metric,
    code: CodeChoice,
    keep: Option<KeyType>,
    life: Life,
    /// Large enough that a build measures where searches may stop, and of clusters, so that they do.
    measured: bool,
}

impl Kind {
    fn codes(&self) -> CodeKind {
        code_kind(self.code, self.dim).expect("kind")
    }

    fn length(&self, document: u64) -> u64 {
        match (self.measured, document < FIRST) {
            (false, _) => LENGTH,
            (true, true) => 550,
            (true, false) => 5 * LENGTH,
        }
    }

    /// Key of an entry; in clusters, what goes is all in one.
    fn key(&self, document: u64, at: u64) -> Vec<f32> {
        let key = key(self.dim, 1000 * document + at);
        if !self.measured {
            return key;
        }
        let cluster = if GONE.contains(&document) { 0 } else { document as usize % 10 };
        key.iter().enumerate().map(|(j, x)| 0.2 * x + if j % 10 == cluster { 8.0 } else { 0.0 }).collect()
    }

    fn keys(&self, document: u64) -> Vec<f32> {
        (0..self.length(document)).flat_map(|at| self.key(document, at)).collect()
    }

    fn values(&self, document: u64) -> Vec<u32> {
        (0..self.length(document))
            .map(|at| ((1000 * document + at) as u32 | 1 << 24).wrapping_mul(2_654_435_761))
            .collect()
    }

    fn build_options(&self) -> BuildOptions {
        let params = Params {
            nlist: Some(if self.measured { 150 } else { 20 }),
            code: self.code,
            seed: Some(7),
            expected: None,
        };
        BuildOptions { params, retrain: false, threads: Some(2) }
    }

    fn build(&self, store: &Datastore) {
        if self.life == Life::Built {
            store.build(&self.build_options(), &|_, _, _| {}, &AtomicBool::new(false)).expect("build");
        }
    }

    /// A store of all documents but `without`, in several commits; some documents go on after a commit.
    fn store(&self, path: &Path, without: &[u64]) -> Datastore {
        let options = Options { metric: self.metric, keep_keys: self.keep, ..options(self.dim) };
        let store = Datastore::create(path, &options).expect("create");
        if self.life == Life::Trained {
            let sample: Vec<f32> = (0..1200).flat_map(|i| key(self.dim, 1_000_000 + i)).collect();
            let (options, never) = (self.build_options(), AtomicBool::new(false));
            store.train(KeyRows::F32(&sample), &options, &|_, _, _| {}, &never).expect("train");
        }
        for i in (0..DOCUMENTS).filter(|i| !without.contains(i)) {
            let (keys, values) = (self.keys(i), self.values(i));
            let half = values.len() / 2;
            let add = |keys: &[f32], values: &[u32], metadata: Option<&str>| {
                store.add(KeyRows::F32(keys), ValueRows::U32(values), Some(&name(i)), metadata).expect("add");
            };
            add(&keys[..half * self.dim], &values[..half], Some(&metadata(i)));
            if i % 15 == 14 {
                store.commit().expect("commit");
            }
            add(&keys[half * self.dim..], &values[half..], None);
            if i == FIRST - 1 || i == 75 {
                self.build(&store);
            }
        }
        store.commit().expect("commit");
        self.build(&store);
        store
    }

    fn requests(&self) -> Vec<Request<'static>> {
        let mut reranks = vec![Rerank::Auto, Rerank::None];
        if self.codes().second_bits > 0 && self.life != Life::Unbuilt {
            reranks.push(Rerank::Code);
        }
        if self.keep.is_some() {
            reranks.push(Rerank::Keys);
        }
        let mut all = Vec::new();
        for rerank in reranks {
            for k in if self.measured { vec![8, 30] } else { vec![1, 30, 400] } {
                for nprobe in [None, Some(1), Some(3), Some(20)] {
                    all.push(Request { k, nprobe, rerank, ..Request::default() });
                }
                if self.life != Life::Trained || self.measured {
                    all.push(Request { k, recall: Some(0.05), rerank, ..Request::default() });
                }
            }
        }
        if self.keep.is_some() {
            all.extend([1, 30, 400].map(|k| Request { k, exact: true, ..Request::default() }));
        }
        all
    }

    /// Keys of what goes, of what stays, and of neither.
    fn queries(&self) -> Vec<f32> {
        let near = GONE.iter().map(|&i| (i, 3)).chain([(KEPT, 5), (0, 5), (1_000, 0)]);
        near.flat_map(|(document, at)| self.key(document, at)).map(|x| x + 0.1).collect()
    }
}

fn name(i: u64) -> String {
    format!("document-{i:03}-secret")
}

fn metadata(i: u64) -> String {
    format!("{{\"title\": \"hidden {i}\"}}")
}

fn compact(store: &Datastore) {
    store.compact(&|_, _, _| {}, &AtomicBool::new(false)).expect("compact");
}

/// (document, position) of ids; none where there is no such entry.
fn places(store: &Datastore, ids: &[i64]) -> Vec<Option<(String, i64)>> {
    let names: Vec<String> =
        (0..store.documents()).map(|i| store.document(i).expect("document").name.expect("a name")).collect();
    let entries = store.get(ids).expect("get");
    let name = |document: i64| usize::try_from(document).ok().map(|i| names[i].clone());
    entries.documents.iter().zip(entries.positions).map(|(&d, at)| name(d).map(|name| (name, at))).collect()
}

/// A neighbor: where it lies, its value, the bits of its distance.
type Found = (Option<(String, i64)>, u32, u32);

fn search(store: &Datastore, queries: &[f32], request: &Request) -> Vec<Found> {
    let found = store.search(queries, request, Some(2), &AtomicBool::new(false)).expect("search");
    let Values::U32(values) = found.values else { panic!("u32") };
    let distances = found.distances.into_iter().map(f32::to_bits);
    places(store, &found.ids).into_iter().zip(values).zip(distances).map(|((p, v), d)| (p, v, d)).collect()
}

fn is_gone(found: &Found) -> bool {
    found.0.as_ref().is_some_and(|(found, _)| GONE.iter().any(|&i| *found == name(i)))
}

/// Entries as they lie in the lists of a store: code and factors, second-level record.
fn coded(store: &Datastore, kind: &Kind) -> BTreeMap<(String, i64), (Lane, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for lists in &store.snapshot().manifest.lists {
        let file = ListsFile::read(&store.path().join(&lists.name.file), kind.dim, kind.codes());
        for (id, lane, record) in file.entries() {
            let place = places(store, &[(lists.first_id + u64::from(id)) as i64]).remove(0).expect("an entry");
            all.insert(place, (lane, record.to_vec()));
        }
    }
    all
}

/// Every lane of every lists file, padding included.
fn lanes_on_disk(store: &Datastore, kind: &Kind) -> HashSet<Lane> {
    let lists = store.snapshot().manifest.lists.clone();
    let file =
        |l: &knnlm::store::ListsRecord| ListsFile::read(&store.path().join(&l.name.file), kind.dim, kind.codes());
    lists.iter().flat_map(|l| file(l).lanes()).flatten().collect()
}

/// Byte strings that tell of documents: names, metadata, any two values in a row, raw keys that are kept, second-level records.
fn secrets(kind: &Kind, documents: &[u64], coded: &BTreeMap<(String, i64), (Lane, Vec<u8>)>) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for &i in documents {
        all.extend([name(i).into_bytes(), format!("hidden {i}\"").into_bytes()]);
        // A document may go on in another file from its middle on.
        let values = kind.values(i);
        let halves = [&values[..values.len() / 2], &values[values.len() / 2..]];
        all.extend(halves.iter().flat_map(|half| half.windows(2)).map(|two| bytemuck::cast_slice(two).to_vec()));
        for key in kind.keys(i).chunks_exact(kind.dim) {
            match kind.keep {
                Some(KeyType::Float32) => all.push(bytemuck::cast_slice(key).to_vec()),
                Some(KeyType::Float16) => {
                    all.push(key.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect())
                }
                None => (),
            }
        }
        let records = coded.iter().filter(|((found, _), _)| *found == name(i)).map(|(_, (_, record))| record.clone());
        all.extend(records.filter(|record| !record.is_empty()));
    }
    all
}

/// Those of `secrets` that are in any file of a folder.
fn on_disk<'s>(folder: &Path, secrets: &'s [Vec<u8>]) -> Vec<&'s Vec<u8>> {
    let mut by_start: HashMap<&[u8], Vec<&Vec<u8>>> = HashMap::new();
    secrets.iter().for_each(|secret| by_start.entry(&secret[..8]).or_default().push(secret));
    let mut found = HashSet::new();
    for file in std::fs::read_dir(folder).expect("list") {
        let path = file.expect("entry").path();
        if path.is_dir() {
            found.extend(on_disk(&path, secrets));
            continue;
        }
        let bytes = std::fs::read(path).expect("read");
        for at in 0..bytes.len().saturating_sub(7) {
            let candidates = by_start.get(&bytes[at..at + 8]).into_iter().flatten();
            found.extend(candidates.filter(|secret| bytes[at..].starts_with(secret)).copied());
        }
    }
    found.into_iter().collect()
}

/// Bytes of the codebook file; none without one.
fn codebook(store: &Datastore) -> Option<Vec<u8>> {
    let name = store.snapshot().manifest.codebook.clone();
    name.map(|name| std::fs::read(store.path().join(name.file)).expect("read"))
}

/// The files of two compacted stores hold the same bytes but for ids.
fn assert_same_files(store: &Datastore, other: &Datastore, kind: &Kind) {
    let (one, two) = (store.snapshot(), other.snapshot());
    let read = |store: &Datastore, file: &str| std::fs::read(store.path().join(file)).expect("read");
    assert_eq!(
        (one.manifest.data.len(), one.manifest.lists.len()),
        (two.manifest.data.len(), two.manifest.lists.len())
    );
    for (a, b) in one.manifest.data.iter().zip(&two.manifest.data) {
        let (a, b) = (read(store, &a.name.file), read(other, &b.name.file));
        use SectionKind::{DocumentNames, DocumentText, Keys, Values};
        for kind in [Keys, Values, DocumentText, DocumentNames] {
            assert!(section(&a, kind) == section(&b, kind), "{kind:?}");
        }
    }
    for (a, b) in one.manifest.lists.iter().zip(&two.manifest.lists) {
        let open = |store: &Datastore, file| ListsFile::read(&store.path().join(file), kind.dim, kind.codes());
        let (a, b) = (open(store, &a.name.file), open(other, &b.name.file));
        assert_eq!(a.offsets, b.offsets);
        assert!(a.codes == b.codes && a.second == b.second, "codes");
        let ids = |file: &ListsFile| file.ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>();
        assert_eq!(places(store, &ids(&a)), places(other, &ids(&b)));
    }
}

fn check(kind: Kind) {
    let (folder, other) = (tempdir().expect("folder"), tempdir().expect("folder"));
    let store = kind.store(folder.path(), &[]);
    let never = kind.store(other.path(), &GONE);
    assert!(codebook(&store) == codebook(&never), "the same codebook");
    assert_eq!(codebook(&store).is_some(), kind.life != Life::Unbuilt);
    let calibrated = store.snapshot().manifest.calibration.clone();
    assert!(!kind.measured || calibrated.is_some_and(|c| !c.rows.is_empty()), "searches may stop early");

    let (requests, queries) = (kind.requests(), kind.queries());
    let answers = |store: &Datastore| requests.iter().map(|r| search(store, &queries, r)).collect::<Vec<_>>();
    let (expected, before) = (answers(&never), answers(&store));
    for (request, before) in requests.iter().zip(&before) {
        assert!(before.iter().any(is_gone), "queries are near to what goes: {request:?}");
    }
    let coded = coded(&store, &kind);
    let lanes: HashSet<&Lane> = coded
        .iter()
        .filter(|((document, _), _)| GONE.iter().any(|&i| name(i) == *document))
        .map(|(_, c)| &c.0)
        .collect();
    let (gone, kept) = (secrets(&kind, &GONE, &coded), secrets(&kind, &[KEPT], &coded));

    // What interrupted work leaves: raw keys of all, in folders that no manifest names.
    for name in ["retraining", "parts"] {
        let path = folder.path().join(name).join("deeper");
        std::fs::create_dir_all(&path).expect("create");
        let keys: Vec<f32> = GONE.iter().flat_map(|&i| kind.keys(i)).collect();
        std::fs::write(path.join("truth.npy"), bytemuck::cast_slice::<f32, u8>(&keys)).expect("write");
        std::fs::write(folder.path().join(name).join("names.json"), gone.concat()).expect("write");
    }
    let names: Vec<DocumentKey> = GONE.iter().map(|&i| DocumentKey::Name(name(i))).collect();
    assert_eq!(store.delete(&names).expect("delete"), GONE.iter().map(|&i| kind.length(i)).sum::<u64>());
    for stage in ["deleted", "compacted", "reopened", "both compacted"] {
        match stage {
            "compacted" => {
                // The search for bytes does find what is there.
                assert_eq!(on_disk(folder.path(), &gone).len(), gone.len());
                assert!(lanes.iter().all(|&lane| lanes_on_disk(&store, &kind).contains(lane)));
                compact(&store);
            }
            "both compacted" => {
                compact(&never);
                assert!(!["retraining", "parts"].iter().any(|name| folder.path().join(name).exists()));
            }
            _ => (),
        }
        let opened;
        let store = if stage == "reopened" {
            opened = Datastore::open(folder.path()).expect("open");
            &opened
        } else {
            &store
        };
        assert_eq!(store.verify().expect("verify"), vec![]);
        assert_eq!((store.len(), store.documents()), (never.len(), never.documents()));
        for ((request, expected), found) in requests.iter().zip(&expected).zip(answers(store)) {
            assert!(*expected == found, "{stage}: {request:?} of {kind:?}");
        }
    }
    assert!(answers(&never) == expected);

    assert_same_files(&store, &never, &kind);
    assert!(codebook(&store) == codebook(&never), "the same codebook");
    let left: Vec<String> = on_disk(folder.path(), &gone).iter().map(|b| String::from_utf8_lossy(b).into()).collect();
    assert_eq!(left, Vec::<String>::new(), "{kind:?}");
    assert_eq!(on_disk(folder.path(), &kept).len(), kept.len());
    let there = lanes_on_disk(&store, &kind);
    assert!(!lanes.iter().any(|&lane| there.contains(lane)), "a code of what is gone");
    assert_eq!(lanes.is_empty(), kind.life == Life::Unbuilt);
}

#[test]
fn a_trained_store_without_documents_is_one_that_never_held_them() {
    let kind = |dim, metric, code| Kind { dim, metric, code, keep: None, life: Life::Trained, measured: false };
    for metric in [Metric::L2, Metric::Ip] {
        check(kind(100, metric, CodeChoice::Auto)); // two levels
        check(kind(100, metric, CodeChoice::Flat));
        check(kind(100, metric, CodeChoice::Small));
        check(kind(16, metric, CodeChoice::Auto));
        check(kind(16, metric, CodeChoice::Pq { m: 5, bits: 8 }));
        check(kind(24, metric, CodeChoice::Pq { m: 8, bits: 4 }));
    }
}

#[test]
fn a_built_store_without_documents_is_one_that_never_held_them() {
    for (dim, metric, code, keep) in [
        (100, Metric::L2, CodeChoice::Auto, Some(KeyType::Float16)),
        (100, Metric::Ip, CodeChoice::Auto, Some(KeyType::Float32)),
        (16, Metric::Ip, CodeChoice::Pq { m: 5, bits: 8 }, Some(KeyType::Float16)),
        (16, Metric::L2, CodeChoice::Auto, None),
        (100, Metric::Ip, CodeChoice::Flat, None),
    ] {
        check(Kind { dim, metric, code, keep, life: Life::Built, measured: false });
    }
}

#[test]
fn a_store_that_measured_its_recall_searches_without_documents_as_if_it_never_held_them() {
    for (dim, metric, code) in [(100, Metric::L2, CodeChoice::Auto), (24, Metric::Ip, CodeChoice::Small)] {
        check(Kind { dim, metric, code, keep: None, life: Life::Built, measured: true });
    }
}

#[test]
fn recall_is_measured_without_documents_as_if_they_had_never_been_there() {
    let (dim, code, keep) = (24, CodeChoice::Small, Some(KeyType::Float32));
    let kind = Kind { dim, metric: Metric::L2, code, keep, life: Life::Built, measured: true };
    let (folder, other) = (tempdir().expect("folder"), tempdir().expect("folder"));
    let (store, never) = (kind.store(folder.path(), &[]), kind.store(other.path(), &GONE));
    let names: Vec<DocumentKey> = GONE.iter().map(|&i| DocumentKey::Name(name(i))).collect();
    store.delete(&names).expect("delete");
    let queries = kind.queries();
    let measured = |store: &Datastore| {
        let own = vec![0..0; queries.len() / dim];
        let request = Request { k: 30, exact: true, ..Request::default() };
        let ids = store.search(&queries, &request, Some(2), &AtomicBool::new(false)).expect("search").ids;
        let truth = Truth { queries: queries.clone(), own, ids, k: 30 };
        store.calibrate(&truth, Some(2), &|_, _, _| {}, &AtomicBool::new(false)).expect("calibrate");
        let found = store.snapshot().manifest.calibration.clone().expect("measured");
        Calibration { ids: 0, ..found } // which are never given again
    };
    assert_eq!(measured(&store), measured(&never));
}

#[test]
fn an_unbuilt_store_without_documents_is_one_that_never_held_them() {
    for (metric, keep) in [(Metric::L2, KeyType::Float16), (Metric::Ip, KeyType::Float32)] {
        let code = CodeChoice::Auto;
        check(Kind { dim: 16, metric, code, keep: Some(keep), life: Life::Unbuilt, measured: false });
    }
}
