//! Bits flip, and then the store is changed: damage is found before anything gets new checksums. Whatever a change makes of a
//! damaged store, it is refused, or the damage is still found by `verify`, or what is there is what a change of the
//! undamaged store would have given.

use crate::flips::every_kind;
use crate::store_support::{add, keeping, key, options};
use knnlm::index::{CodeChoice, Params};
use knnlm::keys::KeyRows;
use knnlm::search::{Request, Truth};
use knnlm::store::{BuildOptions, Datastore, Document, DocumentKey, KeyType, SegmentKind};
use knnlm::{Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tempfile::{TempDir, tempdir};

static NEVER: AtomicBool = AtomicBool::new(false);
const DIM: usize = 16;

fn build_options(retrain: bool) -> BuildOptions {
    BuildOptions { params: Params::default(), retrain, threads: Some(1) }
}

fn build(store: &Datastore, retrain: bool) -> Result<()> {
    store.build(&build_options(retrain), &|_, _, _| (), &NEVER)
}

/// Codes only, several lists segments, ids that are gone, entries in no list, a document that is deleted.
fn codes_only(path: &Path) {
    let store = Datastore::create(path, &options(DIM)).expect("create");
    for i in 0..6 {
        add(&store, 30, Some(&format!("document {i}")), Some("{\"a\": 1}")).expect("add");
    }
    let params = Params { nlist: Some(4), ..Params::default() };
    store.build(&BuildOptions { params, ..build_options(false) }, &|_, _, _| (), &NEVER).expect("build");
    store.delete(&[DocumentKey::Name("document 1".into())]).expect("delete");
    store.compact(&|_, _, _| (), &NEVER).expect("compact");
    add(&store, 12, Some("document 6"), None).expect("add");
    build(&store, false).expect("build");
    add(&store, 9, Some("document 7"), None).expect("add");
    store.delete(&[DocumentKey::Name("document 3".into())]).expect("delete");
}

/// Two levels of codes, entries encoded as they are added: every commit joins lists.
fn encoding(path: &Path) {
    let store = Datastore::create(path, &options(100)).expect("create");
    let sample: Vec<f32> = (0..64).flat_map(|id| key(100, id)).collect();
    let params = Params { nlist: Some(3), code: CodeChoice::Auto, ..Params::default() };
    let options = BuildOptions { params, ..build_options(false) };
    store.train(KeyRows::F32(&sample), &options, &|_, _, _| (), &NEVER).expect("train");
    for (i, n) in [40, 14, 6].into_iter().enumerate() {
        add(&store, n, Some(&format!("document {i}")), Some("{}")).expect("add");
        store.commit().expect("commit");
    }
}

fn two_keys(store: &Datastore) -> Truth {
    let queries: Vec<f32> = [3, 40].iter().flat_map(|&id| key(store.dim(), id)).collect();
    Truth { queries, own: vec![3..4, 40..41], ids: vec![0, 1], k: 1 }
}

type Change = (&'static str, fn(&Datastore) -> Result<()>);

/// Everything that changes a store.
const CHANGES: [Change; 11] = [
    ("add", |store| add(store, 5, Some("new"), Some("{}")).and_then(|_| store.commit())),
    ("extend", |store| {
        let last = store.documents().checked_sub(1).map(|i| store.document(i)).transpose()?;
        add(store, 5, last.and_then(|last| last.name).as_deref(), None).and_then(|_| store.commit())
    }),
    ("build", |store| build(store, false)),
    ("retrain", |store| build(store, true)),
    ("delete", |store| store.delete(&[DocumentKey::Name("document 2".into())]).map(drop)),
    ("supersede", |store| {
        store.supersede(&[DocumentKey::Name("document 2".into())])?;
        add(store, 4, Some("document 2"), None).and_then(|_| store.commit())
    }),
    ("compact", |store| store.compact(&|_, _, _| (), &NEVER)),
    ("attributes", |store| store.set_attributes("{\"a\": 2}")),
    ("calibrate", |store| store.calibrate(&two_keys(store), Some(1), &|_, _, _| (), &NEVER)),
    ("add a part", |store| {
        let folder = tempdir().expect("folder");
        let keys: Vec<f32> = (900..908).flat_map(|id| key(store.dim(), id)).collect();
        let encoded = store.encode_part(KeyRows::F32(&keys), folder.path(), "part", Some(1), &NEVER)?;
        let values = knnlm::store::ValueRows::U32(&[7; 8]);
        store.add_part(folder.path(), encoded, &[(Some("part".into()), None, 8)], values, None)?;
        store.commit()
    }),
    ("retrain from staged codes", |store| {
        let folder = tempdir().expect("folder");
        let documents = (0..store.documents()).map(|i| store.document(i)).collect::<Result<Vec<Document>>>()?;
        let ids: Vec<u64> = documents.iter().flat_map(|d| d.start..d.end).collect();
        let keys: Vec<f32> = ids.iter().flat_map(|&id| key(store.dim(), id)).collect();
        let runs: Vec<(u64, u64)> =
            documents.iter().filter(|d| d.start < d.end).map(|d| (d.start, d.end - d.start)).collect();
        let (held, options) = (store.hold()?, build_options(false));
        let codebook = store.stage_codebook(
            folder.path(),
            "codebook.seg",
            KeyRows::F32(&keys),
            &options,
            &|_, _, _| (),
            &NEVER,
        )?;
        let next = 0..store.next_id();
        let lists = store.stage_lists(
            folder.path(),
            &codebook,
            KeyRows::F32(&keys),
            &runs,
            next,
            "lists.seg",
            Some(1),
            &NEVER,
        )?;
        let staged = knnlm::store::Staged { folder: folder.path(), codebook: &codebook, lists: &[lists] };
        store.reindex(&held, staged, &two_keys(store), Some(1), &|_, _, _| (), &NEVER)
    }),
];

/// What a reader may be told of one document: metadata, values, keys, what codes decode to.
type Content = (Option<String>, String, Vec<f32>);

/// By name and first id.
type Contents = BTreeMap<(Option<String>, u64), Content>;

/// All documents, and the nearest entries of two queries.
fn contents(path: &Path) -> Result<(Contents, Vec<i64>)> {
    let store = Datastore::open(path)?;
    let mut documents = BTreeMap::new();
    let indexed = store.snapshot().manifest.indexed();
    for i in 0..store.documents() {
        let document = store.document(i)?;
        let ids: Vec<i64> = (document.start as i64..document.end as i64).collect();
        let mut keys = store.reconstruct(&ids)?;
        let listed: Vec<u64> = (document.start..document.end).filter(|&id| id < indexed).collect();
        keys.extend(if listed.is_empty() { Vec::new() } else { store.decode(&listed)? });
        let values = format!("{:?}", store.values(document.start..document.end)?);
        documents.insert((document.name, document.start), (document.metadata, values, keys));
    }
    let queries: Vec<f32> = [3, 700].iter().flat_map(|&id| key(store.dim(), id)).collect();
    let request = Request { k: 25, nprobe: Some(usize::MAX), ..Request::default() };
    Ok((documents, store.search(&queries, &request, Some(1), &NEVER)?.ids))
}

fn copy(from: &Path) -> TempDir {
    let to = tempdir().expect("folder");
    for entry in std::fs::read_dir(from).expect("list").map(|e| e.expect("entry")) {
        std::fs::copy(entry.path(), to.path().join(entry.file_name())).expect("copy");
    }
    to
}

/// Byte spans of a store in which bits are flipped: of each file its sections, one by one, and all of it.
fn places(path: &Path) -> Vec<(String, std::ops::Range<usize>)> {
    let store = Datastore::open(path).expect("open");
    let mut places = Vec::new();
    for file in store.info().expect("info").files {
        let mut at = 64;
        for section in &file.sections {
            places.push((file.file.clone(), at..at + section.bytes as usize));
            at = (at + section.bytes as usize).next_multiple_of(64);
        }
        places.push((file.file.clone(), 0..file.bytes as usize));
    }
    places.retain(|(_, span)| !span.is_empty());
    places
}

fn flip(path: &Path, rng: &mut ChaCha8Rng, (file, span): &(String, std::ops::Range<usize>)) -> String {
    let mut bytes = std::fs::read(path.join(file)).expect("read");
    let (at, bit) = (span.start + (rng.next_u64() % span.len() as u64) as usize, rng.next_u32() % 8);
    bytes[at] ^= 1 << bit;
    std::fs::write(path.join(file), bytes).expect("write");
    format!("bit {bit} of byte {at} of {file}")
}

/// Flips in each place, so often; the long form is `KNNLM_FLIPS=40 cargo test --release --test main derived`.
fn rounds() -> usize {
    std::env::var("KNNLM_FLIPS").map_or(1, |n| n.parse().expect("a number"))
}

fn never_sound(make: fn(&Path), seed: u64) {
    let sound = tempdir().expect("folder");
    make(sound.path());
    let places = places(sound.path());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut refused, mut found, mut mended) = (0, 0, 0);
    for (name, change) in CHANGES {
        let control = copy(sound.path());
        let possible = change(&Datastore::open(control.path()).expect("open")).is_ok();
        let control = contents(control.path()).expect("sound");
        for place in places.iter().cycle().take(rounds() * places.len()) {
            let damaged = copy(sound.path());
            let what = flip(damaged.path(), &mut rng, place);
            let Ok(store) = Datastore::open(damaged.path()) else { continue };
            let generation = store.generation();
            let outcome = change(&store);
            drop(store);
            if let Err(error) = &outcome {
                assert!(
                    !possible || matches!(error, Error::Damaged { .. } | Error::Format { .. }),
                    "{name}, {what}: {error}"
                );
                let after = Datastore::open(damaged.path()).map(|store| store.generation());
                assert!(after.is_ok_and(|after| after == generation), "{name}, {what}: not as it was");
                refused += 1;
            }
            if Datastore::verify_path(damaged.path()).expect("verify") != vec![] {
                found += 1;
                continue;
            }
            assert!(contents(damaged.path()).expect("sound") == control, "{name}, {what}: sound, and not what it was");
            mended += 1;
        }
    }
    // Each of the three happens: a flip in what is not copied goes with it.
    assert!(refused > 0 && found > 0 && mended > 0, "{refused} {found} {mended}");
}

#[test]
fn a_change_of_a_damaged_store_never_makes_it_sound_codes_only() {
    never_sound(codes_only, 1);
}

#[test]
fn a_change_of_a_damaged_store_never_makes_it_sound_encoding() {
    never_sound(encoding, 2);
}

#[test]
fn a_change_of_a_damaged_store_never_makes_it_sound_every_kind() {
    never_sound(every_kind, 3);
}

/// What is salvaged is sound, is told of, and is what was there.
fn salvaged(make: fn(&Path), seed: u64) {
    let sound = tempdir().expect("folder");
    make(sound.path());
    let control = contents(sound.path()).expect("sound").0;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (places, mut kept) = (places(sound.path()), 0);
    for place in places.iter().cycle().take(3 * rounds() * places.len()) {
        let damaged = copy(sound.path());
        let what = flip(damaged.path(), &mut rng, place);
        let Ok(store) = Datastore::open(damaged.path()) else { continue };
        let told = store.damaged(&|_, _, _| (), &NEVER);
        let lost = match store.salvage(&|_, _, _| (), &NEVER) {
            Ok(lost) => lost,
            Err(error) => {
                assert!(matches!(&error, Error::Damaged { .. } | Error::Format { .. }), "{what}: {error}");
                assert!(told.is_err() && place.0.starts_with("codebook"), "{what}: {error}");
                continue;
            }
        };
        assert_eq!(told.expect("the same"), lost, "{what}");
        drop(store);
        assert_eq!(Datastore::verify_path(damaged.path()).expect("verify"), vec![], "{what}");
        let left = contents(damaged.path()).expect("sound").0;
        let gone: Vec<_> = control.keys().filter(|name| !left.contains_key(*name)).collect();
        assert!(left.iter().all(|(name, content)| same(&control[name], content)), "{what}: something else than it was");
        for (name, start) in &gone {
            let named = lost.iter().find(|lost| lost.ids.contains(start) || lost.ids.start == *start);
            let named = named.unwrap_or_else(|| panic!("{what}: {name:?} is gone without a word, {lost:?}"));
            assert!(named.name.is_none() || named.name == *name, "{what}: {named:?}");
        }
        assert_eq!(gone.len(), lost.len(), "{what}: {lost:?}");
        kept += usize::from(!left.is_empty() && !gone.is_empty());
    }
    assert!(kept > 0, "never a part");
}

/// Codes that were made anew decode to about the same.
fn same(a: &Content, b: &Content) -> bool {
    (&a.0, &a.1) == (&b.0, &b.1) && a.2.len() == b.2.len() && a.2.iter().zip(&b.2).all(|(a, b)| (a - b).abs() < 1e-3)
}

#[test]
fn what_is_salvaged_is_what_was_there() {
    salvaged(large, 4);
    salvaged(every_kind, 5);
}

/// Sections of several MiB, so that a part of them is damaged.
fn large(path: &Path) {
    let store = Datastore::create(path, &keeping(256, KeyType::Float32)).expect("create");
    for i in 0..40 {
        add(&store, 100, Some(&format!("document {i}")), None).expect("add");
    }
    build(&store, false).expect("build");
}

#[test]
fn a_damaged_value_is_named_dropped_and_nothing_else() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &options(8)).expect("create");
    for i in 0..9 {
        add(&store, 60_000, Some(&format!("document {i}")), None).expect("add");
    }
    build(&store, false).expect("build");
    drop(store);
    let name = SegmentKind::Data.file_name(3);
    let mut bytes = std::fs::read(folder.path().join(&name)).expect("read");
    bytes[64 + 4 * 300_000] ^= 64; // a value of document 5, in the second MiB
    std::fs::write(folder.path().join(&name), bytes).expect("write");

    let store = Datastore::open(folder.path()).expect("open");
    store.delete(&[DocumentKey::Name("document 0".into())]).expect("nothing is copied");
    let error = store.compact(&|_, _, _| (), &NEVER).expect_err("damaged");
    let Error::Damaged { path, section, entries, .. } = &error else { panic!("{error}") };
    assert!(path.ends_with(&name) && section == "Values", "{error}");
    assert_eq!(*entries, Some(262_144..524_288));
    assert!(error.to_string().contains("entries 262144 to 524287"), "{error}");
    assert!(matches!(store.values(299_999..300_001), Err(Error::Damaged { .. })));
    assert!(matches!(store.get(&[300_000]), Err(Error::Damaged { .. })));
    assert!(store.values(0..262_144).is_ok(), "another MiB is sound");

    let lost = store.salvage(&|_, _, _| (), &NEVER).expect("salvage");
    let names: Vec<_> = lost.iter().map(|lost| lost.name.as_deref().expect("named")).collect();
    assert_eq!(names, ["document 4", "document 5", "document 6", "document 7", "document 8"]);
    assert!(lost.iter().all(|lost| lost.damaged == ["Values"]));
    assert_eq!((store.documents(), store.len()), (3, 180_000));
    assert_eq!(store.verify().expect("verify"), vec![]);
    assert_eq!(store.salvage(&|_, _, _| (), &NEVER).expect("nothing"), vec![]);
}

