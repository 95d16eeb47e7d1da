//! Whatever the disk refuses, at whatever moment: the store opens at a whole generation and nothing committed is lost.

use crate::failing_disk::{FailingDisk, Failure};
use crate::store_support::{add, assert_entries, keeping, options};
use knnlm::Error;
use knnlm::store::{Datastore, DocumentKey, KeyType, Options};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

/// Number of entries after each step that publishes; stops at the first error.
fn run(path: &Path, options: &Options, disk: &FailingDisk, reached: &mut Vec<u64>) -> knnlm::Result<()> {
    let store = Datastore::create_through(path, options, Arc::new(disk.clone()))?;
    reached.push(0);
    add(&store, 40, Some("a"), Some("{}"))?;
    add(&store, 10, Some("b"), None)?;
    reached.push(50);
    store.commit()?;
    add(&store, 20, Some("b"), None)?;
    reached.push(70);
    store.commit()?;
    store.set_attributes("[1]")?;
    add(&store, 5, None, None)?;
    reached.push(75);
    store.commit()
}

#[test]
fn the_store_opens_at_a_commit_whichever_operation_fails() {
    for (options, failure, once) in [
        (options(40), Failure::Full, false),
        (keeping(40, KeyType::Float16), Failure::Torn, false),
        (keeping(40, KeyType::Float32), Failure::Denied, true),
        (options(40), Failure::ReadOnly, false),
    ] {
        let mut failed = 0;
        for operation in 0.. {
            let folder = tempdir().expect("folder");
            let disk = FailingDisk::new(operation, failure, once);
            let mut reached = Vec::new();
            let outcome = run(folder.path(), &options, &disk, &mut reached);
            if !disk.has_failed() {
                outcome.expect("no operation failed");
                break;
            }
            failed += 1;
            // Removing what is no longer needed may fail without an error: the next writer does it.
            if let Err(error) = outcome {
                assert!(matches!(error, Error::Io { .. }), "operation {operation}: {error}");
            }
            check(folder.path(), &options, &reached, operation);
        }
        assert!(failed > 40, "only {failed} operations were seen");
    }
}

/// The store has the last or, if its publication was under way, the next generation, and can be written again.
fn check(path: &Path, options: &Options, reached: &[u64], operation: u64) {
    let store = match Datastore::open(path) {
        Ok(store) => store,
        Err(error) => {
            // Only the very first generation can be missing; creating it again must then work.
            assert!(reached.is_empty(), "operation {operation}: {error}");
            Datastore::create(path, options).expect("create again")
        }
    };
    let n = store.len();
    let allowed = &reached[reached.len().saturating_sub(2)..];
    assert!(
        allowed.contains(&n) || n == 0 && reached.len() <= 1,
        "operation {operation}: {n} entries, expected one of {allowed:?}"
    );
    assert_entries(&store, n);
    assert_eq!(store.verify().expect("verify"), vec![], "operation {operation}");
    add(&store, 3, Some("after"), None).expect("add after the failure");
    store.commit().expect("commit after the failure");
    assert_entries(&store, n + 3);
    let left: Vec<String> = std::fs::read_dir(path)
        .expect("list")
        .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".tmp"))
        .collect();
    assert!(left.is_empty(), "operation {operation}: {left:?}");
}

#[test]
fn a_failed_add_is_not_forgotten_until_discarded() {
    let folder = tempdir().expect("folder");
    Datastore::create(folder.path(), &options(300)).expect("create");
    // Lock, create and header pass; 2,000 keys of 1,200 bytes need the next write.
    let disk = FailingDisk::new(4, Failure::Full, true);
    let store = Datastore::open_through(folder.path(), Arc::new(disk.clone())).expect("open");
    let error = add(&store, 2_000, Some("a"), None).expect_err("full");
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull), "{error}");
    assert!(disk.has_failed());
    for refused in [add(&store, 1, Some("b"), None).map(drop), store.commit(), store.set_attributes("{}")] {
        let error = refused.expect_err("not silently lost");
        assert!(matches!(&error, Error::State { message: m, .. } if m.contains("discard")), "{error}");
    }
    store.discard();
    add(&store, 2_000, Some("a"), None).expect("add again");
    store.commit().expect("commit");
    assert_entries(&store, 2_000);
}

#[test]
fn compact_tells_of_deleted_text_that_it_could_not_remove() {
    let (mut told, mut operation) = (0, 0);
    loop {
        let folder = tempdir().expect("folder");
        let disk = FailingDisk::new(1_000_000, Failure::Denied, false);
        let store = Datastore::create_through(folder.path(), &options(6), Arc::new(disk.clone())).expect("create");
        for name in ["stays", "goes"] {
            add(&store, 20, Some(name), None).expect("add");
            store.commit().expect("commit");
        }
        store.delete(&[DocumentKey::Name("goes".into())]).expect("delete");
        let compact = || store.compact(&|_, _, _| {}, &AtomicBool::new(false));
        disk.fail_after(operation);
        let outcome = compact();
        let left = segments(folder.path());
        if !disk.has_failed() {
            outcome.expect("no operation failed");
            break;
        }
        assert!(outcome.is_err() || left == 1, "operation {operation}: {left} segments, and nobody was told");
        if let Err(error) = outcome
            && left > 1
            && store.generation() == 5
        {
            let text = error.to_string();
            assert!(text.contains("compact again") || text.contains("look whether the change was made"), "{text}");
            assert!(!text.contains("nothing was changed"), "{text}");
            told += 1;
        }
        disk.fail_after(1_000_000);
        compact().expect("again");
        assert_eq!(segments(folder.path()), 1, "operation {operation}");
        assert_entries(&store, 20);
        operation += 1;
    }
    assert!(told > 0, "no removal has failed");
}

fn segments(path: &Path) -> usize {
    let names = std::fs::read_dir(path).expect("list").map(|e| e.expect("entry").file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".seg")).count()
}
