//! One test per way in which a file can be wrong. Opening and searching never panic, verify finds every flipped bit.

use crate::forge::{change_manifest, seal, sum, table, u32_at, u64_at, write_manifest};
use crate::store_support::{add, keeping};
use knnlm::Error;
use knnlm::search::Request;
use knnlm::store::{Datastore, KeyType};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use tempfile::{TempDir, tempdir};

/// A store with two data segments, a continued document and metadata.
fn sample() -> TempDir {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &keeping(3, KeyType::Float16)).expect("create");
    add(&store, 9, Some("first"), Some("{\"a\": 1}")).expect("add");
    add(&store, 4, Some("second"), None).expect("add");
    store.commit().expect("commit");
    add(&store, 2, Some("second"), None).expect("add");
    add(&store, 3, None, None).expect("add");
    store.commit().expect("commit");
    folder
}

fn data(folder: &TempDir) -> PathBuf {
    folder.path().join("data-00000002.seg")
}

fn manifest(folder: &TempDir) -> PathBuf {
    folder.path().join("manifest-00000003.json")
}

/// Opening fails with a `Format` error that says all `words`.
fn refused(path: &Path, words: &[&str]) {
    let error = Datastore::open(path).expect_err("damaged");
    assert!(matches!(error, Error::Format { .. }), "{error:?}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} should say {word:?}");
    }
}

/// Changes the data segment with all checksums right, and expects opening to refuse it.
fn refused_data(change: impl FnOnce(&mut Vec<u8>), words: &[&str]) {
    let folder = sample();
    let mut bytes = std::fs::read(data(&folder)).expect("read");
    change(&mut bytes);
    seal(folder.path(), "data-00000002.seg", &mut bytes);
    refused(folder.path(), words);
}

fn refused_manifest(change: impl FnOnce(&mut serde_json::Value), words: &[&str]) {
    let folder = sample();
    change_manifest(folder.path(), change);
    refused(folder.path(), words);
}

#[test]
fn truncated_at_every_byte() {
    let folder = sample();
    for file in [data(&folder), manifest(&folder)] {
        let whole = std::fs::read(&file).expect("read");
        for length in 0..whole.len() {
            std::fs::write(&file, &whole[..length]).expect("write");
            refused(folder.path(), &[file.file_name().expect("name").to_str().expect("UTF-8")]);
        }
        std::fs::write(&file, &whole).expect("write");
    }
    Datastore::open(folder.path()).expect("whole again");
}

#[test]
fn longer_than_named() {
    let folder = sample();
    let mut bytes = std::fs::read(data(&folder)).expect("read");
    bytes.extend([0; 64]);
    std::fs::write(data(&folder), bytes).expect("write");
    refused(folder.path(), &["data-00000002.seg", "expected", "bytes"]);
}

#[test]
fn every_flipped_bit_is_found_and_none_panics() {
    let folder = sample();
    let names: Vec<PathBuf> =
        std::fs::read_dir(folder.path()).expect("list").map(|e| e.expect("entry").path()).collect();
    let mut files = 0;
    for file in names.into_iter().filter(|f| f.file_name().is_some_and(|n| n != "lock")) {
        files += 1;
        let whole = std::fs::read(&file).expect("read");
        for byte in 0..whole.len() {
            // All bits of some bytes, one of the others.
            let bits = if byte % 31 == 0 { 0..8 } else { byte % 8..byte % 8 + 1 };
            for bit in bits {
                let mut bytes = whole.clone();
                bytes[byte] ^= 1 << bit;
                std::fs::write(&file, bytes).expect("write");
                let found = Datastore::verify_path(folder.path());
                assert!(
                    !matches!(&found, Ok(p) if p.is_empty()),
                    "bit {bit} of byte {byte} of {} is not found",
                    file.display()
                );
                if let Ok(store) = Datastore::open(folder.path()) {
                    let _ = (store.info(), store.keys(0..18), store.values(0..18), store.get(&[0, 10, 17]));
                    let _ = (0..store.documents()).map(|i| store.document(i)).collect::<Vec<_>>();
                    let _ = store.find_document("second");
                    let request = Request { k: 20, ..Request::default() };
                    let _ = store.search(&[0.5; 3], &request, Some(1), &AtomicBool::new(false));
                }
            }
        }
        std::fs::write(&file, &whole).expect("write");
    }
    assert_eq!(files, 3);
    assert_eq!(Datastore::verify_path(folder.path()).expect("whole again"), vec![]);
}

