//! Files that are sound one by one, checksums included, and do not fit together: who notices, and what is said.

use crate::forge::{change_manifest, manifest, seal, sum, table, u32_at, u64_at};
use crate::store_support::{add, keeping, key};
use knnlm::Error;
use knnlm::error::Why;
use knnlm::index::Params;
use knnlm::search::Request;
use knnlm::sections::SectionKind;
use knnlm::store::{BuildOptions, Datastore, DocumentKey, KeyType, Neighbors, Problem};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tempfile::{TempDir, tempdir};

const DIM: usize = 4;
const DATA: &str = "data-00000002.seg";
const CODEBOOK: &str = "codebook-00000003.seg";
const LISTS: &str = "lists-00000003.seg";
const DELETED: &str = "deleted-00000004.seg";

/// Three documents of 20 entries in four lists, raw keys kept; the second is deleted.
fn sample() -> TempDir {
    sample_of(DIM)
}

fn sample_of(dim: usize) -> TempDir {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &keeping(dim, KeyType::Float16)).expect("create");
    for name in ["first", "second", "third"] {
        add(&store, 20, Some(name), Some("{}")).expect("add");
    }
    let params = Params { nlist: Some(4), ..Params::default() };
    let options = BuildOptions { params, retrain: false, threads: Some(1) };
    store.build(&options, &|_, _, _| {}, &AtomicBool::new(false)).expect("build");
    store.delete(&[DocumentKey::Name("second".into())]).expect("delete");
    folder
}

/// Table entry, offset and length of a section.
fn section(bytes: &[u8], kind: SectionKind) -> (usize, usize, usize) {
    let (start, count) = table(bytes);
    let entry = (0..count).map(|i| start + 48 * i).find(|&e| u32_at(bytes, e) == kind as u32).expect("section");
    (entry, u64_at(bytes, entry + 8) as usize, u64_at(bytes, entry + 16) as usize)
}

/// Changes the content of a section of a file of the sample: all that any checksum says is right again.
fn with_section(file: &str, kind: SectionKind, change: impl FnOnce(&mut [u8])) -> TempDir {
    let folder = sample();
    let mut bytes = std::fs::read(folder.path().join(file)).expect("read");
    let (_, offset, length) = section(&bytes, kind);
    change(&mut bytes[offset..offset + length]);
    sum(&mut bytes);
    seal(folder.path(), file, &mut bytes);
    folder
}

/// Changes the length of a section, in its table entry only.
fn with_length(file: &str, kind: SectionKind, length: impl FnOnce(u64) -> u64) -> TempDir {
    resized(sample(), file, kind, length)
}

fn resized(folder: TempDir, file: &str, kind: SectionKind, length: impl FnOnce(u64) -> u64) -> TempDir {
    let mut bytes = std::fs::read(folder.path().join(file)).expect("read");
    let (entry, _, old) = section(&bytes, kind);
    bytes[entry + 16..entry + 24].copy_from_slice(&length(old as u64).to_le_bytes());
    seal(folder.path(), file, &mut bytes);
    folder
}

fn set(bytes: &mut [u8], at: usize, number: u64) {
    bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
}

fn refused<T: std::fmt::Debug>(outcome: knnlm::Result<T>, words: &str) {
    let error = outcome.expect_err("does not fit");
    assert!(
        matches!(&error, Error::Format { .. }) && error.to_string().contains(words),
        "{error} should say {words:?}"
    );
}

fn search(path: &Path, request: &Request) -> knnlm::Result<Neighbors> {
    Datastore::open(path)?.search(&key(DIM, 3), request, Some(1), &AtomicBool::new(false))
}

/// The store opens, and `verify` finds one thing.
fn found(folder: &TempDir) -> Problem {
    let problems = Datastore::open(folder.path()).expect("opens").verify().expect("verify");
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.into_iter().next().expect("one")
}

#[test]
fn the_sample_is_sound_and_so_is_a_change_that_changes_nothing() {
    for (file, kind) in [
        (DATA, SectionKind::Documents),
        (CODEBOOK, SectionKind::Words),
        (LISTS, SectionKind::ListIds),
        (DELETED, SectionKind::Deleted),
    ] {
        let folder = with_section(file, kind, |_| {});
        assert_eq!(Datastore::verify_path(folder.path()).expect("verify"), vec![]);
        assert_eq!(search(folder.path(), &Request { k: 1, ..Request::default() }).expect("search").ids, [3]);
    }
}

