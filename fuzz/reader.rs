//! A real store to start from, checksums that agree with changed bytes, and everything that a reader may ask.
#![allow(dead_code)] // each target uses its part

#[path = "stores.rs"]
mod stores;

use knnlm::search::{Request, Rerank};
use knnlm::store::{Datastore, DocumentKey};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, OnceLock};
use stores::{KINDS, Kind, key};
use tempfile::TempDir;

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
    /// The folder that most inputs share, and the names of the files that are not as they were in it.
    shared: OnceLock<TempDir>,
    changed: Mutex<Vec<String>>,
}

/// The store that a number chooses; each is made once.
pub fn base(number: u8) -> &'static Base {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    let bases = BASES.get_or_init(|| KINDS.iter().map(Base::of).collect());
    &bases[usize::from(number) % bases.len()]
}

impl Base {
    fn of(kind: &Kind) -> Base {
        let folder = tempfile::tempdir().expect("folder");
        stores::make(folder.path(), kind);
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
        let body = text[line + 1..].to_vec();
        Base { segments, manifest, body, files, shared: OnceLock::new(), changed: Mutex::default() }
    }

    /// A copy in a folder of its own.
    pub fn copy(&self) -> TempDir {
        let folder = tempfile::tempdir().expect("folder");
        for (name, bytes) in &self.files {
            std::fs::write(folder.path().join(name), bytes).expect("write");
        }
        folder
    }

    /// Runs `look` on a store of which some files are others. Most inputs share one folder, in which a file is put back
    /// when another is changed: what is written costs more than what is tested.
    pub fn with(&self, changed: &[(&str, &[u8])], own: bool, look: impl FnOnce(&Path)) {
        let copy = own.then(|| self.copy());
        let folder = copy.as_ref().unwrap_or_else(|| self.shared.get_or_init(|| self.copy())).path();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).expect("write");
        if !own {
            let mut before = self.changed.lock().expect("one thread");
            let left = before.iter().filter(|name| !changed.iter().any(|c| c.0 == name.as_str()));
            left.for_each(|name| write(name, self.bytes(name)));
            *before = changed.iter().map(|c| c.0.to_owned()).collect();
        }
        changed.iter().for_each(|(name, bytes)| write(name, bytes));
        look(folder);
    }

    /// The bytes of a file.
    pub fn bytes(&self, name: &str) -> &[u8] {
        self.files.iter().find(|f| f.0 == name).map_or(&[], |f| &f.1)
    }
}

/// Where the section table of a sound or damaged segment file starts, as far as its footer can be believed.
pub fn table(bytes: &[u8]) -> usize {
    let footer = bytes.len() - 64;
    let at = u64::from_le_bytes(bytes[footer..footer + 8].try_into().expect("8 bytes"));
    usize::try_from(at).unwrap_or(footer).min(footer)
}

/// Takes 64-byte blocks out before the section table, where there are so many; the footer knows.
pub fn shorten(bytes: &mut Vec<u8>, blocks: usize) {
    let table = table(bytes);
    let gone = (64 * blocks).min(table.saturating_sub(64) / 64 * 64);
    bytes.drain(table - gone..table);
    let footer = bytes.len() - 64;
    let numbers = [(footer, (table - gone) as u64), (footer + 16, bytes.len() as u64)];
    numbers.iter().for_each(|(at, x)| bytes[*at..at + 8].copy_from_slice(&x.to_le_bytes()));
}

/// Makes the checksums of all sections right, as far as the section table can be believed.
fn sum(bytes: &mut [u8]) {
    const CHECKSUMS: u32 = 255;
    let number = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let end = bytes.len() - 64;
    let entries: Vec<usize> = (table(bytes)..end).step_by(48).filter(|at| at + 48 <= end).collect();
    let span = |bytes: &[u8], entry: usize| {
        let (offset, length) = (number(bytes, entry + 8) as usize, number(bytes, entry + 16) as usize);
        offset.checked_add(length).filter(|&end| end <= bytes.len()).map(|end| offset..end)
    };
    let is_sums = |entry: &&usize| number(bytes, **entry) as u32 == CHECKSUMS;
    let Some(&last) = entries.iter().find(is_sums) else { return };
    let Some(sums) = span(bytes, last) else { return };
    for &entry in entries.iter().filter(|&&entry| entry != last) {
        let Some(section) = span(bytes, entry) else { continue };
        let crcs: Vec<u8> =
            bytes[section].chunks(1 << 20).flat_map(|mib| crc32c::crc32c(mib).to_le_bytes()).collect();
        let at = (number(bytes, entry + 24) as usize).checked_mul(4).and_then(|at| at.checked_add(sums.start));
        let Some(at) = at.filter(|at| at.checked_add(crcs.len()).is_some_and(|end| end <= sums.end)) else { continue };
        bytes[at..at + crcs.len()].copy_from_slice(&crcs);
        bytes[entry + 32..entry + 36].copy_from_slice(&crc32c::crc32c(&crcs).to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes[sums]);
    bytes[last + 32..last + 36].copy_from_slice(&crc.to_le_bytes());
}

/// Makes sections, header, table and footer right again; the checksum of the table.
pub fn seal(bytes: &mut [u8]) -> u32 {
    sum(bytes);
    let footer = bytes.len() - 64;
    let header = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&header.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[table(bytes)..footer]);
    bytes[footer + 12..footer + 16].copy_from_slice(&crc.to_le_bytes());
    let own = crc32c::crc32c(&bytes[footer..footer + 52]);
    bytes[footer + 52..footer + 56].copy_from_slice(&own.to_le_bytes());
    crc
}

