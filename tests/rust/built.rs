//! Stores with an index: built, searched, appended to, interrupted, damaged.

use crate::failing_disk::{FailingDisk, Failure};
use crate::store_support::{add, assert_entries, keeping, key, options, value};
use knnlm::error::Why;
use knnlm::index::{CodeChoice, Params};
use knnlm::search::{Request, Rerank};
use knnlm::store::{BuildOptions, Datastore, KeyType, Neighbors, Options, Values};
use knnlm::{Error, Metric};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::tempdir;

const DIM: usize = 16;

fn build(store: &Datastore, options: &BuildOptions) -> knnlm::Result<()> {
    store.build(options, &|_, _, _| {}, &AtomicBool::new(false))
}

fn built(path: &Path, options: &Options, n: u64) -> Datastore {
    let store = Datastore::create(path, options).expect("create");
    add(&store, n / 2, Some("a"), Some("{}")).expect("add");
    store.commit().expect("commit");
    add(&store, n / 4, Some("a"), None).expect("add");
    store.commit().expect("commit");
    add(&store, n - n / 2 - n / 4, Some("b"), None).expect("add");
    build(&store, &BuildOptions::default()).expect("build commits what was added and indexes all");
    store
}

fn search(store: &Datastore, queries: &[f32], request: &Request) -> knnlm::Result<Neighbors> {
    store.search(queries, request, Some(1), &AtomicBool::new(false))
}

/// Ids by distance to the known keys, ties by id.
fn nearest(store: &Datastore, query: &[f32], k: usize) -> Vec<i64> {
    let score = |id: u64| {
        let key = key(DIM, id);
        let pairs = query.iter().zip(&key);
        match store.metric() {
            Metric::L2 => pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f32>(),
            Metric::Ip => -pairs.map(|(a, b)| a * b).sum::<f32>(),
        }
    };
    let mut all: Vec<(f32, u64)> = (0..store.len()).map(|id| (score(id), id)).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    all.iter().take(k).map(|&(_, id)| id as i64).collect()
}

fn files(path: &Path) -> Vec<String> {
    let list = std::fs::read_dir(path).expect("list");
    let mut names: Vec<String> = list.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn exact_search_equals_brute_force_before_and_after_a_build() {
    for metric in [Metric::L2, Metric::Ip] {
        let folder = tempdir().expect("folder");
        let store =
            Datastore::create(folder.path(), &Options { metric, ..keeping(DIM, KeyType::Float32) }).expect("create");
        add(&store, 700, Some("a"), None).expect("add");
        store.commit().expect("commit");
        let query = key(DIM, 12_345);
        let exact = Request { k: 20, exact: true, ..Request::default() };
        let everything = Request { k: 20, nprobe: Some(usize::MAX), rerank: Rerank::Keys, ..Request::default() };
        for built in [false, true] {
            if built {
                build(&store, &BuildOptions::default()).expect("build");
            }
            assert_eq!(store.is_built(), built);
            for request in
                [&exact, &Request { k: 700, nprobe: Some(usize::MAX), rerank: Rerank::Keys, ..everything.clone() }]
            {
                let found = search(&store, &query, request).expect("search");
                assert_eq!(found.ids, nearest(&store, &query, request.k), "{metric:?} built = {built}");
                let values: Vec<u32> = found.ids.iter().map(|&id| value(id as u64)).collect();
                assert_eq!(found.values, Values::U32(values));
            }
        }
        assert_entries(&store, 700);
        assert!(store.keys(0..700).is_ok(), "keys are kept");
        assert_eq!(store.verify().expect("verify"), vec![]);
    }
}

#[test]
fn missing_neighbors_have_no_value() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(DIM)).expect("create");
    let request = Request { k: 3, ..Request::default() };
    let none = search(&store, &[0.0; DIM], &request).expect("an empty store answers");
    assert_eq!((none.ids, none.values), (vec![-1; 3], Values::U32(vec![u32::MAX; 3])));
    assert!(none.distances.iter().all(|d| *d == f32::INFINITY));
    build(&store, &BuildOptions::default()).expect("nothing to build");
    assert!(!store.is_built());
}

