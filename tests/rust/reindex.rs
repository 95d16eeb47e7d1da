//! A staged index becomes a generation: all live entries and no others, whatever fails, whatever was staged.

use crate::failing_disk::{FailingDisk, Failure};
use crate::recording_disk::{Loss, RecordingDisk, after_power_loss};
use crate::store_support::{add, keeping, key, options};
use knnlm::error::Why;
use knnlm::index::Params;
use knnlm::keys::KeyRows;
use knnlm::search::{Request, Truth};
use knnlm::store::files::Files;
use knnlm::store::{
    BuildOptions, Datastore, Document, DocumentKey, Encoded, KeyType, Options, SegmentName, Staged, Values,
};
use knnlm::{Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

const DIM: usize = 8;
static NEVER: AtomicBool = AtomicBool::new(false);

fn params(nlist: usize) -> BuildOptions {
    BuildOptions { params: Params { nlist: Some(nlist), ..Params::default() }, retrain: false, threads: Some(1) }
}

fn build(store: &Datastore, options: &BuildOptions) {
    store.build(options, &|_, _, _| (), &NEVER).expect("build");
}

fn delete(store: &Datastore, names: &[u64]) {
    let keys: Vec<_> = names.iter().map(|i| DocumentKey::Name(format!("{i}"))).collect();
    store.delete(&keys).expect("delete");
}

/// Ten documents: the first and the fourth are compacted away, the sixth and the last are deleted.
fn filled(path: &Path, options: &Options) -> Datastore {
    let store = Datastore::create(path, options).expect("create");
    for i in 0..8 {
        add(&store, 30 + i, Some(&format!("{i}")), Some("{}")).expect("add");
    }
    build(&store, &params(4));
    delete(&store, &[0, 3]);
    store.compact(&|_, _, _| (), &NEVER).expect("compact");
    add(&store, 40, Some("8"), None).expect("add");
    add(&store, 41, Some("9"), None).expect("add");
    build(&store, &params(4));
    delete(&store, &[5, 9]);
    store
}

fn live(store: &Datastore) -> Vec<u64> {
    let documents = (0..store.documents()).map(|i| store.document(i).expect("document"));
    documents.flat_map(|d| d.start..d.end).collect()
}

fn keys(ids: &[u64]) -> Vec<f32> {
    ids.iter().flat_map(|&id| key(DIM, id)).collect()
}

fn runs(ids: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &id in ids {
        match runs.last_mut() {
            Some(last) if last.0 + last.1 == id => last.1 += 1,
            _ => runs.push((id, 1)),
        }
    }
    runs
}

/// Codebook and lists of some entries, three files.
fn stage(store: &Datastore, folder: &Path, ids: &[u64]) -> (SegmentName, Vec<Encoded>) {
    let sample = keys(ids);
    let codebook = store
        .stage_codebook(folder, "codebook.seg", KeyRows::F32(&sample), &params(6), &|_, _, _| (), &NEVER)
        .expect("codebook");
    let mut start = 0;
    let mut lists = Vec::new();
    for (i, part) in ids.chunks(ids.len().div_ceil(3)).enumerate() {
        let end = part[part.len() - 1] + 1;
        let (rows, name) = (keys(part), format!("lists-{i}.seg"));
        lists.push(
            store
                .stage_lists(folder, &codebook, KeyRows::F32(&rows), &runs(part), start..end, &name, Some(2), &NEVER)
                .expect("lists"),
        );
        start = end;
    }
    (codebook, lists)
}

fn publish(store: &Datastore, folder: &Path, (codebook, lists): &(SegmentName, Vec<Encoded>)) -> Result<()> {
    let truth = Truth { queries: keys(&[50, 200]), own: vec![50..51, 200..201], ids: vec![60, 70], k: 1 };
    let held = store.hold()?;
    let staged = Staged { folder, codebook, lists };
    store.reindex(&held, staged, &truth, Some(2), &|_, _, _| (), &NEVER)
}

fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(path).expect("list").map(|e| e.expect("entry"));
    let files = entries.filter(|e| e.path().is_file() && e.file_name() != "lock");
    files.map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).expect("read"))).collect()
}

/// What does not change: documents and values.
fn contents(store: &Datastore) -> (Vec<Document>, Vec<u32>) {
    let Values::U32(values) = store.values(0..store.next_id()).expect("values") else { panic!("u32 values") };
    ((0..store.documents()).map(|i| store.document(i).expect("document")).collect(), values)
}

