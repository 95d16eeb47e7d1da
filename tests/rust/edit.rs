//! Deleting, replacing and compacting: what every answer says while and after documents go.
//! `never_held.rs` compares with a store that never held them, and looks for what is left on disk.

use crate::store_support::{add, keeping, key, options, value};
use knnlm::index::Params;
use knnlm::keys::KeyRows;
use knnlm::search::{Request, Rerank};
use knnlm::store::{BuildOptions, Datastore, DocumentKey, KeyType, Neighbors, Options, ValueRows, Values};
use knnlm::{Error, Metric};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

const DIM: usize = 16;
const DOCUMENTS: u64 = 40;
const LENGTH: u64 = 60;

fn name(i: u64) -> String {
    format!("document-{i:03}-secret")
}

fn build(store: &Datastore, retrain: bool) {
    let params = Params { nlist: Some(20), ..Params::default() };
    let options = BuildOptions { params, retrain, threads: Some(1) };
    store.build(&options, &|_, _, _| {}, &AtomicBool::new(false)).expect("build");
}

fn compact(store: &Datastore) {
    store.compact(&|_, _, _| {}, &AtomicBool::new(false)).expect("compact");
}

fn delete(store: &Datastore, documents: &[u64]) -> u64 {
    let names: Vec<DocumentKey> = documents.iter().map(|&i| DocumentKey::Name(name(i))).collect();
    store.delete(&names).expect("delete")
}

/// Documents of known entries, in three commits; the last document of each goes on in the next.
fn filled(path: &Path, options: &Options) -> Datastore {
    let store = Datastore::create(path, options).expect("create");
    for i in 0..DOCUMENTS {
        add(&store, LENGTH / 2, Some(&name(i)), Some(&format!("{{\"title\": \"hidden {i}\"}}"))).expect("add");
        if i % 15 == 14 {
            store.commit().expect("commit");
        }
        add(&store, LENGTH / 2, Some(&name(i)), None).expect("add");
    }
    store.commit().expect("commit");
    store
}

fn requests<'r>(exact: bool) -> Vec<Request<'r>> {
    let base = Request { k: 30, ..Request::default() };
    let mut all =
        vec![base.clone(), Request { nprobe: Some(2), ..base.clone() }, Request { nprobe: Some(99), ..base.clone() }];
    if exact {
        all.push(Request { exact: true, ..base.clone() });
        all.push(Request { rerank: Rerank::Keys, nprobe: Some(3), ..base });
    }
    all
}

fn search(store: &Datastore, queries: &[f32], request: &Request) -> Neighbors {
    store.search(queries, request, Some(2), &AtomicBool::new(false)).expect("search")
}

