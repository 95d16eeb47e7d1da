//! A manifest: the JSON file that says which segment files make up one generation of a store.
//!
//! `manifest-00000007.json` = one envelope line (format version, length and CRC32C of the rest), then the body. The
//! highest number is the current generation; it is published by one rename.

use super::files::{Folder, TEMPORARY};
use super::fit::Fit;
use super::layout::{FORMAT_MAJOR, FORMAT_MINOR, SegmentKind, SegmentName, check_version};
use super::map::open_regular;
use super::records::{DataRecord, DeletedRecord, KeyType, ListsRecord, ValueType};
use crate::error::{Action, RESTORE, Why};
use crate::search::Calibration;
use crate::{Error, Metric, Result};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::io::Read;
use std::path::Path;

/// Largest dimension of a key.
pub const MAX_DIM: usize = 65_536;

/// Entries of a store at most, until deleted ones are compacted away: a search counts them in list order with 32 bits, the
/// padding of a block behind them.
pub const MOST_ENTRIES: u64 = u32::MAX as u64 - 16;

/// Bytes of a manifest at most: far more than any has, and no machine's memory.
const MOST_BYTES: u64 = 1 << 28;

/// Everything about a store that is not in its segment files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Number of this manifest.
    pub generation: u64,
    /// How keys are compared.
    pub metric: Metric,
    /// Dimension of a key.
    pub dim: usize,
    /// How values are stored.
    pub values: ValueType,
    /// Largest value that may be added.
    pub max_value: Option<u64>,
    /// Whether `build` keeps raw keys, and how.
    pub keep_keys: Option<KeyType>,
    /// Number of ids given so far, of deleted entries too: the next id.
    pub entries: u64,
    /// Data segments, in id order without gaps.
    pub data: Vec<DataRecord>,
    /// The codebook, once built.
    pub codebook: Option<SegmentName>,
    /// Lists segments, in id order without gaps from id 0.
    pub lists: Vec<ListsRecord>,
    /// Documents that are deleted but not yet compacted away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted: Option<DeletedRecord>,
    /// How well the codebook fits the entries that it was learnt from and those added later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<Fit>,
    /// Whether entries are encoded as they are added, so that raw keys are never written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encode: bool,
    /// Recall that the index reached when it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Whatever the caller wants remembered.
    pub attributes: Box<RawValue>,
}

/// A need: some documents are deleted, though their entries are in data and lists segments.
const DELETED: &str = "deleted";
/// A need: ids are gone, so that rows are found through runs.
const GAPS: &str = "gaps";

/// What a reader has to know, whatever else it ignores; absent before format 1.2.
#[derive(Deserialize)]
struct Needs {
    #[serde(default)]
    needs: Vec<String>,
}

/// A manifest as it is written.
#[derive(Serialize)]
struct Written<'m> {
    needs: Vec<&'static str>,
    #[serde(flatten)]
    manifest: &'m Manifest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    knnlm: String,
    format: [u16; 2],
    bytes: u64,
    crc32c: String,
}

/// CRC32C of version and body, in hexadecimal.
fn checksum([major, minor]: [u16; 2], body: &[u8]) -> String {
    let version = crc32c::crc32c_append(crc32c::crc32c(&major.to_le_bytes()), &minor.to_le_bytes());
    format!("{:08x}", crc32c::crc32c_append(version, body))
}

impl Manifest {
    /// Name of the manifest of a generation.
    pub fn file_name(generation: u64) -> String {
        format!("manifest-{generation:08}.json")
    }

    /// Generation of a manifest's name; none if it is no such name.
    pub fn generation_of(name: &str) -> Option<u64> {
        let digits = name.strip_prefix("manifest-")?.strip_suffix(".json")?;
        let generation = digits.parse().ok()?;
        (Manifest::file_name(generation) == name).then_some(generation)
    }

    /// Highest generation in a folder.
    pub fn newest(folder: &Folder) -> Result<Option<u64>> {
        Ok(folder.names()?.iter().filter_map(|name| Manifest::generation_of(name)).max())
    }

