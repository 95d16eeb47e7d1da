//! A real store to start from, checksums that agree with changed bytes, and everything that a reader may ask.
#![allow(dead_code)] // each target uses its part

use knnlm::Metric;
use knnlm::index::Params;
use knnlm::keys::KeyRows;
use knnlm::search::{Request, Rerank};
use knnlm::store::{BuildOptions, Datastore, DocumentKey, KeyType, Options, ValueRows, ValueType};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use tempfile::TempDir;

const DIM: usize = 8;

/// Files of a real store.
pub struct Base {
    /// Names and bytes.
    pub files: Vec<(String, Vec<u8>)>,
    /// Names of the segment files.
    pub segments: Vec<String>,
    /// Name of the manifest.
    pub manifest: String,
    /// Its body.
    pub body: Vec<u8>,
}

fn key(id: u64) -> [f32; DIM] {
    std::array::from_fn(|j| ((id * 31 + j as u64 * 17) % 23) as f32 - 11.0)
}

fn make(path: &Path) {
    let options = Options {
        dim: DIM,
        metric: Metric::L2,
        keep_keys: Some(KeyType::Float16),
        values: ValueType::Uint32,
        max_value: None,
        attributes: Some("{\"a\": 1}".into()),
        overwrite: false,
    };
    let store = Datastore::create(path, &options).expect("create");
    let add = |n: u64, name: Option<&str>| {
        let first = store.next_id() + store.pending();
        let keys: Vec<f32> = (first..first + n).flat_map(key).collect();
        let values: Vec<u32> = (first..first + n).map(|id| id as u32 % 50).collect();
        store.add(KeyRows::F32(&keys), ValueRows::U32(&values), name, name.map(|_| "{}")).expect("add");
    };
    let build = || {
        let params = Params { nlist: Some(4), ..Params::default() };
        let options = BuildOptions { params, retrain: false, threads: Some(1) };
        store.build(&options, &|_, _, _| (), &AtomicBool::new(false)).expect("build");
    };
    for name in ["a", "b", "c", "d"] {
        add(40, Some(name));
    }
    build();
    store.delete(&[DocumentKey::Name("b".into())]).expect("delete");
    store.compact(&|_, _, _| (), &AtomicBool::new(false)).expect("compact");
    add(30, Some("e"));
    build();
    add(20, None);
    store.commit().expect("commit");
    store.delete(&[DocumentKey::Name("d".into())]).expect("delete");
}

/// The store, made once.
pub fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("folder");
        make(folder.path());
        let entries = std::fs::read_dir(folder.path()).expect("list");
        let mut files: Vec<(String, Vec<u8>)> = entries
            .map(|e| e.expect("entry"))
            .map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).expect("read")))
            .filter(|(name, _)| name != "lock")
            .collect();
        files.sort();
        let (manifest, text) = files.iter().find(|(name, _)| name.ends_with(".json")).cloned().expect("a manifest");
        let line = text.iter().position(|&b| b == b'\n').expect("an envelope");
        let segments = files.iter().map(|f| f.0.clone()).filter(|name| name.ends_with(".seg")).collect();
        Base { segments, manifest, body: text[line + 1..].to_vec(), files }
    })
}

impl Base {
    /// A copy with changed bytes, in a folder of its own.
    pub fn copy(&self, mut change: impl FnMut(&str, &mut Vec<u8>)) -> TempDir {
        let folder = tempfile::tempdir().expect("folder");
        for (name, bytes) in &self.files {
            let mut bytes = bytes.clone();
            change(name, &mut bytes);
            std::fs::write(folder.path().join(name), bytes).expect("write");
        }
        folder
    }
}

/// Where the section table of a sound or damaged segment file starts, as far as its footer can be believed.
pub fn table(bytes: &[u8]) -> usize {
    let footer = bytes.len() - 64;
    let at = u64::from_le_bytes(bytes[footer..footer + 8].try_into().expect("8 bytes"));
    usize::try_from(at).unwrap_or(footer).min(footer)
}

/// Makes header, table and footer right again; the checksum of the table.
pub fn seal(bytes: &mut [u8]) -> u32 {
    let footer = bytes.len() - 64;
    let header = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&header.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[table(bytes)..footer]);
    bytes[footer + 12..footer + 16].copy_from_slice(&crc.to_le_bytes());
    let own = crc32c::crc32c(&bytes[footer..footer + 52]);
    bytes[footer + 52..footer + 56].copy_from_slice(&own.to_le_bytes());
    crc
}

/// Writes a manifest with an envelope that fits its body.
pub fn write_manifest(folder: &Path, name: &str, body: &[u8]) {
    let crc = crc32c::crc32c(&[&[1, 0, 0, 0], body].concat());
    let head =
        format!("{{\"knnlm\":\"manifest\",\"format\":[1,0],\"bytes\":{},\"crc32c\":\"{crc:08x}\"}}\n", body.len());
    std::fs::write(folder.join(name), [head.as_bytes(), body].concat()).expect("write");
}

/// Gives the manifest the checksum and length of a changed segment file.
pub fn rename_in_manifest(folder: &Path, base: &Base, name: &str, crc: u32, length: usize) {
    let mut body: serde_json::Value = serde_json::from_slice(&base.body).expect("JSON");
    let fix = |record: &mut serde_json::Value| {
        if record["file"] == name {
            record["crc32c"] = crc.into();
            record["bytes"] = length.into();
        }
    };
    for list in ["data", "lists"] {
        body[list].as_array_mut().expect("list").iter_mut().for_each(fix);
    }
    for one in ["codebook", "deleted"] {
        body.get_mut(one).into_iter().for_each(fix);
    }
    write_manifest(folder, &base.manifest, &serde_json::to_vec(&body).expect("JSON"));
}

/// Everything that reads.
pub fn exercise(path: &Path) {
    let never = AtomicBool::new(false);
    let _ = Datastore::verify_path(path);
    let Ok(store) = Datastore::open(path) else { return };
    let _ = (store.info(), store.attributes());
    let n = store.next_id();
    let ids = [0, 1, 39, 40, 79, 80, 120, 159, 160, 189, 190, 209, -1, i64::MAX];
    let _ = (store.get(&ids), store.document_of(&ids), store.reconstruct(&[3, 165]), store.reconstruct(&[195]));
    let _ = (store.find_document("a"), store.find_document("b"), store.find_document(""), store.document(u64::MAX));
    (0..store.documents().min(16)).for_each(|i| drop(store.document(i)));
    let _ = (store.values(0..n.min(400)), store.keys(0..n.min(40)), store.keys(165..n.clamp(165, 200)));
    if store.dim() != DIM {
        return;
    }
    let queries: Vec<f32> = [3, 165].into_iter().flat_map(key).collect();
    let exclude = [0..20, 150..170];
    for request in [
        Request { k: 20, ..Request::default() },
        Request { k: 300, nprobe: Some(usize::MAX), exclude: Some(&exclude), ..Request::default() },
        Request { k: 20, exact: true, ..Request::default() },
        Request { k: 20, rerank: Rerank::Keys, ..Request::default() },
    ] {
        let _ = store.search(&queries, &request, Some(1), &never);
    }
    // Changes on top of it.
    let _ = store.delete(&[DocumentKey::Index(0)]);
    let _ = store.compact(&|_, _, _| (), &never);
}
