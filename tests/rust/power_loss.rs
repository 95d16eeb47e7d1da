//! Power goes at every moment of a store's life, and the disk keeps what it likes of what was not forced: the store
//! opens at the last acknowledged commit or at the one in flight.

use crate::recording_disk::{Loss, RecordingDisk, after_power_loss};
use crate::store_support::{add, key, options, value};
use knnlm::index::Params;
use knnlm::keys::KeyRows;
use knnlm::store::{BuildOptions, Datastore, DocumentKey, Options, ValueRows, Values};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

const DIM: usize = 8;

/// What is left of each entry, and the documents.
#[derive(Clone, Debug, PartialEq)]
struct State {
    generation: u64,
    values: Vec<u32>,
    names: Vec<String>,
    is_built: bool,
}

fn state(store: &Datastore) -> State {
    let Values::U32(values) = store.values(0..store.next_id()).expect("values") else { panic!("u32") };
    let name = |i| store.document(i).expect("document").name.expect("a name");
    State {
        generation: store.generation(),
        values,
        names: (0..store.documents()).map(name).collect(),
        is_built: store.is_built(),
    }
}

/// A life with every kind of change; notes how far the log was, and what the store held, after each.
fn live(store: &Datastore, disk: &RecordingDisk) -> Vec<(usize, State)> {
    let mut reached = vec![(disk.len(), state(store))];
    let mut note = |store: &Datastore| reached.push((disk.len(), state(store)));
    let build = |retrain| {
        let params = Params { nlist: Some(4), ..Params::default() };
        let options = BuildOptions { params, retrain, threads: Some(1) };
        store.build(&options, &|_, _, _| {}, &AtomicBool::new(false)).expect("build");
    };
    let delete = |name: &str| {
        store.delete(&[DocumentKey::Name(name.into())]).expect("delete");
    };
    for i in 0..6 {
        add(store, 20 + i, Some(&format!("document {i}")), Some("{}")).expect("add");
    }
    store.commit().expect("commit");
    note(store);
    build(false);
    note(store);
    add(store, 30, Some("later"), None).expect("add");
    store.commit().expect("commit");
    note(store);
    build(false);
    note(store);
    delete("document 2");
    note(store);
    delete("later");
    note(store);
    let replaced = ["document 3", "document 5"].map(|name| DocumentKey::Name(name.into()));
    store.supersede(&replaced).expect("supersede");
    add(store, 31, Some("document 5"), Some("[]")).expect("add");
    add(store, 32, Some("document 3"), None).expect("add");
    store.commit().expect("commit");
    note(store);
    build(false);
    note(store);
    store.compact(&|_, _, _| {}, &AtomicBool::new(false)).expect("compact");
    note(store);
    store.set_attributes("{\"a\": 1}").expect("attributes");
    note(store);
    reached
}

/// The life of a store that is trained first: codes only, as they are added or in parts that others encode.
fn live_encoded(store: &Datastore, disk: &RecordingDisk) -> Vec<(usize, State)> {
    let mut reached = vec![(disk.len(), state(store))];
    let mut note = |store: &Datastore| reached.push((disk.len(), state(store)));
    let never = AtomicBool::new(false);
    let keys = |ids: std::ops::Range<u64>| ids.flat_map(|id| key(DIM, id)).collect::<Vec<f32>>();
    let params = Params { nlist: Some(4), expected: Some(200), ..Params::default() };
    let options = BuildOptions { params, retrain: false, threads: Some(1) };
    store.train(KeyRows::F32(&keys(0..100)), &options, &|_, _, _| {}, &never).expect("train");
    note(store);
    // The second and the third are joined with those before them within their commits, the fourth is too small.
    for (i, n) in [40, 30, 60, 9].into_iter().enumerate() {
        add(store, n / 2, Some(&format!("added {i}")), Some("{}")).expect("add");
        add(store, n - n / 2, Some(&format!("also {i}")), None).expect("add");
        store.commit().expect("commit");
        assert_eq!(store.snapshot().manifest.lists.len(), if i == 3 { 2 } else { 1 });
        note(store);
    }
    let parts = store.path().join("parts");
    std::fs::create_dir(&parts).expect("create");
    for (i, n) in [25u64, 200].into_iter().enumerate() {
        let first = store.next_id();
        let rows = keys(first..first + n);
        let encoded = store.encode_part(KeyRows::F32(&rows), &parts, &format!("lists-{i}"), Some(1), &never);
        let encoded = encoded.expect("encode");
        // What another process wrote and forced before this one takes it in.
        for part in &encoded {
            disk.found(&part.name.file, &std::fs::read(parts.join(&part.name.file)).expect("read"));
        }
        let values: Vec<u32> = (first..first + n).map(value).collect();
        let documents = [(Some(format!("part {i}")), None, n - 5), (Some(format!("end {i}")), Some("{}".into()), 5)];
        store.add_part(&parts, encoded, &documents, ValueRows::U32(&values), None).expect("add part");
        store.commit().expect("commit");
        note(store);
    }
    assert_eq!(store.snapshot().manifest.lists.len(), 1);
    store.delete(&["also 1", "end 0"].map(|name| DocumentKey::Name(name.into()))).expect("delete");
    note(store);
    store.supersede(&[DocumentKey::Name("part 0".into())]).expect("supersede");
    add(store, 21, Some("part 0"), None).expect("add");
    store.commit().expect("commit");
    note(store);
    store.compact(&|_, _, _| {}, &never).expect("compact");
    note(store);
    let info = store.info().expect("info");
    assert_eq!((info.entries_with_keys, info.indexed), (0, store.len()));
    reached
}