fn all_found(store: &Datastore) -> Vec<i64> {
    let request = Request { k: 1000, nprobe: Some(99), ..Request::default() };
    let mut ids = store.search(&key(DIM, 60), &request, Some(1), &NEVER).expect("search").ids;
    ids.retain(|&id| id >= 0);
    ids.sort_unstable();
    ids
}

#[test]
fn live_entries_get_codes_and_nothing_else_changes() {
    for options in [options(DIM), keeping(DIM, KeyType::Float16)] {
        let (folder, staging) = (tempdir().expect("folder"), tempdir().expect("folder"));
        let store = filled(folder.path(), &options);
        let ids = live(&store);
        let reader = Datastore::open(folder.path()).expect("open");
        let (before, generation) = (contents(&store), store.generation());
        let old = all_found(&reader);
        let staged = stage(&store, staging.path(), &ids);
        assert!(staged.1[0].entries > staged.1[0].live, "a gap");
        publish(&store, staging.path(), &staged).expect("reindex");
        assert_eq!(store.generation(), generation + 1);
        assert!(contents(&store) == before);
        assert_eq!(store.verify().expect("verify"), vec![]);
        let index = store.info().expect("info").index.expect("an index");
        assert_eq!((index.nlist, index.lists_segments, index.drift), (6, 1, None));
        assert!(index.fit.expect("a fit").trained_error > 0.0);
        assert_eq!(all_found(&store), ids.iter().map(|&id| id as i64).collect::<Vec<_>>());
        assert_eq!((reader.generation(), all_found(&reader)), (generation, old));
        reader.refresh().expect("refresh");
        assert_eq!(reader.generation(), generation + 1);
        assert_eq!(files(staging.path()).len(), 4, "staged files stay");
        add(&store, 10, Some("after"), None).expect("add");
        build(&store, &params(6));
        assert_eq!(store.len(), ids.len() as u64 + 10);
    }
}

#[test]
fn codes_are_those_of_training_from_kept_keys() {
    let (one, two, staging) = (tempdir().expect("folder"), tempdir().expect("folder"), tempdir().expect("folder"));
    let (codes, raw) = (filled(one.path(), &options(DIM)), filled(two.path(), &keeping(DIM, KeyType::Float32)));
    let staged = stage(&codes, staging.path(), &live(&codes));
    publish(&codes, staging.path(), &staged).expect("reindex");
    build(&raw, &BuildOptions { retrain: true, ..params(6) });
    assert_eq!(codes.generation(), raw.generation());
    let index = |path| files(path).into_iter().filter(|f| !f.0.starts_with("data") && !f.0.starts_with("manifest"));
    assert!(index(one.path()).eq(index(two.path())));
}

#[test]
fn training_without_raw_keys_says_who_can() {
    let folder = tempdir().expect("folder");
    let store = filled(folder.path(), &options(DIM));
    let options = BuildOptions { retrain: true, ..params(6) };
    let error = store.build(&options, &|_, _, _| (), &NEVER).expect_err("no raw keys");
    assert!(matches!(&error, Error::State { why: Why::KeysNotKept, .. }), "{error}");
}

#[test]
fn keys_that_waited_for_an_index_are_dropped_with_it() {
    let (folder, staging) = (tempdir().expect("folder"), tempdir().expect("folder"));
    let store = filled(folder.path(), &options(DIM));
    add(&store, 25, Some("waiting"), None).expect("add");
    store.commit().expect("commit");
    let ids = live(&store);
    let staged = stage(&store, staging.path(), &ids);
    publish(&store, staging.path(), &staged).expect("reindex");
    let info = store.info().expect("info");
    assert_eq!((info.entries_with_keys, info.indexed), (0, ids.len() as u64));
    assert_eq!(store.verify().expect("verify"), vec![]);
}