#[test]
fn deleted_documents_are_gone_from_every_answer() {
    for (options, metric, built) in [
        (options(DIM), Metric::L2, true),
        (keeping(DIM, KeyType::Float16), Metric::Ip, true),
        (keeping(DIM, KeyType::Float32), Metric::L2, true),
        (keeping(DIM, KeyType::Float32), Metric::Ip, false),
    ] {
        let options = Options { metric, ..options };
        let exact = options.keep_keys.is_some();
        let folder = tempdir().expect("folder");
        let store = filled(folder.path(), &options);
        if built {
            build(&store, false);
        }
        // The last of a commit (it goes on in the next segment), the first, the last and two neighbors.
        let gone: Vec<u64> = vec![14, 0, 39, 20, 21];
        let queries: Vec<f32> = [LENGTH * 14, 3, 9_999, LENGTH * 21 + 7].iter().flat_map(|&id| key(DIM, id)).collect();
        let before: Vec<Neighbors> = requests(exact).iter().map(|r| search(&store, &queries, r)).collect();
        let reader = Datastore::open(folder.path()).expect("open");
        assert_eq!(delete(&store, &gone), 5 * LENGTH);

        let is_gone = |id: i64| id >= 0 && gone.contains(&(id as u64 / LENGTH));
        assert!(
            before.iter().all(|found| found.ids.iter().any(|&id| is_gone(id))),
            "the queries are near to what goes"
        );
        for stage in ["deleted", "reopened", "compacted", "reopened"] {
            let store = if stage == "reopened" { &Datastore::open(folder.path()).expect("open") } else { &store };
            if stage == "compacted" {
                compact(store);
            }
            assert_eq!(store.verify().expect("verify"), vec![], "{stage}");
            assert_eq!((store.len(), store.next_id()), ((DOCUMENTS - 5) * LENGTH, DOCUMENTS * LENGTH));
            for request in &requests(exact) {
                let found = search(store, &queries, request);
                assert!(!found.ids.iter().any(|&id| is_gone(id)), "{stage}");
                let Values::U32(values) = &found.values else { panic!("u32") };
                for (&id, &v) in found.ids.iter().zip(values) {
                    assert_eq!(v, if id < 0 { u32::MAX } else { value(id as u64) });
                }
            }
            let left: Vec<String> =
                (0..store.documents()).map(|i| store.document(i).expect("document").name.expect("name")).collect();
            assert_eq!(left, (0..DOCUMENTS).filter(|i| !gone.contains(i)).map(name).collect::<Vec<_>>(), "{stage}");
            for (i, left) in left.iter().enumerate() {
                assert_eq!(store.find_document(left).expect("find"), Some(i as u64));
                let document = store.document(i as u64).expect("document");
                assert_eq!(document.end - document.start, LENGTH);
                let entries = store.get(&[document.start as i64, document.end as i64 - 1]).expect("get");
                assert_eq!((entries.documents, entries.positions), (vec![i as i64; 2], vec![0, LENGTH as i64 - 1]));
            }
            assert_eq!(store.find_document(&name(14)).expect("find"), None);
            let missing = store.get(&[(LENGTH * 14) as i64, 0, -1]).expect("get");
            assert_eq!((missing.values, missing.documents), (Values::U32(vec![u32::MAX; 3]), vec![-1; 3]));
            assert!(matches!(store.reconstruct(&[(LENGTH * 20) as i64]), Err(Error::Argument(_))));
            let Values::U32(values) = store.values(0..DOCUMENTS * LENGTH).expect("values") else { panic!("u32") };
            assert!((0..).zip(&values).all(|(id, &v)| v == if is_gone(id) { u32::MAX } else { value(id as u64) }));
        }
        // A reader of the old generation still answers as before.
        let again: Vec<Neighbors> = requests(exact).iter().map(|r| search(&reader, &queries, r)).collect();
        assert!(again == before);
        reader.refresh().expect("refresh");
        assert_eq!(reader.len(), (DOCUMENTS - 5) * LENGTH);
    }
}

#[test]
fn a_name_is_free_again_after_its_document_was_deleted() {
    for keep in [None, Some(KeyType::Float16)] {
        let folder = tempdir().expect("folder");
        let store = filled(folder.path(), &Options { keep_keys: keep, ..options(DIM) });
        build(&store, false);
        let first = DOCUMENTS * LENGTH;
        for round in 0..3 {
            delete(&store, &[39]);
            assert_eq!(store.find_document(&name(39)).expect("find"), None);
            let ids = add(&store, 7 + round, Some(&name(39)), None);
            // `add` counts entries that are left; ids go on from the highest ever.
            let ids = ids.expect("add");
            assert!(ids.start >= first, "ids are never used again");
            store.commit().expect("commit");
            let index = store.find_document(&name(39)).expect("find").expect("there");
            let document = store.document(index).expect("document");
            assert_eq!(document.start..document.end, ids);
            match round {
                0 => build(&store, false),
                1 => compact(&store),
                _ => (),
            }
            assert_eq!(store.verify().expect("verify"), vec![]);
            assert_eq!(store.document_of(&[ids.start as i64]).expect("document"), vec![index as i64]);
        }
        assert_eq!(store.documents(), DOCUMENTS);
        compact(&store);
        assert_eq!((store.documents(), store.len()), (DOCUMENTS, (DOCUMENTS - 1) * LENGTH + 9));
        assert_eq!(store.verify().expect("verify"), vec![]);
    }
}

#[test]
fn a_store_can_lose_everything_and_be_filled_again() {
    let folder = tempdir().expect("folder");
    let store = filled(folder.path(), &options(DIM));
    build(&store, false);
    delete(&store, &(0..DOCUMENTS).collect::<Vec<_>>());
    let nothing = |store: &Datastore| {
        let found = search(store, &key(DIM, 5), &Request { k: 3, nprobe: Some(99), ..Request::default() });
        assert_eq!((found.ids, store.len(), store.documents()), (vec![-1; 3], 0, 0));
        assert_eq!(store.verify().expect("verify"), vec![]);
    };
    nothing(&store);
    compact(&store);
    nothing(&store);
    build(&store, false);
    let start = DOCUMENTS * LENGTH;
    let keys: Vec<f32> = (0..50).flat_map(|id| key(DIM, id)).collect();
    store.add(KeyRows::F32(&keys), ValueRows::U32(&[7; 50]), Some(&name(0)), None).expect("add");
    build(&store, false);
    let found = search(&store, &key(DIM, 5), &Request { k: 1, nprobe: Some(99), ..Request::default() });
    assert_eq!(found.ids, vec![start as i64 + 5]);
    assert_eq!(store.verify().expect("verify"), vec![]);
}