#[test]
fn a_list_that_holds_an_entry_twice() {
    let folder = with_section(LISTS, SectionKind::ListIds, |ids| ids.copy_within(0..4, 4));
    let problem = found(&folder);
    assert_eq!((problem.file.as_str(), problem.section.as_deref()), (LISTS, Some("ListIds")));
    assert!(problem.message.contains("expected each of 40 entries once"), "{problem}");
    assert_eq!(problem.to_string(), format!("{LISTS}, section ListIds: {}", problem.message));
}

#[test]
fn lists_that_do_not_fit_the_codebook_or_the_manifest() {
    let folder = with_section(LISTS, SectionKind::ListOffsets, |offsets| set(offsets, 0, 1));
    let problem = found(&folder);
    assert!(problem.file.ends_with(".json") && problem.message.contains("list offsets"), "{problem}");
    refused(search(folder.path(), &Request { k: 1, ..Request::default() }), "list offsets");
    let folder = sample();
    change_manifest(folder.path(), |body| body["lists"][0]["entries"] = 59.into());
    refused(search(folder.path(), &Request { k: 1, ..Request::default() }), "entries in lists: expected at most 59");
}

#[test]
fn second_level_codes_of_fewer_entries() {
    // From dimension 97 on there is a second level.
    let folder = resized(sample_of(97), LISTS, SectionKind::SecondCodes, |length| length - 4);
    let store = Datastore::open(folder.path()).expect("open");
    let request = Request { k: 1, ..Request::default() };
    let outcome = store.search(&key(97, 3), &request, Some(1), &AtomicBool::new(false));
    refused(outcome, "second codes: expected 60 records of 72 bytes, found 4316 bytes");
}

#[test]
fn codebook_parameters_out_of_range() {
    let replace = |from: &str, to: &str| {
        let folder = with_section(CODEBOOK, SectionKind::Parameters, |json| {
            let at = json.windows(from.len()).position(|window| window == from.as_bytes()).expect(from);
            json[at..at + to.len()].copy_from_slice(to.as_bytes());
        });
        search(folder.path(), &Request { k: 1, ..Request::default() })
    };
    refused(replace("\"bits\":4", "\"bits\":5"), "codebook code");
    refused(replace("\"default_nprobe\":4", "\"default_nprobe\":0"), "codebook parameters");
    refused(replace("\"default_nprobe\":4", "\"default_nprobe\":5"), "codebook parameters");
    refused(replace("\"d\":4", "\"d\":5"), "codebook keys");
    refused(replace("\"nlist\":4", "\"nlist\":x"), "not the expected JSON");
}

#[test]
fn documents_that_do_not_follow_each_other() {
    // Records of 40 bytes: first id, id after the last, text, lengths, flags.
    let changed = |at: usize, number: u64| {
        let problem = found(&with_section(DATA, SectionKind::Documents, |records| set(records, at, number)));
        assert_eq!((problem.file.as_str(), problem.section.as_deref()), (DATA, Some("Documents")));
        problem.message
    };
    assert_eq!(changed(40, 21), "record 1: expected start 20, found 21");
    assert_eq!(changed(88, 59), "expected documents of 60 entries up to id 60, found 59 up to 59");
    assert!(changed(8, u64::MAX).contains("record 1: expected start"));
    assert!(changed(16, u64::MAX).contains("expected text within"));
}

#[test]
fn documents_that_are_not_found_by_their_names() {
    let folder = with_section(DATA, SectionKind::DocumentNames, |names| names.copy_within(0..4, 4));
    assert_eq!(found(&folder).message, "record 1: expected to find it by its name \"second\"");
    let folder = with_section(DATA, SectionKind::DocumentText, |text| text[0] = 0xff);
    assert!(found(&folder).message.contains("UTF-8"));
    refused(Datastore::open(folder.path()).expect("opens").document(0), "UTF-8");
    let folder = with_length(DATA, SectionKind::DocumentNames, |length| length + 4);
    refused(Datastore::open(folder.path()), "at most one name per document");
}