/// A manifest with an envelope that fits its body.
pub fn manifest(body: &[u8]) -> Vec<u8> {
    let crc = crc32c::crc32c(&[&[1, 0, 2, 0], body].concat());
    let head =
        format!("{{\"knnlm\":\"manifest\",\"format\":[1,2],\"bytes\":{},\"crc32c\":\"{crc:08x}\"}}\n", body.len());
    [head.as_bytes(), body].concat()
}

/// The manifest with the checksum and length of a changed segment file: the two numbers after its name.
pub fn manifest_with(base: &Base, name: &str, crc: u32, length: usize) -> Vec<u8> {
    let text = std::str::from_utf8(&base.body).expect("text");
    let at = text.find(name).expect("a file of the manifest");
    let end = at + text[at..].find("crc32c").expect("its checksum");
    let rest = end + text[end..].find([',', '\n']).expect("more lines");
    let head = &text[..at];
    manifest(format!("{head}{name}\", \"bytes\": {length}, \"crc32c\": {crc}{}", &text[rest..]).as_bytes())
}

/// Whether `what` asks for changes on top of the store, which need a folder of their own.
pub fn changes(what: u8) -> bool {
    what == 255
}

/// What a reader may ask: everything that is cheap, and of the rest what `what` says.
pub fn exercise(path: &Path, what: u8) {
    let never = AtomicBool::new(false);
    if what % 64 == 63 {
        let _ = Datastore::verify_path(path);
    }
    let Ok(store) = Datastore::open(path) else { return };
    let n = store.next_id();
    let ids = [0, 11, 12, 24, 35, 36, 47, 48, 56, 57, 62, -1, i64::MAX];
    let _ = (store.get(&ids), store.document_of(&ids), store.reconstruct(&[3]), store.reconstruct(&[50, 58]));
    let _ = (store.find_document("a"), store.find_document("e"), store.find_document(""), store.document(u64::MAX));
    (0..store.documents().min(8)).for_each(|i| drop(store.document(i)));
    let _ = (store.values(0..n.min(100)), store.keys(0..n.min(12)), store.keys(57..n.clamp(57, 70)));
    if what % 16 == 15 {
        let _ = (store.info(), store.attributes());
    }
    let dim = store.dim();
    if dim <= 128 {
        let queries: Vec<f32> = [3, 50].into_iter().flat_map(|id| key(id, dim)).collect();
        let exclude = [0..5, 48..52];
        let deny = store.snapshot().ids_of(&[DocumentKey::Index(0)]).map(|ids| [ids.clone(), ids]).ok();
        let request = match what % 4 {
            0 => Request { k: 8, deny: deny.as_ref().map(|d| &d[..]), ..Request::default() },
            1 => Request { k: 100, nprobe: Some(usize::MAX), exclude: Some(&exclude), ..Request::default() },
            2 => Request { k: 8, exact: true, ..Request::default() },
            _ => Request { k: 8, rerank: Rerank::Keys, ..Request::default() },
        };
        let _ = store.search(&queries, &request, Some(1), &never);
        // Of one query, and of any id: those of the lists, of none, deleted, gone and never given.
        let one = Request {
            exclude: request.exclude.map(|ranges| &ranges[..1]),
            deny: request.deny.map(|sets| &sets[..1]),
            ..request
        };
        let _ = store.explain(&queries[..dim], &one, u64::from(what / 4), Some(1), &never);
    }
    if changes(what) {
        let _ = store.delete(&[DocumentKey::Index(0)]);
        let _ = store.compact(&|_, _, _| (), &never);
    }
}