#[test]
fn what_a_search_will_take_is_estimated() {
    let folder = tempdir().expect("folder");
    let store = built(folder.path(), &keeping(DIM, KeyType::Float16), 500);
    let seconds = |queries: usize, request: Request| store.search_seconds(queries * DIM, &request);
    let request = || Request { k: 10, ..Request::default() };
    assert!((seconds(8, request()) / seconds(4, request()) - 2.0).abs() < 1e-6, "twice for twice the queries");
    for more in [
        Request { k: 1000, ..request() },
        Request { rerank: Rerank::Keys, ..request() },
        Request { nprobe: Some(2), ..request() },
        Request { exact: true, ..request() },
    ] {
        assert!(seconds(4, more.clone()) > seconds(4, request()), "{more:?}");
    }
    let error = search(&store, &key(DIM, 1), &Request { k: usize::MAX / 8, ..request() }).expect_err("too large");
    assert!(matches!(&error, Error::Argument(m) if m.contains("fit memory")), "{error}");
}

#[test]
fn a_build_drops_keys_that_are_not_kept_and_merges_segments() {
    let folder = tempdir().expect("folder");
    let store = built(folder.path(), &options(DIM), 600);
    let want = ["codebook-00000005.seg", "data-00000005.seg", "lists-00000005.seg", "lock", "manifest-00000005.json"];
    assert_eq!(files(folder.path()), want);
    let store = (store.len() == 600).then(|| Datastore::open(folder.path()).expect("open")).expect("600 entries");
    assert_entries(&store, 600);
    let bounds: Vec<_> = (0..store.documents())
        .map(|i| store.document(i).expect("document"))
        .map(|d| (d.name, d.start, d.end, d.metadata))
        .collect();
    assert_eq!(bounds, [(Some("a".into()), 0, 450, Some("{}".into())), (Some("b".into()), 450, 600, None)]);
    assert_eq!(store.find_document("b").expect("find"), Some(1));
    for refused in [
        store.keys(0..1).map(drop),
        search(&store, &key(DIM, 3), &Request { k: 1, exact: true, ..Request::default() }).map(drop),
        search(&store, &key(DIM, 3), &Request { k: 1, rerank: Rerank::Keys, ..Request::default() }).map(drop),
        build(&store, &BuildOptions { retrain: true, ..BuildOptions::default() }),
    ] {
        let error = refused.expect_err("no raw keys");
        assert!(matches!(&error, Error::State { why: Why::KeysNotKept, .. }), "{error}");
    }
    // Decoded keys are near the raw ones: much nearer than another entry's.
    let decoded = store.reconstruct(&[7, 300]).expect("decode");
    let error: f32 = decoded[..DIM].iter().zip(key(DIM, 7)).map(|(a, b)| (a - b).powi(2)).sum();
    let other: f32 = decoded[..DIM].iter().zip(key(DIM, 300)).map(|(a, b)| (a - b).powi(2)).sum();
    assert!(error < other / 4.0, "{error} {other}");
    let info = store.info().expect("info");
    let index = info.index.expect("index");
    assert_eq!(index.list_lengths.iter().sum::<u64>(), index.nlist as u64);
    assert!((index.mean_list * index.nlist as f64 - 600.0).abs() < 1e-6 && index.longest_list >= index.shortest_list);
    assert_eq!((info.indexed, info.entries_with_keys), (600, 0));
    let on_disk: u64 = files(folder.path())
        .iter()
        .filter(|f| *f != "lock")
        .map(|f| folder.path().join(f).metadata().expect("file").len())
        .sum();
    assert_eq!(info.bytes, on_disk);
    assert_eq!(store.verify().expect("verify"), vec![]);
}