#[test]
fn deleted_documents_that_are_not_as_the_manifest_says() {
    let folder = sample();
    change_manifest(folder.path(), |body| body["deleted"]["documents"] = 2.into());
    refused(Datastore::open(folder.path()), "deleted documents: expected 2, found 1");
    let folder = sample();
    change_manifest(folder.path(), |body| body["deleted"]["documents"] = 4.into());
    refused(Datastore::open(folder.path()), "at most 3 deleted documents");
    for (at, number) in [(0, 3), (8, 41), (16, 61), (16, 19)] {
        let folder = with_section(DELETED, SectionKind::Deleted, |tombstones| set(tombstones, at, number));
        refused(Datastore::open(folder.path()), "deleted documents: expected records from 0 to 3 and ids from 0 to 60");
    }
}

#[test]
fn section_tables_that_end_elsewhere() {
    let folder = with_length(DATA, SectionKind::Checksums, |_| 0);
    refused(Datastore::open(folder.path()), "expected the section table at byte");
    let folder = with_length(DATA, SectionKind::Checksums, |length| length - 4);
    refused(Datastore::open(folder.path()), "bytes of checksums as last section");
}

#[test]
fn manifests_that_no_writer_writes() {
    let folder = sample();
    change_manifest(folder.path(), |body| body["codebook"] = serde_json::Value::Null);
    refused(Datastore::open(folder.path()), "expected a codebook beside lists");
    let folder = sample();
    let path = manifest(folder.path());
    let text = std::fs::read_to_string(&path).expect("read");
    std::fs::write(&path, text.replacen(":\"manifest\"", ": \"manifest\"", 1)).expect("write");
    refused(Datastore::open(folder.path()), "not as a writer writes it");
}

#[test]
fn a_manifest_that_is_damaged_while_the_store_is_open() {
    let folder = sample();
    let store = Datastore::open(folder.path()).expect("open");
    let path = manifest(folder.path());
    let text = std::fs::read_to_string(&path).expect("read");
    std::fs::write(&path, text.replacen("first_id", "first_ix", 1)).expect("write");
    let problems = store.verify().expect("verify");
    let name = path.file_name().expect("name").to_str().expect("UTF-8");
    assert!(problems.len() == 1 && problems[0].file == name && problems[0].section.is_none(), "{problems:?}");
    assert!(problems[0].to_string().starts_with(&format!("{name}: ")), "{}", problems[0]);
    assert_eq!(
        store
            .search(&key(DIM, 3), &Request { k: 1, ..Request::default() }, Some(1), &AtomicBool::new(false))
            .expect("the open store")
            .ids,
        [3]
    );
}

#[test]
fn what_was_measured_bounds_the_recall_that_can_be_asked() {
    // As in a store of more entries, a search does not scan all lists when told nothing.
    let folder = with_section(CODEBOOK, SectionKind::Parameters, |json| {
        let from = b"\"default_nprobe\":4";
        let at = json.windows(from.len()).position(|window| window == from).expect("nprobe");
        json[at + from.len() - 1] = b'1';
    });
    let ask = |recall| search(folder.path(), &Request { k: 5, recall, ..Request::default() });
    ask(Some(0.3)).expect("measured when it was built");
    change_manifest(folder.path(), |body| body["calibration"] = serde_json::Value::Null);
    assert!(matches!(ask(Some(0.5)), Err(Error::State { why: Why::NotCalibrated, .. })));
    assert_eq!(ask(None).expect("not measured").ids[0], 3);
    change_manifest(folder.path(), |body| {
        let row = |k: u64, stop: f64, recall: f64| serde_json::json!({"k": k, "stop": stop, "depth": 1.0, "recall": recall, "scanned": 20.0});
        let rows = [row(8, 1.0, 0.7), row(8, 2.0, 0.9), row(16, 1.0, 0.8)];
        body["calibration"] = serde_json::json!({"queries": 9, "rows": rows});
    });
    for recall in [Some(0.6), Some(0.85), None] {
        assert_eq!(ask(recall).expect("measured").ids[0], 3);
    }
    assert!(matches!(ask(Some(0.99)), Err(Error::Argument(m)) if m.contains("at most 0.895")));
    let index = Datastore::open(folder.path()).expect("open").info().expect("info").index.expect("an index");
    let best: Vec<_> = index.calibration.iter().map(|c| (c.k, (1000.0 * c.best_recall).round(), c.queries)).collect();
    assert_eq!(best, [(8, 895.0, 9), (16, 789.0, 9)], "less the margin");
}
