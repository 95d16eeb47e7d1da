//! Reads every byte of a store and says what is damaged: file, section, entries.

use super::snapshot::{Piece, Snapshot};
use crate::sections::{SectionKind, typed};
use crate::store::format::damage::{Damage, DamagedSection, positions, rows};
use crate::store::format::documents::DocumentTable;
use crate::store::format::files::Folder;
use crate::store::format::layout::{SegmentKind, SegmentName};
use crate::store::format::manifest::Manifest;
use crate::store::format::records::{DataRecord, ValueType};
use crate::store::format::runs::Runs;
use crate::store::format::segment::SegmentFile;
use crate::store::format::values::ValueRows;
use crate::work::Progress;
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
    /// Entries that it touches: ids for data segments, positions in list order for lists.
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

/// Where files come from: the folder, or, for those that a newer generation had removed, what is mapped of them.
struct Source<'s> {
    folder: &'s Folder,
    generation: u64,
    snapshot: Option<&'s Snapshot>,
}

enum Opened<'s> {
    Named(Box<SegmentFile>),
    Mapped(&'s SegmentFile),
}

impl std::ops::Deref for Opened<'_> {
    type Target = SegmentFile;

    fn deref(&self) -> &SegmentFile {
        match self {
            Opened::Named(file) => file,
            Opened::Mapped(file) => file,
        }
    }
}

impl<'s> Source<'s> {
    /// Whether a file is missing because a writer went on: what is mapped is whole all the same.
    fn went_on(&self, e: &Error) -> Option<&'s Snapshot> {
        let newer = || Manifest::newest(self.folder).is_ok_and(|newest| newest > Some(self.generation));
        self.snapshot.filter(|_| e.is_not_found() && newer())
    }

    fn open(&self, name: &SegmentName, kind: SegmentKind) -> Result<Opened<'s>> {
        match SegmentFile::open(self.folder.path(), name, kind) {
            Ok(file) => Ok(Opened::Named(Box::new(file))),
            Err(e) => {
                let mapped = |snapshot: &'s Snapshot| snapshot.files().find(|(own, _)| *own == name.file);
                self.went_on(&e).and_then(mapped).map(|(_, file)| Opened::Mapped(file)).ok_or(e)
            }
        }
    }
}

/// Checks all files of a manifest, unless `cancel` is set; `progress` counts the bytes of their sections. A writer may
/// go on and remove files meanwhile: what `snapshot` has mapped of them is then checked.
pub(crate) fn verify(
    folder: &Folder,
    manifest: &Manifest,
    snapshot: Option<&Snapshot>,
    progress: Progress,
    cancel: &AtomicBool,
) -> Result<Vec<Problem>> {
    let total = manifest.segments().fold(0u64, |sum, (_, name)| sum.saturating_add(name.bytes));
    let done = Cell::new(0u64);
    let read = |bytes: u64| {
        done.set(done.get().saturating_add(bytes));
        progress("verify", done.get().min(total), total);
    };
    let mut problems = Vec::new();
    let source = Source { folder, generation: manifest.generation, snapshot };
    if let Err(e) = Manifest::read(folder, manifest.generation)
        && source.went_on(&e).is_none()
    {
        problems.push(Problem {
            file: Manifest::file_name(manifest.generation),
            section: None,
            entries: None,
            message: e.to_string(),
        });
    }
    let values = |file: &SegmentFile| check_values(file, manifest);
    for data in &manifest.data {
        let entries = |file: &SegmentFile, damaged: &DamagedSection| {
            let per_entry = [SectionKind::Values, SectionKind::Keys].map(|kind| kind as u32);
            if per_entry.contains(&damaged.number) { rows(file, damaged, data.entries) } else { None }
        };
        let before = problems.len();
        if let Some(file) = check_file(&source, &data.name, SegmentKind::Data, entries, (&read, cancel), &mut problems)?
        {
            check_documents(&file, data, &mut problems);
            problems.extend(values(&file));
        }
        // Damaged rows are told by their ids.
        let damaged = problems[before..].iter_mut().filter_map(|p| p.entries.clone().map(|rows| (p, rows)));
        let runs = source.open(&data.name, SegmentKind::Data).and_then(|file| Runs::read(&file, data));
        for (problem, rows) in damaged {
            problem.entries = runs.as_ref().ok().and_then(|runs| runs.ids_of(rows));
        }
    }
    if let Some(name) = &manifest.codebook {
        check_file(&source, name, SegmentKind::Codebook, |_, _| None, (&read, cancel), &mut problems)?;
    }
    for lists in &manifest.lists {
        check_file(
            &source,
            &lists.name,
            SegmentKind::Lists,
            |file, damaged| positions(file, damaged),
            (&read, cancel),
            &mut problems,
        )?;
    }
    if let Some(deleted) = &manifest.deleted {
        check_file(&source, &deleted.name, SegmentKind::Deleted, |_, _| None, (&read, cancel), &mut problems)?;
    }
    // Sections that are sound one by one may still not fit together.
    if problems.is_empty() {
        let mut check = |snapshot: &Snapshot| {
            snapshot.check_index()?;
            check_lists(snapshot, &mut problems)
        };
        let fits = match Snapshot::of(folder, manifest.clone()) {
            Ok(anew) => check(&anew),
            Err(e) => source.went_on(&e).map_or(Err(e), check),
        };
        if let Err(e) = fits {
            problems.push(Problem {
                file: Manifest::file_name(manifest.generation),
                section: None,
                entries: None,
                message: e.to_string(),
            });
        }
    }
    Ok(problems)
}