#[test]
fn verify_names_file_section_and_entries() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &keeping(1024, KeyType::Float32)).expect("create");
    add(&store, 1000, Some("a"), None).expect("add");
    store.commit().expect("commit");
    let mut bytes = std::fs::read(data(&folder)).expect("read");
    bytes[64 + 700 * 4096] ^= 1; // key of entry 700, in the third MiB
    std::fs::write(data(&folder), bytes).expect("write");
    let problems = Datastore::open(folder.path()).expect("opens").verify().expect("verify");
    assert_eq!(problems.len(), 1);
    assert_eq!((&problems[0].file[..], problems[0].section.as_deref()), ("data-00000002.seg", Some("Keys")));
    assert_eq!(problems[0].entries, Some(512..768));
    assert!(problems[0].to_string().contains("entries 512 to 767"), "{}", problems[0]);
}

#[test]
fn wrong_magic() {
    refused_data(|b| b[..8].copy_from_slice(b"\x89KNNLM\n\n"), &["magic", "not a segment"]);
}

#[test]
fn wrong_end_magic() {
    refused_data(|b| *b.last_mut().expect("byte") = 0, &["end magic"]);
}

#[test]
fn newer_segment_version() {
    refused_data(|b| b[8] = 2, &["expected format version 1", "2.2", "newer", "upgrade"]);
}

#[test]
fn newer_minor_version_with_an_unknown_section_opens() {
    let folder = sample();
    let mut bytes = std::fs::read(data(&folder)).expect("read");
    bytes[10] = 7;
    seal(folder.path(), "data-00000002.seg", &mut bytes);
    Datastore::open(folder.path()).expect("minor versions are compatible");
}

#[test]
fn newer_manifest_version() {
    let folder = sample();
    write_manifest(folder.path(), 2, "{}");
    refused(folder.path(), &["manifest-00000003.json", "2.0", "newer"]);
}

#[test]
fn wrong_segment_kind() {
    refused_data(|b| b[12] = 3, &["segment kind 1"]);
}

#[test]
fn section_beyond_the_file() {
    refused_data(
        |b| {
            let entry = table(b).0;
            b[entry + 16..entry + 24].copy_from_slice(&(1u64 << 40).to_le_bytes());
        },
        &["expected to end by byte"],
    );
}

#[test]
fn section_length_that_overflows() {
    refused_data(
        |b| {
            let entry = table(b).0;
            b[entry + 16..entry + 24].copy_from_slice(&u64::MAX.to_le_bytes());
        },
        &["expected to end by byte"],
    );
}

#[test]
fn overlapping_sections() {
    refused_data(
        |b| {
            let entry = table(b).0 + 48;
            b[entry + 8..entry + 16].copy_from_slice(&64u64.to_le_bytes());
        },
        &["without holes or overlaps", "found at byte 64"],
    );
}

#[test]
fn the_same_section_twice() {
    refused_data(
        |b| {
            let entry = table(b).0;
            let first = b[entry];
            b[entry + 48] = first;
        },
        &["found twice"],
    );
}

#[test]
fn unknown_element_type() {
    refused_data(
        |b| {
            let t = table(b).0;
            b[t + 4] = 9
        },
        &["element type", "found 9"],
    );
}

#[test]
fn wrong_element_type() {
    refused_data(
        |b| {
            let t = table(b).0;
            b[t + 4] = 0
        },
        &["section Keys", "F16"],
    );
}

#[test]
fn a_missing_section() {
    refused_data(
        |b| {
            let t = table(b).0;
            b[t + 48] = 99
        },
        &["expected a section Values"],
    );
}

#[test]
fn section_count_that_overflows() {
    refused_data(
        |b| {
            let footer = b.len() - 64;
            b[footer + 8..footer + 12].copy_from_slice(&u32::MAX.to_le_bytes());
        },
        &["section table"],
    );
}

#[test]
fn table_offset_beyond_the_file() {
    for offset in [u64::MAX, 1 << 50, 0, 63] {
        refused_data(
            |b| {
                let footer = b.len() - 64;
                b[footer..footer + 8].copy_from_slice(&offset.to_le_bytes());
            },
            &["section table"],
        );
    }
}

#[test]
fn checksum_index_that_is_wrong() {
    refused_data(
        |b| {
            let t = table(b).0;
            b[t + 24] = 200
        },
        &["checksums"],
    );
}

#[test]
fn a_file_of_another_store() {
    let (folder, other) = (sample(), tempdir().expect("folder"));
    let store = Datastore::create(other.path(), &keeping(3, KeyType::Float16)).expect("create");
    let keys = [0.5; 13 * 3];
    store
        .add(
            knnlm::keys::KeyRows::F32(&keys[..27]),
            knnlm::store::ValueRows::U32(&[0; 9]),
            Some("first"),
            Some("{\"a\": 2}"),
        )
        .expect("add");
    store
        .add(knnlm::keys::KeyRows::F32(&keys[27..]), knnlm::store::ValueRows::U32(&[0; 4]), Some("second"), None)
        .expect("add");
    store.commit().expect("commit");
    std::fs::copy(data(&other), data(&folder)).expect("copy");
    refused(folder.path(), &["data-00000002.seg", "another store or generation"]);
}

