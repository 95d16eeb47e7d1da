//! What does not belong into a store's folder: links, pipes, devices, numbers that no writer reaches, needs of a later version.

use crate::forge::{change_manifest, manifest};
use crate::store_support::{add, options};
use knnlm::store::{BuildOptions, Datastore, DocumentKey, Options};
use knnlm::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use tempfile::{TempDir, tempdir};

static NEVER: AtomicBool = AtomicBool::new(false);

fn sample() -> TempDir {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(4)).expect("create");
    add(&store, 30, Some("a"), None).expect("add");
    add(&store, 20, Some("b"), None).expect("add");
    store.build(&BuildOptions::default(), &|_, _, _| (), &NEVER).expect("build");
    store.delete(&[DocumentKey::Name("a".into())]).expect("delete");
    folder
}

fn segments(path: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(path).expect("list").map(|e| e.expect("entry").path());
    all.filter(|path| path.extension().is_some_and(|ending| ending == "seg")).collect()
}

fn refused(path: &Path, words: &str) {
    for outcome in [Datastore::open(path).map(drop), Datastore::verify_path(path).and_then(none)] {
        let error = outcome.expect_err("refused");
        assert!(matches!(&error, Error::Format { .. }) && error.to_string().contains(words), "{error}: {words}");
    }
}

/// `verify` tells of a file that cannot be opened as a problem.
fn none(problems: Vec<knnlm::store::Problem>) -> Result<()> {
    let Some(problem) = problems.first() else { return Ok(()) };
    Err(Error::Format { path: problem.file.clone().into(), message: problem.message.clone() })
}

#[cfg(unix)]
#[test]
fn links_pipes_and_devices_are_refused_and_not_waited_for() {
    use std::os::unix::fs::symlink;
    let sound = sample();
    let mut files = segments(sound.path());
    assert_eq!(files.len(), 4, "data, codebook, lists, deleted");
    files.push(manifest(sound.path()));
    for file in files {
        let whole = std::fs::read(&file).expect("read");
        let elsewhere = sound.path().join("elsewhere");
        std::fs::write(&elsewhere, &whole).expect("write");
        let pipe =
            |path: &Path| assert!(std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo").success());
        type Maker<'m> = (&'m dyn Fn(&Path), &'static str);
        let makers: [Maker; 4] = [
            (&|path| symlink(&elsewhere, path).expect("link"), "found a link"),
            (&|path| symlink("/dev/zero", path).expect("link"), "found a link"),
            (&pipe, "found a pipe"),
            (&|path| std::fs::create_dir(path).expect("folder"), "found a folder"),
        ];
        for (make, words) in makers {
            std::fs::remove_file(&file).expect("remove");
            make(&file);
            refused(sound.path(), words);
            if file.is_dir() { std::fs::remove_dir(&file) } else { std::fs::remove_file(&file) }.expect("remove");
            std::fs::write(&file, &whole).expect("write");
        }
        std::fs::remove_file(elsewhere).expect("remove");
        assert!(Datastore::open(sound.path()).is_ok());
    }
}

#[cfg(unix)]
#[test]
fn a_lock_that_is_a_link_makes_no_file_elsewhere() {
    let (store, outside) = (sample(), tempdir().expect("folder"));
    let lock = store.path().join("lock");
    std::fs::remove_file(&lock).expect("remove");
    std::os::unix::fs::symlink(outside.path().join("victim"), &lock).expect("link");
    let opened = Datastore::open(store.path()).expect("reading needs no lock");
    let error = opened.set_attributes("{}").expect_err("refused");
    assert!(matches!(&error, Error::Io { path, .. } if *path == lock), "{error}");
    assert!(error.to_string().contains("expected a file, found a link"), "{error}");
    assert!(!outside.path().join("victim").exists());
}

#[cfg(unix)]
#[test]
fn a_link_in_the_place_of_a_file_being_written_is_replaced() {
    let (store, outside) = (sample(), tempdir().expect("folder"));
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "precious").expect("write");
    let opened = Datastore::open(store.path()).expect("open");
    let next = opened.generation() + 1;
    // Put there after the sweep that every writer begins with: the lock is held from the first `add` on.
    add(&opened, 3, Some("c"), None).expect("add");
    let name = format!("manifest-{next:08}.json.tmp");
    std::os::unix::fs::symlink(&victim, store.path().join(name)).expect("link");
    opened.commit().expect("commit");
    assert_eq!(std::fs::read(&victim).expect("read"), b"precious");
    assert!(Datastore::verify_path(store.path()).expect("verify").is_empty());
    assert_eq!(opened.len(), 23);
}

#[test]
fn what_a_later_version_needs_is_refused() {
    let folder = sample();
    let text = std::fs::read_to_string(manifest(folder.path())).expect("read");
    assert!(text.contains("\"needs\": [\n    \"deleted\"\n  ]"), "{text}");
    change_manifest(folder.path(), |body| body["needs"] = serde_json::json!(["deleted", "rows of two kinds"]));
    refused(folder.path(), "found that its readers need \"rows of two kinds\": written by a newer knnlm");
    change_manifest(folder.path(), |body| body["needs"] = serde_json::json!(["deleted"]));
    assert!(Datastore::open(folder.path()).is_ok());
}