    /// Number of entries from id 0 that are in lists.
    pub fn indexed(&self) -> u64 {
        self.lists.last().map_or(0, |l| l.first_id + l.entries)
    }

    /// Number of document records, those of deleted documents included.
    pub fn records(&self) -> u64 {
        self.data.iter().map(|d| d.documents.saturating_sub(u64::from(d.continues))).fold(0, u64::saturating_add)
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.records().saturating_sub(self.deleted.as_ref().map_or(0, |d| d.documents))
    }

    /// Number of entries that are not deleted.
    pub fn live(&self) -> u64 {
        self.rows().saturating_sub(self.deleted.as_ref().map_or(0, |d| d.entries))
    }

    /// Segment files that this generation consists of, in the order data, codebook, lists, deleted.
    pub fn segments(&self) -> impl Iterator<Item = (SegmentKind, &SegmentName)> {
        let data = self.data.iter().map(|d| (SegmentKind::Data, &d.name));
        let codebook = self.codebook.iter().map(|name| (SegmentKind::Codebook, name));
        let lists = self.lists.iter().map(|l| (SegmentKind::Lists, &l.name));
        let deleted = self.deleted.iter().map(|d| (SegmentKind::Deleted, &d.name));
        data.chain(codebook).chain(lists).chain(deleted)
    }

    /// Number of entries in data segments, deleted ones included.
    pub fn rows(&self) -> u64 {
        self.data.iter().map(|d| d.entries).fold(0, u64::saturating_add)
    }

    /// The same with the number of the next generation, for a writer to change.
    ///
    /// # Errors
    /// `Format` where there is no further number: no writer gets there, so that the file is forged.
    pub fn next(&self, folder: &Folder) -> Result<Manifest> {
        Ok(Manifest { generation: next_generation(folder, self.generation)?, ..self.clone() })
    }