#[test]
fn only_one_holds_a_store_and_only_at_its_generation() {
    let (folder, staging) = (tempdir().expect("folder"), tempdir().expect("folder"));
    let store = filled(folder.path(), &options(DIM));
    let staged = stage(&store, staging.path(), &live(&store));
    let held = store.hold().expect("hold");
    let other = Datastore::open(folder.path()).expect("open");
    let refuses = || {
        for refused in [other.set_attributes("{}"), other.hold().map(drop)] {
            assert!(
                matches!(&refused, Err(Error::State { message: m, .. }) if m.contains("another writer")),
                "{refused:?}"
            );
        }
    };
    refuses();
    store.set_attributes("{}").expect("the holder writes");
    refuses(); // what it commits does not let go
    drop(held);
    let held = other.hold().expect("hold");
    drop(held);
    // Another store at the same generation.
    let elsewhere = tempdir().expect("folder");
    let twin = filled(elsewhere.path(), &options(DIM));
    twin.set_attributes("{}").expect("writes");
    assert_eq!(twin.generation(), store.generation());
    let held = twin.hold().expect("hold");
    let truth = Truth { queries: keys(&[50]), own: std::iter::once(50..51).collect(), ids: vec![60], k: 1 };
    let given = Staged { folder: staging.path(), codebook: &staged.0, lists: &staged.1 };
    let before = files(folder.path());
    let foreign = store.reindex(&held, given, &truth, Some(1), &|_, _, _| (), &NEVER);
    assert!(
        matches!(&foreign, Err(Error::State { message: m, .. }) if m.contains("found that of another")),
        "{foreign:?}"
    );
    assert!(files(folder.path()) == before);
    drop(held);
    let held = store.hold().expect("hold");
    let truth = Truth { queries: keys(&[50]), own: std::iter::once(50..51).collect(), ids: vec![60], k: 1 };
    let given = Staged { folder: staging.path(), codebook: &staged.0, lists: &staged.1 };
    store.reindex(&held, given, &truth, Some(1), &|_, _, _| (), &NEVER).expect("reindex");
    let again = store.reindex(&held, given, &truth, Some(1), &|_, _, _| (), &NEVER);
    assert!(matches!(&again, Err(Error::State { message: m, .. }) if m.contains("hold it again")), "{again:?}");
}

#[test]
fn what_does_not_fit_the_store_is_refused() {
    let (folder, staging) = (tempdir().expect("folder"), tempdir().expect("folder"));
    let store = filled(folder.path(), &options(DIM));
    let ids = live(&store);
    let (codebook, lists) = stage(&store, staging.path(), &ids);
    let before = files(folder.path());
    let refused = |staged: (SegmentName, Vec<Encoded>), why: &str| {
        let error = publish(&store, staging.path(), &staged).expect_err(why);
        assert!(matches!(error, Error::Argument(_) | Error::Format { .. } | Error::Io { .. }), "{why}: {error}");
        assert!(files(folder.path()) == before, "{why}");
    };
    refused((codebook.clone(), Vec::new()), "no lists");
    refused((codebook.clone(), lists[..2].to_vec()), "a part is missing");
    refused((codebook.clone(), [lists.clone(), vec![lists[0].clone()]].concat()), "a part too many");
    let away = |name: &SegmentName| SegmentName { file: format!("../{}", name.file), ..name.clone() };
    refused((away(&codebook), lists.clone()), "a codebook of another folder");
    let elsewhere = Encoded { name: away(&lists[0].name), ..lists[0].clone() };
    refused((codebook.clone(), [vec![elsewhere], lists[1..].to_vec()].concat()), "lists of another folder");
    for error in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -1.0, serde_json::from_str("1e39").expect("a number")] {
        let forged = Encoded { error, ..lists[1].clone() };
        refused((codebook.clone(), [&lists[..1], &[forged], &lists[2..]].concat()), "an error that no keys have");
    }
    // A bit of the JSON that is staged: 1 becomes 9, and the number one that is not finite in single precision.
    let record = serde_json::to_string(&Encoded { error: 1e38, ..lists[0].clone() }).expect("JSON");
    let flipped = record.replace("e38", "e39").replace("e+38", "e+39");
    let forged: Encoded = serde_json::from_str(&flipped).expect("JSON");
    assert!(forged.error == f32::INFINITY, "{flipped}");
    refused((codebook.clone(), [&[forged], &lists[1..]].concat()), "a flipped bit of the record");
    // As many entries as there should be, but not those.
    let shifted: Vec<u64> = ids.iter().map(|&id| if id == ids[0] { 0 } else { id }).collect();
    refused(stage(&store, staging.path(), &shifted), "codes of an entry that is gone");
    let (codebook, lists) = stage(&store, staging.path(), &ids);
    for name in [&codebook.file, &lists[1].name.file] {
        let path = staging.path().join(name);
        let sound = std::fs::read(&path).expect("read");
        for at in [70, sound.len() / 2, sound.len() - 70] {
            let mut bytes = sound.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).expect("write");
            refused((codebook.clone(), lists.clone()), "a flipped bit");
        }
        std::fs::write(&path, sound).expect("write");
    }
    publish(&store, staging.path(), &(codebook.clone(), lists)).expect("sound again");
    let rows = keys(&[1, 2, 3]);
    for (runs, ids) in [
        (vec![(1, 2)], 0..9),
        (vec![(2, 2), (1, 1)], 0..9),
        (vec![(1, 3)], 0..3),
        (vec![(1, 3)], 2..9),
        (vec![(1, 3), (5, 0)], 0..9),
        (vec![(u64::MAX, 3)], 0..9),
    ] {
        let staged =
            store.stage_lists(staging.path(), &codebook, KeyRows::F32(&rows), &runs, ids, "wrong.seg", None, &NEVER);
        assert!(matches!(staged, Err(Error::Argument(_))), "{runs:?}: {staged:?}");
    }
}