#[test]
fn parameters_of_codes_that_nobody_knows_are_refused() {
    let folder = sample();
    let path =
        segments(folder.path()).into_iter().find(|p| p.to_string_lossy().contains("codebook")).expect("codebook");
    let mut bytes = std::fs::read(&path).expect("read");
    // Of the same length, so that everything else stays where it is.
    let at = bytes.windows(10).position(|w| w == b"trained_on").expect("the parameter");
    bytes[at..at + 10].copy_from_slice(b"third_bits");
    crate::forge::sum(&mut bytes);
    crate::forge::seal(folder.path(), &path.file_name().expect("name").to_string_lossy(), &mut bytes);
    let store = Datastore::open(folder.path()).expect("opens: the index is looked at when it is used");
    let request = knnlm::search::Request { k: 1, ..Default::default() };
    let error = store.search(&[0.0; 4], &request, Some(1), &NEVER).expect_err("refused");
    assert!(error.to_string().contains("third_bits"), "{error}");
}

#[test]
fn the_last_generation_is_refused_and_loses_no_write() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(4)).expect("create");
    drop(store);
    let old = manifest(folder.path());
    change_manifest(folder.path(), |body| body["generation"] = u64::MAX.into());
    std::fs::rename(&old, folder.path().join(format!("manifest-{}.json", u64::MAX))).expect("rename");
    let store = Datastore::open(folder.path()).expect("open");
    let forged = |outcome: Result<()>| {
        let error = outcome.expect_err("forged");
        assert!(error.to_string().contains("a file is forged"), "{error}");
    };
    forged(add(&store, 3, None, None).and_then(|_| store.commit()));
    forged(store.set_attributes("{}"));
    forged(Datastore::create(folder.path(), &Options { overwrite: true, ..options(4) }).map(drop));
    assert_eq!(Datastore::open(folder.path()).expect("open").generation(), u64::MAX);
}

#[test]
fn a_folder_with_a_temporary_file_of_somebody_else_is_not_empty() {
    let folder = tempdir().expect("folder");
    std::fs::write(folder.path().join("notes.tmp"), "mine").expect("write");
    let error = Datastore::create(folder.path(), &options(4)).expect_err("not empty");
    assert!(error.to_string().contains("notes.tmp"), "{error}");
    std::fs::rename(folder.path().join("notes.tmp"), folder.path().join("values.tmp")).expect("rename");
    Datastore::create(folder.path(), &options(4)).expect("what a killed writer left");
}

#[test]
fn verify_looks_at_what_no_checksum_tells() {
    let seal = |folder: &Path, name: &str, change: &dyn Fn(&mut [u8])| {
        let mut bytes = std::fs::read(folder.join(name)).expect("read");
        change(&mut bytes);
        crate::forge::sum(&mut bytes);
        crate::forge::seal(folder, name, &mut bytes);
        Datastore::verify_path(folder).expect("verify")
    };
    type Edit = fn(&mut [u8]);
    let records = |bytes: &[u8]| {
        let (start, count) = crate::forge::table(bytes);
        let entry = (0..count).map(|i| start + 48 * i).find(|&e| crate::forge::u32_at(bytes, e) == 3);
        crate::forge::u64_at(bytes, entry.expect("documents") + 8) as usize
    };
    let edits: [(Edit, &str); 4] = [
        (|bytes| bytes[30] = 1, "reserved bytes"),
        (|bytes| bytes[64..68].fill(255), "means a missing value"),
        (|bytes| bytes[64..68].copy_from_slice(&40_001u32.to_le_bytes()), "at most max_value = 40000"),
        (|_| (), ""),
    ];
    for (edit, words) in edits {
        let folder = tempdir().expect("folder");
        let store =
            Datastore::create(folder.path(), &Options { max_value: Some(40_000), ..options(4) }).expect("create");
        let keys: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let values = [1, 2, 3, 4, 5];
        store
            .add(knnlm::keys::KeyRows::F32(&keys), knnlm::store::ValueRows::U32(&values), Some("a"), None)
            .expect("add");
        store.build(&BuildOptions::default(), &|_, _, _| (), &NEVER).expect("build");
        let problems = seal(folder.path(), "data-00000003.seg", &edit);
        assert_eq!(problems.is_empty(), words.is_empty(), "{problems:?}");
        assert!(problems.iter().all(|problem| problem.message.contains(words)), "{problems:?}");
    }
    for at in [32, 36] {
        let folder = sample();
        let edit = |bytes: &mut [u8]| {
            let record = records(bytes);
            bytes[record + at + 1] = 1;
        };
        let problems = seal(folder.path(), "data-00000003.seg", &edit);
        assert!(problems.iter().any(|problem| problem.message.contains("expected no flag but")), "{problems:?}");
    }
}