/// Checks the bytes of one file; `entries` tells those that damage touches. Returns the file if all its bytes are sound.
fn check_file<'s>(
    source: &Source<'s>,
    name: &SegmentName,
    kind: SegmentKind,
    entries: impl Fn(&SegmentFile, &DamagedSection) -> Option<Range<u64>>,
    (read, cancel): (&dyn Fn(u64), &AtomicBool),
    problems: &mut Vec<Problem>,
) -> Result<Option<Opened<'s>>> {
    let file = match source.open(name, kind) {
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
        let entries = section.as_ref().and_then(|section| entries(&file, section));
        problems.push(Problem { file: name.file.clone(), section: section.map(|s| s.name), entries, message });
    }
    Ok(sound.then_some(file))
}

/// No value is above the largest that may be added; none is the one that stands for a missing value.
fn check_values(file: &SegmentFile, manifest: &Manifest) -> Option<Problem> {
    let rows = match manifest.values {
        ValueType::Uint32 => ValueRows::U32(typed(file, SectionKind::Values).ok()?),
        ValueType::Uint64 => ValueRows::U64(typed(file, SectionKind::Values).ok()?),
    };
    let error = rows.check(manifest.values, manifest.max_value).err()?;
    Some(Problem {
        file: file.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        section: Some(format!("{:?}", SectionKind::Values)),
        entries: None,
        message: error.to_string(),
    })
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
        let runs = Runs::read(file, data)?;
        let rows = |ids: Range<u64>| runs.spans(ids).map(|(_, rows)| rows.len() as u64).sum::<u64>();
        let table = DocumentTable::open(file)?;
        let mut next = data.first_id;
        let mut held = 0;
        for i in 0..table.len() {
            let document = table.get(i)?;
            let inherited = i == 0 && data.continues && document.start <= next;
            // Ids are gone where documents were deleted; an entry is in a document always.
            if !inherited && (document.start < next || rows(next..document.start) > 0) {
                return Ok(Some(format!("record {i}: expected start {next}, found {}", document.start)));
            }
            let own = document.start.max(data.first_id)..document.end;
            held += own.end.saturating_sub(own.start);
            next = document.end;
            if !table.is_plain(i)? {
                return Ok(Some(format!(
                    "record {i}: expected no flag but that of a name, and zero in what is reserved"
                )));
            }
            if let Some(name) = &document.name
                && !table.find(name)?.contains(&(i as u32))
            {
                return Ok(Some(format!("record {i}: expected to find it by its name {name:?}")));
            }
        }
        let end = data.ids().end;
        let whole = next <= end && held == data.entries && rows(next..end) == 0;
        Ok((!whole).then(|| {
            format!("expected documents of {} entries up to id {end}, found {held} up to {next}", data.entries)
        }))
    };
    match check() {
        Ok(None) => {}
        Ok(Some(message)) => problems.push(problem(message)),
        Err(e) => problems.push(problem(e.to_string())),
    }
}

/// Every entry that is not deleted is in exactly one list; nothing is in a list that has no entry.
fn check_lists(snapshot: &Snapshot, problems: &mut Vec<Problem>) -> Result<()> {
    for (file, record) in snapshot.lists.iter().zip(&snapshot.manifest.lists) {
        let ids: &[u32] = crate::sections::typed(&**file, SectionKind::ListIds)?;
        let mut seen = vec![0u64; (record.entries as usize).div_ceil(64)];
        let bit = |id: u64| (id as usize / 64, 1u64 << (id % 64));
        let mut found = 0u64;
        for id in ids.iter().map(|&id| u64::from(id)).filter(|&id| id < record.entries) {
            let (word, bit) = bit(id);
            found += u64::from(seen[word] & bit == 0);
            seen[word] |= bit;
        }
        let span = record.first_id..record.first_id + record.entries;
        let present = |pieces: &mut dyn Iterator<Item = Piece>| -> (u64, u64) {
            pieces.flat_map(|p| p.first_id..p.first_id + p.rows.len() as u64).fold((0, 0), |(n, listed), id| {
                let (word, bit) = bit(id - record.first_id);
                (n + 1, listed + u64::from(seen[word] & bit != 0))
            })
        };
        let (live, listed) = present(&mut snapshot.pieces(&span));
        let (_, stored) = present(&mut snapshot.stored(&span));
        if listed != live || stored != ids.len() as u64 || found != stored {
            problems.push(Problem {
                file: record.name.file.clone(),
                section: Some(format!("{:?}", SectionKind::ListIds)),
                entries: None,
                message: format!(
                    "expected each of {live} entries once and no others, found {listed} of them among {} ids",
                    ids.len()
                ),
            });
        }
    }
    Ok(())
}
