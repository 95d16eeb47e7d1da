//! Damage in the codes of a store that has no keys: which entries it touches.

use crate::forge::u64_at;
use crate::lists_file::section;
use crate::store_support::{add, keeping};
use knnlm::index::Params;
use knnlm::sections::SectionKind;
use knnlm::store::{BuildOptions, Datastore, KeyType};
use std::sync::atomic::AtomicBool;
use tempfile::tempdir;

/// Codes lie in blocks of 16 that belong to one list each: which entries they are of is told in list order.
#[test]
fn verify_names_entries_of_codes() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &keeping(1024, KeyType::Float16)).expect("create");
    add(&store, 9000, Some("a"), None).expect("add");
    let params = Params { nlist: Some(24), ..Params::default() };
    let options = BuildOptions { params, retrain: false, threads: Some(1) };
    store.build(&options, &|_, _, _| {}, &AtomicBool::new(false)).expect("build");
    let name = store.snapshot().manifest.lists[0].name.file.clone();
    let bytes = std::fs::read(folder.path().join(&name)).expect("read");
    let offsets: Vec<u64> =
        section(&bytes, SectionKind::ListOffsets).expect("offsets").chunks_exact(8).map(|x| u64_at(x, 0)).collect();
    // Place of every lane of every block, none for those that only fill up.
    let lanes: Vec<Option<u64>> = offsets
        .windows(2)
        .flat_map(|list| {
            (list[0]..list[0] + (list[1] - list[0]).next_multiple_of(16)).map(|p| (p < list[1]).then_some(p))
        })
        .collect();
    for kind in [SectionKind::Codes, SectionKind::SecondCodes] {
        let span = section(&bytes, kind).expect("there");
        assert!(span.len() > 1 << 20, "{kind:?}: several checksums, else every entry is named: {}", span.len());
        let mut damaged = bytes.clone();
        damaged[span.as_ptr() as usize - bytes.as_ptr() as usize + (1 << 20) + 77] ^= 1;
        std::fs::remove_file(folder.path().join(&name)).expect("remove");
        std::fs::write(folder.path().join(&name), damaged).expect("write");
        let problems = Datastore::verify_path(folder.path()).expect("verify");
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!((&problems[0].file, problems[0].section.clone()), (&name, Some(format!("{kind:?}"))));
        let second_mib = 1 << 20..span.len().min(2 << 20);
        let touched: Vec<u64> = if let SectionKind::Codes = kind {
            let block = span.len() / (lanes.len() / 16);
            let blocks = second_mib.start / block..second_mib.end.div_ceil(block);
            lanes[16 * blocks.start..16 * blocks.end].iter().flatten().copied().collect()
        } else {
            let record = span.len() / 9000;
            (second_mib.start / record..second_mib.end.div_ceil(record)).map(|place| place as u64).collect()
        };
        let expected = touched[0]..touched[touched.len() - 1] + 1;
        assert!(expected.end - expected.start < 9000);
        assert_eq!(problems[0].entries, Some(expected), "{kind:?}");
    }
}