/// A store and what is staged for it, and the number of its generation.
fn prepared(folder: &Path, staging: &Path) -> ((SegmentName, Vec<Encoded>), u64) {
    let store = filled(folder, &options(DIM));
    add(&store, 25, Some("waiting"), None).expect("add");
    store.commit().expect("commit");
    (stage(&store, staging, &live(&store)), store.generation())
}

fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        std::fs::write(to.join(name), bytes).expect("write");
    }
}

/// Leaves what an interrupted re-training and an interrupted build leave, with links out of the store.
fn leave(store: &Path, away: &Path) {
    for name in ["retraining", "parts"] {
        let folder = store.join(name);
        std::fs::create_dir_all(folder.join("deeper")).expect("create");
        for file in ["plan.json", "truth.npy", "deeper/keys.npy"] {
            std::fs::write(folder.join(file), b"text").expect("write");
        }
        #[cfg(unix)]
        for (link, to) in [("file", away.join("file")), ("deeper/folder", away.to_path_buf())] {
            std::os::unix::fs::symlink(to, folder.join(link)).expect("link");
        }
    }
    std::fs::write(away.join("file"), b"of somebody else").expect("write");
}

fn left(store: &Path) -> Vec<&'static str> {
    ["retraining", "parts"].into_iter().filter(|name| store.join(name).exists()).collect()
}

#[test]
fn compaction_removes_what_is_staged_of_deleted_text() {
    let (folder, away) = (tempdir().expect("folder"), tempdir().expect("folder"));
    let store = filled(folder.path(), &options(DIM));
    let compact = |store: &Datastore| store.compact(&|_, _, _| (), &NEVER);
    leave(folder.path(), away.path());
    delete(&store, &[8]);
    assert_eq!(left(folder.path()).len(), 2);
    compact(&store).expect("compact");
    assert_eq!(left(folder.path()), Vec::<&str>::new());
    // Killed between the two: there is nothing to compact, but to remove.
    leave(folder.path(), away.path());
    let generation = store.generation();
    compact(&store).expect("compact");
    assert_eq!((left(folder.path()), store.generation()), (vec![], generation));
    assert_eq!(std::fs::read(away.path().join("file")).expect("not followed"), b"of somebody else");
    assert_eq!(store.verify().expect("verify"), vec![]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(away.path(), folder.path().join("retraining")).expect("link");
        let error = compact(&store).expect_err("a link");
        assert!(matches!(&error, Error::State { message: m, .. } if m.contains("found a link")), "{error}");
        assert_eq!(std::fs::read(away.path().join("file")).expect("not followed"), b"of somebody else");
    }
}

#[test]
fn replacing_a_store_removes_what_was_staged_of_it() {
    let (folder, away) = (tempdir().expect("folder"), tempdir().expect("folder"));
    drop(filled(folder.path(), &options(DIM)));
    leave(folder.path(), away.path());
    let store = Datastore::create(folder.path(), &Options { overwrite: true, ..options(DIM) }).expect("overwrite");
    assert_eq!((left(folder.path()), store.len()), (vec![], 0));
    assert_eq!(std::fs::read(away.path().join("file")).expect("not followed"), b"of somebody else");
}

#[test]
fn what_is_staged_stays_where_nothing_was_deleted() {
    let (folder, away) = (tempdir().expect("folder"), tempdir().expect("folder"));
    let store = Datastore::create(folder.path(), &options(DIM)).expect("create");
    add(&store, 30, Some("one"), None).expect("add");
    build(&store, &params(4));
    leave(folder.path(), away.path());
    store.compact(&|_, _, _| (), &NEVER).expect("nothing to do");
    assert_eq!(left(folder.path()), ["retraining", "parts"]);
    add(&store, 30, Some("two"), None).expect("add");
    build(&store, &params(4));
    let generation = store.generation();
    store.compact(&|_, _, _| (), &NEVER).expect("compact");
    assert_eq!((left(folder.path()), store.generation()), (vec!["parts"], generation + 1));
}