#[test]
fn entries_added_after_a_build_are_found_and_then_encoded_with_the_same_codebook() {
    for options in [options(DIM), keeping(DIM, KeyType::Float16)] {
        let folder = tempdir().expect("folder");
        let store = built(folder.path(), &options, 600);
        let codebook = std::fs::read(folder.path().join("codebook-00000005.seg")).expect("read");
        add(&store, 60, Some("b"), None).expect("the last document goes on after a build");
        add(&store, 40, Some("c"), None).expect("add");
        store.commit().expect("commit");
        let finds = |id: u64| {
            let request = Request { k: 5, nprobe: Some(usize::MAX), ..Request::default() };
            let found = search(&store, &key(DIM, id), &request).expect("search");
            assert!(found.ids.contains(&(id as i64)), "{id}: {found:?}");
            found
        };
        assert_eq!(finds(650).distances[0], 0.0, "not indexed: exact");
        finds(17);
        assert_eq!((store.info().expect("info").indexed, store.len()), (600, 700));
        if options.keep_keys.is_none() {
            let wrong = search(&store, &key(DIM, 3), &Request { k: 1, exact: true, ..Request::default() });
            assert!(matches!(wrong, Err(Error::State { .. })), "only some raw keys");
        }
        // Reconstruction mixes decoded and raw keys.
        assert_eq!(store.reconstruct(&[3, 650]).expect("keys")[DIM..], key(DIM, 650));
        let params = Params { code: CodeChoice::Pq { m: 4, bits: 8 }, ..Params::default() };
        let wrong = build(&store, &BuildOptions { params, ..BuildOptions::default() });
        assert!(matches!(&wrong, Err(Error::Argument(m)) if m.contains("retrain")), "{wrong:?}");
        build(&store, &BuildOptions::default()).expect("build");
        assert_eq!(store.generation(), 7);
        assert_eq!(store.info().expect("info").indexed, 700);
        assert!(std::fs::read(folder.path().join("codebook-00000005.seg")).expect("read") == codebook);
        assert!(files(folder.path()).contains(&"lists-00000007.seg".into()));
        finds(650);
        finds(17);
        assert_entries(&store, 700);
        let b = store.document(1).expect("document");
        assert_eq!((b.name.as_deref(), b.start, b.end, store.documents()), (Some("b"), 450, 660, 3));
        assert_eq!(store.verify().expect("verify"), vec![]);
        build(&store, &BuildOptions::default()).expect("nothing left to do");
        assert_eq!(store.generation(), 7);
    }
}

#[test]
fn retraining_replaces_codebook_and_lists() {
    let folder = tempdir().expect("folder");
    let store = built(folder.path(), &keeping(DIM, KeyType::Float16), 500);
    let reader = Datastore::open(folder.path()).expect("open");
    let params = Params { nlist: Some(4), code: CodeChoice::Pq { m: 4, bits: 8 }, seed: Some(3), expected: None };
    build(&store, &BuildOptions { params, retrain: true, threads: None }).expect("build");
    let index = store.info().expect("info").index.expect("index");
    assert_eq!((index.nlist, index.m, index.bits, index.seed), (4, 4, 8, 3));
    assert_eq!(files(folder.path()).iter().filter(|f| f.starts_with("lists") || f.starts_with("codebook")).count(), 2);
    let request = Request { k: 5, nprobe: Some(usize::MAX), rerank: Rerank::Keys, ..Request::default() };
    for store in [&store, &reader] {
        assert_eq!(search(store, &key(DIM, 77), &request).expect("search").ids, nearest(store, &key(DIM, 77), 5));
    }
    assert_eq!(reader.generation() + 1, store.generation(), "an open reader keeps its generation");
}