#[test]
fn the_store_opens_at_a_commit_whatever_the_disk_lost() {
    lose_power(live);
}

#[test]
fn a_trained_store_opens_at_a_commit_whatever_the_disk_lost() {
    lose_power(live_encoded);
}

fn lose_power(live: fn(&Datastore, &RecordingDisk) -> Vec<(usize, State)>) {
    let folder = tempdir().expect("folder");
    let disk = RecordingDisk::default();
    let all = Options { attributes: Some("{}".into()), ..options(DIM) };
    let store = Datastore::create_through(folder.path(), &all, Arc::new(disk.clone())).expect("create");
    let reached = live(&store, &disk);
    let log = disk.log();
    assert!(log.len() > 100, "{} operations", log.len());
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let scratch = tempdir().expect("folder");
    let (mut before, mut in_flight) = (0, 0);
    for moment in 0..=log.len() {
        for loss in [Loss::Everything, Loss::Nothing, Loss::Bytes, Loss::Chance, Loss::Chance, Loss::Chance] {
            let path = scratch.path().join("store");
            std::fs::create_dir_all(&path).expect("create folder");
            let files = after_power_loss(&log[..moment], loss, &mut rng);
            for (name, bytes) in &files {
                std::fs::write(path.join(name), bytes).expect("write");
            }
            let acknowledged = reached.iter().rposition(|(at, _)| *at <= moment);
            let place = format!("operation {moment} of {}, {loss:?} lost", log.len());
            match (Datastore::open(&path), acknowledged) {
                (Ok(store), _) => {
                    let found = state(&store);
                    let last = acknowledged.map_or(0, |i| i);
                    let next = (last + usize::from(acknowledged.is_some())).min(reached.len() - 1);
                    assert!(found == reached[last].1 || found == reached[next].1, "{place}: {found:?}");
                    *(if found == reached[last].1 { &mut before } else { &mut in_flight }) += 1;
                    assert_eq!(store.verify().expect("verify"), vec![], "{place}");
                    if moment % 5 == 0 {
                        add(&store, 5, Some("after"), None).expect("add");
                        store.commit().expect("commit");
                        let id = store.next_id() - 1;
                        assert_eq!(store.values(id..id + 1).expect("values"), Values::U32(vec![value(id)]), "{place}");
                        assert_eq!(store.verify().expect("verify"), vec![], "{place}");
                    }
                }
                // Before the first generation is acknowledged there may be no store yet.
                (Err(e), None) => assert!(moment < reached[0].0, "{place}: {e}"),
                (Err(e), Some(_)) => panic!("{place}: {e}"),
            }
            std::fs::remove_dir_all(&path).expect("remove");
        }
    }
    assert!(before > 300 && in_flight > 20, "{before} at the commit before, {in_flight} at the one in flight");
}

#[test]
fn what_compact_has_removed_stays_removed_whatever_the_disk_lost() {
    let folder = tempdir().expect("folder");
    let disk = RecordingDisk::default();
    let store = Datastore::create_through(folder.path(), &options(DIM), Arc::new(disk.clone())).expect("create");
    for name in ["stays", "goes"] {
        add(&store, 40, Some(name), None).expect("add");
        store.commit().expect("commit");
    }
    store.build(&BuildOptions::default(), &|_, _, _| {}, &AtomicBool::new(false)).expect("build");
    store.delete(&[DocumentKey::Name("goes".into())]).expect("delete");
    store.compact(&|_, _, _| {}, &AtomicBool::new(false)).expect("compact");
    let mut wanted: Vec<String> = std::fs::read_dir(folder.path())
        .expect("list")
        .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name != "lock")
        .collect();
    wanted.sort();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for loss in [Loss::Everything, Loss::Bytes, Loss::Chance, Loss::Chance, Loss::Chance, Loss::Chance] {
        let found: Vec<String> = after_power_loss(&disk.log(), loss, &mut rng).into_keys().collect();
        assert_eq!(found, wanted, "{loss:?} lost");
    }
}