    /// What a reader has to know to read this generation right.
    fn needs(&self) -> Vec<&'static str> {
        let gaps = self.data.iter().any(|d| d.end_id.is_some());
        [(self.deleted.is_some(), DELETED), (gaps, GAPS)].iter().filter(|need| need.0).map(|need| need.1).collect()
    }

    /// Reads and checks the manifest of a generation.
    pub fn read(folder: &Folder, generation: u64) -> Result<Manifest> {
        let path = folder.join(&Manifest::file_name(generation));
        let bytes = read_whole(&path)?;
        let manifest = Manifest::parse(&path, &bytes)?;
        if manifest.generation != generation {
            return Err(Error::format(
                &path,
                format!("expected generation {generation}, found {}: the file was renamed", manifest.generation),
            ));
        }
        Ok(manifest)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Manifest> {
        let damaged = |what: String| Error::format(path, format!("{what}; the file is damaged, {RESTORE}"));
        let line = bytes
            .iter()
            .position(|&b| b == b'\n')
            .ok_or_else(|| damaged("expected an envelope line, found none".into()))?;
        let (head, body) = (&bytes[..line], &bytes[line + 1..]);
        let envelope: Envelope = serde_json::from_slice(head)
            .map_err(|e| damaged(format!("expected an envelope line as first line, found {e}")))?;
        if envelope.knnlm != "manifest" {
            return Err(damaged(format!("expected the manifest of a knnlm store, found {:?}", envelope.knnlm)));
        }
        check_version(path, envelope.format[0], envelope.format[1])?;
        // A writer has one way to write this line, so that a flipped bit in it cannot pass.
        let canonical = serde_json::to_vec(&envelope).map_err(|e| damaged(e.to_string()))?;
        if canonical != head {
            return Err(damaged("the envelope line is not as a writer writes it".into()));
        }
        if body.len() as u64 != envelope.bytes {
            return Err(damaged(format!(
                "expected {} bytes after the first line, found {}",
                envelope.bytes,
                body.len()
            )));
        }
        let found = checksum(envelope.format, body);
        if found != envelope.crc32c {
            return Err(damaged(format!("expected CRC32C {}, found {found}", envelope.crc32c)));
        }
        let fields = |e| damaged(format!("expected the fields of format {FORMAT_MAJOR}, found {e}"));
        // First what it needs: what a later version writes may not even have the fields that follow.
        let Needs { needs } = serde_json::from_slice(body).map_err(fields)?;
        if let Some(unknown) = needs.iter().find(|need| ![DELETED, GAPS].contains(&need.as_str())) {
            return Err(Error::format(
                path,
                format!(
                    "expected a store that needs nothing but {DELETED:?} and {GAPS:?}, found that its readers need {unknown:?}: written by a newer knnlm; upgrade knnlm to read it"
                ),
            ));
        }
        let manifest: Manifest = serde_json::from_slice(body).map_err(fields)?;
        let has_needs = envelope.format >= [1, 2];
        if let Some(missing) = manifest.needs().into_iter().find(|need| has_needs && !needs.iter().any(|n| n == need)) {
            return Err(damaged(format!("expected {missing:?} among what its readers need, found {needs:?}")));
        }
        manifest.check().map_err(damaged)?;
        Ok(manifest)
    }

    /// Writes it under its own number: the moment at which a generation comes to be.
    pub(crate) fn publish(&self, folder: &Folder) -> Result<()> {
        let name = Manifest::file_name(self.generation);
        let broken = |e: serde_json::Error| Error::state(Why::Broken, format!("cannot write {name}: {e}"));
        self.check().map_err(|what| {
            Error::format(
                folder.path(),
                format!("{name}: {what}; a file is damaged, `verify` names it. Nothing was changed"),
            )
        })?;
        let mut body = serde_json::to_vec_pretty(&Written { needs: self.needs(), manifest: self }).map_err(broken)?;
        body.push(b'\n');
        let envelope = Envelope {
            knnlm: "manifest".into(),
            format: [FORMAT_MAJOR, FORMAT_MINOR],
            bytes: body.len() as u64,
            crc32c: checksum([FORMAT_MAJOR, FORMAT_MINOR], &body),
        };
        let mut bytes = serde_json::to_vec(&envelope).map_err(broken)?;
        bytes.push(b'\n');
        bytes.extend(body);
        // Nobody could open a generation whose manifest does not read back, and the one before would be collected.
        Manifest::parse(&folder.join(&name), &bytes).map_err(|e| {
            Error::state(Why::Broken, format!("cannot write what can be read again: {e}. Nothing was changed"))
        })?;
        // The segment files must have their names on disk before a manifest that refers to them has one.
        folder.sync()?;
        let temporary = format!("{name}{TEMPORARY}");
        let mut file = folder.create(&temporary)?;
        file.write(&bytes)?;
        file.sync()?;
        drop(file);
        folder.rename(&temporary, &name)?;
        folder.sync()
    }

    /// Whether another one says the same.
    pub(crate) fn same(&self, other: &Manifest) -> bool {
        let text = |manifest: &Manifest| serde_json::to_vec(manifest).ok();
        text(self).is_some_and(|own| text(other) == Some(own))
    }

    /// What is wrong with the numbers, if anything.
    fn check(&self) -> std::result::Result<(), String> {
        if self.dim == 0 || self.dim > MAX_DIM {
            return Err(format!("expected a dimension from 1 to {MAX_DIM}, found {}", self.dim));
        }
        for (kind, name) in self.segments() {
            if SegmentKind::of_name(&name.file).is_none_or(|found| found.0 != kind) {
                return Err(format!("expected a name such as {:?}, found {:?}", kind.file_name(1), name.file));
            }
        }
        if self.rows() > MOST_ENTRIES {
            return Err(format!("expected at most {MOST_ENTRIES} entries in data segments, found {}", self.rows()));
        }
        if let Some(fit) = self.fit.filter(|fit| !fit.is_sound()) {
            return Err(format!("expected errors that are finite numbers from 0 on, found {fit:?}"));
        }
        if self.calibration.as_ref().is_some_and(|calibration| !calibration.is_sound()) {
            return Err("expected a calibration of finite numbers from 0 on, found others".into());
        }
        let mut next = 0u64;
        let mut records = 0u64;
        for data in &self.data {
            let rows = data.first_id.checked_add(data.entries);
            let end = rows.map(|rows| (rows, data.end_id.unwrap_or(rows)));
            let end = end.filter(|&(rows, end)| rows <= end && end <= i64::MAX as u64).map(|(_, end)| end);
            if data.first_id != next || end.is_none() {
                return Err(format!(
                    "{}: expected ids from {next}, found {} from {}",
                    data.name.file, data.entries, data.first_id
                ));
            }
            next = end.unwrap_or(next);
            if data.continues && (records == 0 || data.documents == 0) {
                return Err(format!("{}: continues a document, but there is none", data.name.file));
            }
            records = records.saturating_add(data.documents);
        }
        if next != self.entries {
            return Err(format!("expected {} entries in data segments, found {next}", self.entries));
        }
        if let Some(deleted) = &self.deleted
            && (deleted.documents > self.records() || deleted.entries > self.entries)
        {
            return Err(format!("expected at most {} deleted documents, found {}", self.records(), deleted.documents));
        }
        let mut next = 0u64;
        for lists in &self.lists {
            let end = lists.first_id.checked_add(lists.entries).filter(|&end| end <= self.entries);
            if lists.first_id != next || end.is_none() || lists.entries > u64::from(u32::MAX) {
                return Err(format!(
                    "{}: expected ids from {next} up to {}, found {} from {}",
                    lists.name.file, self.entries, lists.entries, lists.first_id
                ));
            }
            next = end.unwrap_or(next);
        }
        if !self.lists.is_empty() && self.codebook.is_none() {
            return Err("expected a codebook beside lists, found none".into());
        }
        // What is in no list can only be found by its raw key.
        let lost = self.data.iter().find(|d| d.keys.is_none() && d.ids().end > next && d.entries > 0);
        match lost {
            Some(data) => {
                Err(format!("{}: expected raw keys for entries from {next}, which are in no list", data.name.file))
            }
            None => Ok(()),
        }
    }
}