#[test]
fn unknown_documents_delete_nothing() {
    let folder = tempdir().expect("folder");
    let store = filled(folder.path(), &options(DIM));
    let generation = store.generation();
    for wrong in [DocumentKey::Index(DOCUMENTS), DocumentKey::Name("no such".into())] {
        let error = store.delete(&[DocumentKey::Index(3), wrong]).expect_err("unknown");
        assert!(matches!(error, Error::Argument(_)), "{error}");
    }
    assert_eq!(store.delete(&[]).expect("nothing to do"), 0);
    assert_eq!((store.generation(), store.documents()), (generation, DOCUMENTS));
    let twice = [DocumentKey::Index(3), DocumentKey::Name(name(3))];
    assert_eq!(store.delete(&twice).expect("once"), LENGTH);
}

#[test]
fn many_small_additions_leave_few_lists() {
    let folder = tempdir().expect("folder");
    let store = filled(folder.path(), &options(DIM));
    build(&store, false);
    let first = store.next_id();
    for i in 0..20 {
        add(&store, 24, Some(&format!("more {i}")), None).expect("add");
        build(&store, false);
    }
    let info = store.info().expect("info");
    let index = info.index.expect("built");
    assert!(index.lists_segments <= 5, "{} segments", index.lists_segments);
    let drift = index.drift.expect("entries were added");
    assert!(drift.abs() < 0.5 && !index.retrain_advised, "drift {drift}");
    assert_eq!((info.indexed, info.entries), (first + 480, first + 480));
    assert_eq!(store.verify().expect("verify"), vec![]);
    let ids: BTreeSet<i64> = (0..480)
        .map(|i| search(&store, &key(DIM, first + i), &Request { k: 1, nprobe: Some(99), ..Request::default() }).ids[0])
        .collect();
    assert!(ids.len() > 400, "most entries are nearest to themselves: {}", ids.len());
    compact(&store);
    assert_eq!(store.info().expect("info").index.expect("built").lists_segments, 1);
    assert_eq!(store.verify().expect("verify"), vec![]);
}

#[test]
fn what_is_added_far_away_shows_as_drift() {
    let folder = tempdir().expect("folder");
    let store = filled(folder.path(), &keeping(DIM, KeyType::Float32));
    build(&store, false);
    let far: Vec<f32> = (0..100).flat_map(|id| key(DIM, id)).map(|x| 10.0 * x + 300.0).collect();
    store.add(KeyRows::F32(&far), ValueRows::U32(&[1; 100]), Some("far"), None).expect("add");
    build(&store, false);
    assert!(store.info().expect("info").index.expect("built").retrain_advised);
    build(&store, true);
    let index = store.info().expect("info").index.expect("built");
    assert!(!index.retrain_advised && index.drift.is_none());
}

#[test]
fn how_far_a_search_looks_does_not_depend_on_what_is_deleted() {
    // Large enough that a build measures where searches may stop; many documents go, in few lists.
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(DIM)).expect("create");
    for i in 0..44 {
        let near = if i % 3 == 0 { 0 } else { i };
        let keys: Vec<f32> = (0..500).flat_map(|j| key(DIM, j).into_iter().map(|x| 0.2 * x + near as f32)).collect();
        let values: Vec<u32> = vec![i as u32; 500];
        store.add(KeyRows::F32(&keys), ValueRows::U32(&values), Some(&name(i)), None).expect("add");
    }
    let params = Params { nlist: Some(150), ..Params::default() };
    let build = BuildOptions { params, retrain: false, threads: Some(2) };
    store.build(&build, &|_, _, _| {}, &AtomicBool::new(false)).expect("build");
    delete(&store, &(0..44).filter(|i| i % 3 == 0).take(13).collect::<Vec<_>>());
    let queries: Vec<f32> =
        (0..60).flat_map(|j| key(DIM, 7 * j).into_iter().map(move |x| 0.25 * x + (j % 9) as f32)).collect();
    let requests = [Request { k: 40, ..Request::default() }, Request { k: 40, nprobe: Some(6), ..Request::default() }];
    let before: Vec<Neighbors> = requests.iter().map(|r| search(&store, &queries, r)).collect();
    compact(&store);
    for (request, before) in requests.iter().zip(before) {
        assert!(search(&store, &queries, request) == before, "{request:?}");
    }
}