#[test]
fn other_parameters_than_those_of_the_codebook_are_refused() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(DIM)).expect("create");
    add(&store, 300, Some("a"), None).expect("add");
    let params = Params { nlist: Some(4), code: CodeChoice::Pq { m: 8, bits: 4 }, seed: Some(3), expected: None };
    build(&store, &BuildOptions { params: params.clone(), retrain: false, threads: None }).expect("build");
    add(&store, 20, Some("a"), None).expect("add");
    let others = [
        Params { nlist: Some(5), ..params.clone() },
        Params { code: CodeChoice::Pq { m: 4, bits: 8 }, ..params.clone() },
        Params { seed: Some(0), ..params.clone() },
    ];
    for params in others {
        let error = build(&store, &BuildOptions { params, retrain: false, threads: None }).expect_err("must fail");
        assert!(matches!(&error, Error::Argument(m) if m.contains("or retrain")), "{error}");
        assert_eq!(store.info().expect("info").indexed, 300);
    }
    for params in [params, Params::default()] {
        build(&store, &BuildOptions { params, retrain: false, threads: None }).expect("the same, or nothing said");
    }
    assert_eq!(store.info().expect("info").indexed, 320);
}

#[test]
fn second_level_codes_are_stored_found_and_checked() {
    const WIDE: usize = 130;
    let folder = tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name);
    let made = |name: &str, code: CodeChoice| {
        let store = Datastore::create(&path(name), &options(WIDE)).expect("create");
        add(&store, 300, Some("a"), None).expect("add");
        let params = Params { code, ..Params::default() };
        build(&store, &BuildOptions { params, retrain: false, threads: None }).expect("build");
        store
    };
    let (store, small) = (made("two levels", CodeChoice::Auto), made("one level", CodeChoice::Small));
    let query = key(WIDE, 77);
    let again = Request { k: 5, rerank: Rerank::Code, ..Request::default() };
    let found = search(&store, &query, &again).expect("search");
    assert_eq!(found.ids[0], 77);
    let default = Request { k: 5, ..Request::default() };
    assert_eq!(found, search(&store, &query, &default).expect("the same is the default"));
    let error = search(&small, &query, &again).expect_err("no second level");
    assert!(matches!(&error, Error::State { why: Why::NoSecondLevel, .. }), "{error}");
    let sections = |store: &Datastore| -> Vec<String> {
        let files = store.info().expect("info").files;
        files.into_iter().flat_map(|f| f.sections).map(|s| s.section).collect()
    };
    assert!(
        sections(&store).contains(&"SecondCodes".to_owned()) && !sections(&small).contains(&"SecondCodes".to_owned())
    );
    assert_eq!(store.verify().expect("verify"), vec![]);
    drop(store);
    // A damaged record is found by `verify`; a search of it does not panic.
    let file = files(&path("two levels")).into_iter().find(|f| f.starts_with("lists")).expect("lists");
    let file = path("two levels").join(file);
    let whole = std::fs::read(&file).expect("read");
    for byte in (0..whole.len()).step_by(whole.len() / 40) {
        let mut bytes = whole.clone();
        bytes[byte] ^= 0x40;
        std::fs::remove_file(&file).expect("remove");
        std::fs::write(&file, bytes).expect("write");
        assert!(!Datastore::verify_path(&path("two levels")).expect("the manifest is sound").is_empty(), "byte {byte}");
        if let Ok(store) = Datastore::open(&path("two levels")) {
            let _ = search(&store, &query, &again);
        }
    }
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let folder = tempdir().expect("folder");
    let path = |threads: usize| folder.path().join(threads.to_string());
    for threads in [1, 2, 5] {
        let store = Datastore::create(&path(threads), &options(DIM)).expect("create");
        add(&store, 3000, Some("a"), None).expect("add");
        build(&store, &BuildOptions { threads: Some(threads), ..BuildOptions::default() }).expect("build");
    }
    for threads in [2, 5] {
        assert_eq!(files(&path(1)), files(&path(threads)));
        for name in files(&path(1)) {
            let read = |threads| std::fs::read(path(threads).join(&name)).expect("read");
            assert!(read(1) == read(threads), "{name} differs with {threads} threads");
        }
    }
}