#[test]
fn lists_that_are_damaged_are_not_joined_and_nothing_is_lost_by_it() {
    let folder = tempdir().expect("folder");
    encoding(folder.path());
    let store = Datastore::open(folder.path()).expect("open");
    let joined = store.snapshot().manifest.lists.iter().map(|l| l.name.file.clone()).collect::<Vec<_>>();
    assert_eq!(store.take_notices().len(), 0);
    drop(store);
    let mut bytes = std::fs::read(folder.path().join(&joined[0])).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(folder.path().join(&joined[0]), bytes).expect("write");
    let store = Datastore::open(folder.path()).expect("open");
    add(&store, 70, Some("new"), None).expect("add");
    store.commit().expect("what is added is kept");
    let notices = store.take_notices();
    assert!(notices.len() == 1 && notices[0].to_string().contains(&joined[0]), "{notices:?}");
    assert_eq!(store.take_notices().len(), 0);
    assert!(store.snapshot().manifest.lists.iter().any(|l| l.name.file == joined[0]));
    assert_eq!(store.len(), 130);
    assert!(Datastore::verify_path(folder.path()).expect("verify").iter().all(|problem| problem.file == joined[0]));
}

#[test]
fn damaged_raw_keys_are_read_by_nobody() {
    let folder = tempdir().expect("folder");
    let store = Datastore::create(folder.path(), &keeping(128, KeyType::Float32)).expect("create");
    add(&store, 3_000, Some("long"), None).expect("add");
    store.commit().expect("commit");
    let row: Vec<u8> = store.keys(2_500..2_501).expect("sound").iter().flat_map(|x| x.to_le_bytes()).collect();
    let path = folder.path().join(&store.snapshot().manifest.data[0].name.file);
    drop(store);
    let mut bytes = std::fs::read(&path).expect("read");
    let at = bytes.windows(row.len()).position(|bytes| bytes == row).expect("there");
    bytes[at + 3] ^= 1;
    std::fs::write(&path, bytes).expect("write");

    let store = Datastore::open(folder.path()).expect("open");
    for error in [store.keys(2_400..2_600).map(drop), store.reconstruct(&[2_450]).map(drop)] {
        let error = error.expect_err("of the same MiB");
        assert!(matches!(&error, Error::Damaged { section, .. } if section == "Keys"), "{error}");
    }
    assert!(store.keys(0..1_000).is_ok() && store.reconstruct(&[7]).is_ok(), "another MiB is sound");
}