#[test]
fn a_missing_file() {
    let folder = sample();
    std::fs::remove_file(data(&folder)).expect("remove");
    refused(folder.path(), &["missing", "data-00000002.seg"]);
    let problems = Datastore::verify_path(folder.path()).expect("verify");
    assert!(problems.iter().any(|p| p.file == "data-00000002.seg"), "{problems:?}");
}

#[test]
fn a_renamed_manifest() {
    let folder = sample();
    std::fs::rename(manifest(&folder), folder.path().join("manifest-00000009.json")).expect("rename");
    refused(folder.path(), &["expected generation 9, found 3"]);
}

#[test]
fn manifest_numbers_that_do_not_fit() {
    refused_manifest(|m| m["dim"] = 0.into(), &["dimension"]);
    refused_manifest(|m| m["dim"] = 1_000_000.into(), &["dimension"]);
    refused_manifest(|m| m["dim"] = 4.into(), &["section Keys"]);
    refused_manifest(|m| m["entries"] = 17.into(), &["expected 17 entries"]);
    refused_manifest(|m| m["values"] = "uint64".into(), &["section Values"]);
    refused_manifest(|m| m["metric"] = "cosine".into(), &["cosine"]);
    refused_manifest(|m| m["data"][1]["first_id"] = 14.into(), &["expected ids from 13"]);
    refused_manifest(|m| m["data"][1]["first_id"] = 12.into(), &["expected ids from 13"]);
    refused_manifest(|m| m["data"][0]["entries"] = u64::MAX.into(), &["expected at most 4294967279 entries"]);
    refused_manifest(|m| m["data"][0]["documents"] = 5.into(), &["section Documents"]);
    refused_manifest(|m| m["data"][0]["documents"] = u64::MAX.into(), &["section Documents"]);
    refused_manifest(|m| m["data"][0]["continues"] = true.into(), &["continues"]);
    refused_manifest(|m| m["data"][0]["keys"] = serde_json::Value::Null, &["raw keys"]);
    let fit =
        |trained: f64, added: f64| serde_json::json!({"trained_error": trained, "added_error": added, "added": 1});
    for (trained, added) in [(1e39, 1.0), (1.0, 1e39), (-1.0, 1.0), (1.0, -1e-3)] {
        refused_manifest(|m| m["fit"] = fit(trained, added), &["errors that are finite"]);
    }
    for name in ["stop", "depth", "recall", "scanned"] {
        let mut row = serde_json::json!({"k": 8, "stop": 1.0, "depth": 1.0, "recall": 0.5, "scanned": 20.0});
        row[name] = 1e39.into();
        let rows = serde_json::json!({"queries": 9, "rows": [row]});
        refused_manifest(|m| m["calibration"] = rows, &["calibration of finite"]);
    }
    refused_manifest(|m| m["data"].as_array_mut().expect("list").truncate(1), &["expected 18 entries"]);
    refused_manifest(
        |m| {
            m.as_object_mut().expect("object").remove("metric");
        },
        &["metric"],
    );
}

#[test]
fn manifest_names_that_leave_the_folder() {
    for name in ["../data-00000002.seg", "/etc/passwd", "a\\b.seg", "..seg", ".seg", "data.txt", "", "c:data.seg"] {
        refused_manifest(|m| m["data"][0]["file"] = name.into(), &["expected a name such as \"data-00000001.seg\""]);
    }
}

#[test]
fn document_records_that_point_outside() {
    // Names and metadata are read when asked for: opening is fine, asking is an error, verify says where.
    let folder = sample();
    let whole = std::fs::read(data(&folder)).expect("read");
    let (start, count) = table(&whole);
    let entry = (0..count).map(|i| start + 48 * i).find(|&e| u32_at(&whole, e) == 3).expect("documents");
    let records = u64_at(&whole, entry + 8) as usize;
    for (at, number) in [(16, u64::MAX), (16, 1 << 20), (24, u64::from(u32::MAX)), (0, u64::MAX)] {
        let mut bytes = whole.clone();
        bytes[records + at..records + at + 8].copy_from_slice(&number.to_le_bytes());
        sum(&mut bytes);
        seal(folder.path(), "data-00000002.seg", &mut bytes);
        let store = Datastore::open(folder.path()).expect("opens");
        assert!(matches!(store.document(0), Err(Error::Format { .. })));
        let _ = (store.document_of(&[0, 12]), store.get(&[0, 5]), store.find_document("first"));
        assert!(store.verify().expect("verify").iter().any(|p| p.section.as_deref() == Some("Documents")));
    }
}