#[test]
fn an_interrupted_build_leaves_the_store_as_it_was() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(DIM)).expect("create");
    add(&store, 2000, Some("a"), None).expect("add");
    store.commit().expect("commit");
    let before = files(folder.path());
    let mut stages = std::collections::BTreeSet::new();
    for reports in 0.. {
        let (cancel, seen) = (AtomicBool::new(reports == 0), std::sync::Mutex::new((0, String::new())));
        let progress = |stage: &str, _: u64, _: u64| {
            let mut seen = seen.lock().expect("lock");
            seen.0 += 1;
            if seen.0 == reports {
                seen.1 = stage.to_owned();
                cancel.store(true, Ordering::Relaxed);
            }
        };
        let outcome = store.build(&BuildOptions { threads: Some(1), ..BuildOptions::default() }, &progress, &cancel);
        if !cancel.load(Ordering::Relaxed) {
            outcome.expect("the whole build");
            break;
        }
        stages.insert(seen.into_inner().expect("lock").1);
        if outcome.is_ok() {
            break; // the last report came after the last look
        }
        assert!(matches!(outcome, Err(Error::Interrupted)), "{outcome:?}");
        assert_eq!(files(folder.path()), before, "after report {reports}");
        assert!(!store.is_built() && store.keys(0..2000).is_ok());
    }
    assert!(stages.len() >= 2, "{stages:?}");
}

#[test]
fn a_build_that_fails_anywhere_leaves_a_whole_generation() {
    let mut failed = 0;
    for operation in 0.. {
        let folder = tempdir().expect("folder");
        let store = Datastore::create(folder.path(), &options(DIM)).expect("create");
        add(&store, 150, Some("a"), None).expect("add");
        store.commit().expect("commit");
        let disk = FailingDisk::new(operation, if operation % 2 == 0 { Failure::Full } else { Failure::Torn }, false);
        let writer = Datastore::open_through(folder.path(), Arc::new(disk.clone())).expect("open");
        let outcome = build(&writer, &BuildOptions { threads: Some(1), ..BuildOptions::default() });
        if !disk.has_failed() {
            outcome.expect("no operation failed");
            break;
        }
        failed += 1;
        drop(writer);
        let store = Datastore::open(folder.path()).expect("open");
        assert_entries(&store, 150);
        assert_eq!(store.verify().expect("verify"), vec![], "operation {operation}");
        assert!(outcome.is_err() || store.is_built());
        let found = search(&store, &key(DIM, 9), &Request { k: 10, nprobe: Some(usize::MAX), ..Request::default() })
            .expect("search");
        assert!(found.ids.contains(&9));
        build(&store, &BuildOptions::default()).expect("build after the failure");
        assert!(store.is_built() && !files(folder.path()).iter().any(|f| f.ends_with(".tmp")));
    }
    assert!(failed > 20, "only {failed} operations were seen");
}

#[test]
fn damage_in_an_index_is_found_and_never_panics() {
    let folder = tempdir().expect("folder");
    let store = built(folder.path(), &options(DIM), 200);
    let query = key(DIM, 5);
    let request = Request { k: 10, nprobe: Some(usize::MAX), ..Request::default() };
    search(&store, &query, &request).expect("sound");
    for name in ["codebook-00000005.seg", "lists-00000005.seg"] {
        let path = folder.path().join(name);
        let whole = std::fs::read(&path).expect("read");
        for byte in (0..whole.len()).step_by(1 + whole.len() / 300) {
            for bit in [0, 6, 7] {
                let mut bytes = whole.clone();
                bytes[byte] ^= 1 << bit;
                // A new file: the open store keeps mapping the old one.
                std::fs::remove_file(&path).expect("remove");
                std::fs::write(&path, bytes).expect("write");
                let found = Datastore::verify_path(folder.path()).expect("the manifest is sound");
                assert!(found.iter().any(|p| p.file == name), "bit {bit} of byte {byte} of {name}: {found:?}");
                if let Ok(store) = Datastore::open(folder.path()) {
                    let _ = (search(&store, &query, &request), store.reconstruct(&[3]), store.info());
                }
            }
        }
        std::fs::remove_file(&path).expect("remove");
        std::fs::write(&path, &whole).expect("write");
    }
    assert_eq!(store.verify().expect("verify"), vec![]);
}