#[test]
fn what_cannot_be_removed_is_told_and_removed_later() {
    let mut told = 0;
    for operation in 0.. {
        let (folder, away) = (tempdir().expect("folder"), tempdir().expect("folder"));
        drop(filled(folder.path(), &options(DIM)));
        leave(folder.path(), away.path());
        let disk = FailingDisk::new(operation, Failure::Denied, true);
        let store = Datastore::open_through(folder.path(), Arc::new(disk.clone())).expect("open");
        let outcome = store.compact(&|_, _, _| (), &NEVER);
        assert_eq!(store.verify().expect("verify"), vec![], "operation {operation}");
        if !disk.has_failed() {
            outcome.expect("no operation failed");
            break;
        }
        let of_staged =
            |e: &Error| matches!(e, Error::Io { path, .. } if path.to_string_lossy().contains("retraining"));
        told += usize::from(outcome.as_ref().is_err_and(of_staged));
        assert!(outcome.is_err() || left(folder.path()).is_empty(), "operation {operation}");
        store.compact(&|_, _, _| (), &NEVER).expect("compact");
        assert_eq!(left(folder.path()), Vec::<&str>::new(), "operation {operation}");
    }
    assert_eq!(told, 2, "the plan and the folder");
}

#[test]
fn whichever_operation_fails_the_store_is_at_one_index_or_the_other() {
    let (original, staging) = (tempdir().expect("folder"), tempdir().expect("folder"));
    let (staged, generation) = prepared(original.path(), staging.path());
    let (mut failed, before) = (0, contents(&Datastore::open(original.path()).expect("open")));
    for operation in 0.. {
        let folder = tempdir().expect("folder");
        copy(original.path(), folder.path());
        let disk = FailingDisk::new(operation, Failure::Torn, false);
        let store = Datastore::open_through(folder.path(), Arc::new(disk.clone())).expect("open");
        let outcome = publish(&store, staging.path(), &staged);
        drop(store);
        let store = Datastore::open(folder.path()).expect("open");
        assert!((generation..=generation + 1).contains(&store.generation()), "operation {operation}");
        assert!(contents(&store) == before, "operation {operation}");
        assert_eq!(store.verify().expect("verify"), vec![], "operation {operation}");
        if !disk.has_failed() {
            outcome.expect("no operation failed");
            break;
        }
        failed += 1;
        if store.generation() == generation {
            publish(&store, staging.path(), &staged).expect("staged files are still there");
        }
        assert_eq!(store.verify().expect("verify"), vec![], "operation {operation}");
    }
    assert!(failed > 30, "only {failed} operations were seen");
}

#[test]
fn the_power_goes_at_any_moment() {
    let (folder, staging) = (tempdir().expect("folder"), tempdir().expect("folder"));
    let (staged, generation) = prepared(folder.path(), staging.path());
    let before = files(folder.path());
    let disk = RecordingDisk::default();
    // The log starts with what is on the disk already.
    for (name, bytes) in &before {
        let path = folder.path().join(name);
        let mut file = disk.create(&path).expect("create");
        file.write(bytes).expect("write");
        file.sync().expect("sync");
    }
    disk.sync_dir(folder.path()).expect("sync");
    let start = disk.len();
    let store = Datastore::open_through(folder.path(), Arc::new(disk.clone())).expect("open");
    let expected = contents(&store);
    publish(&store, staging.path(), &staged).expect("reindex");
    let log = disk.log();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (mut old, mut new) = (0, 0);
    for moment in start..=log.len() {
        for loss in [Loss::Everything, Loss::Nothing, Loss::Bytes, Loss::Chance, Loss::Chance, Loss::Chance] {
            let scratch = tempdir().expect("folder");
            for (name, bytes) in after_power_loss(&log[..moment], loss, &mut rng) {
                std::fs::write(scratch.path().join(name), bytes).expect("write");
            }
            let place = format!("operation {moment} of {}, {loss:?} lost", log.len());
            let store = Datastore::open(scratch.path()).unwrap_or_else(|e| panic!("{place}: {e}"));
            assert!(contents(&store) == expected, "{place}");
            assert_eq!(store.verify().expect("verify"), vec![], "{place}");
            *(if store.generation() == generation { &mut old } else { &mut new }) += 1;
        }
    }
    assert!(old > 100 && new > 5, "{old} with the old index, {new} with the new one");
}