/// The number after that of a generation.
///
/// # Errors
/// `Format` where there is none.
pub(crate) fn next_generation(folder: &Folder, generation: u64) -> Result<u64> {
    generation.checked_add(1).ok_or_else(|| {
        Error::format(
            folder.path(),
            format!("expected a generation below {generation}, which no writer reaches: a file is forged; nothing was changed"),
        )
    })
}

fn read_whole(path: &Path) -> Result<Vec<u8>> {
    let (file, bytes) = open_regular(path)?;
    if bytes > MOST_BYTES {
        return Err(Error::format(path, format!("expected a manifest of at most {MOST_BYTES} bytes, found {bytes}")));
    }
    let mut all = Vec::with_capacity(bytes as usize);
    file.take(bytes).read_to_end(&mut all).map_err(|e| Error::io(path, Action::Read, e))?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::format::files::Disk;
    use std::sync::Arc;

    #[test]
    fn a_manifest_that_nobody_could_read_is_not_published() {
        let dir = tempfile::tempdir().expect("folder");
        let folder = Folder::new(dir.path(), Arc::new(Disk));
        let text = |fit: &str| {
            format!(
                r#"{{"generation": 1, "metric": "l2", "dim": 2, "values": "uint32", "max_value": null, "keep_keys": null,
                "entries": 0, "data": [], "codebook": null, "lists": [], "fit": {fit}, "attributes": {{}}}}"#
            )
        };
        let sound = r#"{"trained_error": 1.0, "added_error": 1.0, "added": 1}"#;
        let mut manifest: Manifest = serde_json::from_str(&text(sound)).expect("JSON");
        for error in [f32::INFINITY, f32::NAN, -1.0] {
            manifest.fit = Some(Fit { trained_error: error, ..Fit::default() });
            let outcome = manifest.publish(&folder);
            assert!(matches!(outcome, Err(Error::Format { .. })), "{outcome:?}");
            assert_eq!(folder.names().expect("names"), Vec::<String>::new());
        }
        manifest.fit = None;
        manifest.publish(&folder).expect("publish");
        assert!(Manifest::read(&folder, 1).is_ok());
    }
}
