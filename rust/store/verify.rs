//! Reads every byte of a store and says what is damaged: file, section, entries.

use super::documents::DocumentTable;
use super::files::Folder;
use super::manifest::{DataRecord, Manifest};
use super::segment::{Damage, SegmentFile, SegmentKind, SegmentName};
use super::snapshot::Snapshot;
use crate::index::Progress;
use crate::sections::SectionKind;
use crate::{Error, Result};
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// One thing that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// File at fault.
    pub file: String,
    /// Section at fault, if one is.
    pub section: Option<String>,
    /// Entries that it touches: ids for data segments, places in list order for lists.
    pub entries: Option<Range<u64>>,
    /// What was expected and found.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some(section) = &self.section {
            write!(f, ", section {section}")?;
        }
        if let Some(entries) = &self.entries {
            write!(f, ", entries {} to {}", entries.start, entries.end.saturating_sub(1))?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Checks all files of a manifest, unless `cancel` is set; `progress` counts the bytes of their sections.
pub(crate) fn verify(
    folder: &Folder,
    manifest: &Manifest,
    progress: Progress,
    cancel: &AtomicBool,
) -> Result<Vec<Problem>> {
    let files = manifest.data.iter().map(|d| &d.name).chain(manifest.lists.iter().map(|l| &l.name));
    let total = files.chain(&manifest.codebook).fold(0u64, |sum, name| sum.saturating_add(name.bytes));
    let done = Cell::new(0u64);
    let read = |bytes: u64| {
        done.set(done.get().saturating_add(bytes));
        progress("verify", done.get().min(total), total);
    };
    let mut problems = Vec::new();
    if let Err(e) = Manifest::read(folder, manifest.generation) {
        problems.push(Problem {
            file: Manifest::file_name(manifest.generation),
            section: None,
            entries: None,
            message: e.to_string(),
        });
    }
    for data in &manifest.data {
        let per_entry = |number| {
            let rows = number == SectionKind::Values as u32 || number == SectionKind::Keys as u32;
            rows.then_some((data.first_id, data.entries))
        };
        if let Some(file) =
            check_file(folder, &data.name, SegmentKind::Data, per_entry, (&read, cancel), &mut problems)?
        {
            check_documents(&file, data, &mut problems);
        }
    }
    if let Some(name) = &manifest.codebook {
        check_file(folder, name, SegmentKind::Codebook, |_| None, (&read, cancel), &mut problems)?;
    }
    for lists in &manifest.lists {
        // Codes lie in blocks that are padded list by list: a range of entries would mislead.
        let per_entry = |number| (number == SectionKind::ListIds as u32).then_some((0, lists.entries));
        if let Some(file) =
            check_file(folder, &lists.name, SegmentKind::Lists, per_entry, (&read, cancel), &mut problems)?
        {
            check_list_ids(&file, lists.entries, &mut problems);
        }
    }
    // Sections that are sound one by one may still not fit together.
    if problems.is_empty()
        && let Err(e) = Snapshot::of(folder, manifest.clone()).and_then(|snapshot| snapshot.check_index())
    {
        problems.push(Problem {
            file: Manifest::file_name(manifest.generation),
            section: None,
            entries: None,
            message: e.to_string(),
        });
    }
    Ok(problems)
}

/// Checks the bytes of one file; `per_entry` tells the first entry and the number of entries of a section that has a
/// fixed number of bytes for each. Returns the file if all its bytes are sound.
fn check_file(
    folder: &Folder,
    name: &SegmentName,
    kind: SegmentKind,
    per_entry: impl Fn(u32) -> Option<(u64, u64)>,
    (read, cancel): (&dyn Fn(u64), &AtomicBool),
    problems: &mut Vec<Problem>,
) -> Result<Option<SegmentFile>> {
    let file = match SegmentFile::open(folder.path(), name, kind) {
        Ok(file) => file,
        Err(e) => {
            problems.push(Problem { file: name.file.clone(), section: None, entries: None, message: e.to_string() });
            return Ok(None);
        }
    };
    let damages = file.verify(read, cancel);
    if cancel.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    let sound = damages.is_empty();
    for Damage { section, message } in damages {
        let entries = section.as_ref().and_then(|s| {
            let (first, n) = per_entry(s.number)?;
            let length = file.sections().iter().find(|t| t.number == s.number)?.span.len() as u64;
            let size = length.checked_div(n).filter(|&size| size > 0)?;
            Some(first + (s.bytes.start / size).min(n)..first + s.bytes.end.div_ceil(size).min(n))
        });
        problems.push(Problem { file: name.file.clone(), section: section.map(|s| s.name), entries, message });
    }
    Ok(sound.then_some(file))
}

/// Records follow each other without gaps, names are found where the records have them.
fn check_documents(file: &SegmentFile, data: &DataRecord, problems: &mut Vec<Problem>) {
    let problem = |message: String| Problem {
        file: data.name.file.clone(),
        section: Some(format!("{:?}", SectionKind::Documents)),
        entries: None,
        message,
    };
    let check = || -> Result<Option<String>> {
        let table = DocumentTable::open(file)?;
        let mut next = data.first_id;
        for i in 0..table.len() {
            let document = table.get(i)?;
            let inherited = i == 0 && data.continues && document.start <= next;
            if document.start != next && !inherited {
                return Ok(Some(format!("record {i}: expected start {next}, found {}", document.start)));
            }
            next = document.end;
            if let Some(name) = &document.name
                && table.find(name)? != Some(i)
            {
                return Ok(Some(format!("record {i}: expected to find it by its name {name:?}")));
            }
        }
        let end = data.first_id + data.entries;
        Ok((next != end).then(|| format!("expected documents up to id {end}, found {next}")))
    };
    match check() {
        Ok(None) => {}
        Ok(Some(message)) => problems.push(problem(message)),
        Err(e) => problems.push(problem(e.to_string())),
    }
}

/// Every entry of a lists segment is in exactly one list.
fn check_list_ids(file: &SegmentFile, entries: u64, problems: &mut Vec<Problem>) {
    let Ok(ids) = crate::sections::typed::<u32>(file, SectionKind::ListIds) else {
        return; // said by `check_index`
    };
    let mut seen = vec![0u64; (entries as usize).div_ceil(64)];
    let mut found = 0u64;
    for &id in ids.iter().filter(|&&id| u64::from(id) < entries) {
        let (word, bit) = (id as usize / 64, 1u64 << (id % 64));
        found += u64::from(seen[word] & bit == 0);
        seen[word] |= bit;
    }
    if found != entries {
        problems.push(Problem {
            file: file.path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
            section: Some(format!("{:?}", SectionKind::ListIds)),
            entries: None,
            message: format!("expected each of {entries} entries once, found {found} of them"),
        });
    }
}
