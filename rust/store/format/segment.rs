//! An immutable segment file, opened: header, 64-byte aligned sections without holes, section table, footer.
//!
//! Opening maps the file and checks its layout; sections are not read. [`SegmentFile::check`] checks what is about to be
//! derived from, once a MiB, and [`SegmentFile::verify`] reads every byte.

use super::damage::{Damage, DamagedSection, positions};
use super::layout::{
    CHUNK, FOOTER, FORMAT_MINOR, HEADER, Layout, Section, SegmentKind, SegmentName, TABLE_ENTRY, u16_at, u32_at,
};
use super::map::{load, map};
use crate::error::RESTORE;
use crate::sections::{SectionKind, SectionSource};
use crate::{Error, Result};
use memmap2::Mmap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes asked for at once: what Linux reads ahead at most unless it is told otherwise.
const PIECE: usize = 128 << 10;

/// An opened segment file.
#[derive(Debug)]
pub struct SegmentFile {
    path: PathBuf,
    map: Mmap,
    sections: Vec<Section>,
    /// What the system was told last of how raw keys are read.
    keys_in_order: AtomicBool,
    /// Whether it lies in memory of this process, not in a mapped file.
    resident: bool,
    /// Bits of the MiB that were found sound, in the order of their checksums.
    sound: Vec<AtomicU64>,
}

impl SegmentFile {
    /// Opens the file that a manifest names.
    ///
    /// # Errors
    /// `Io` if it cannot be opened; `Format` if it is not the named file or breaks a rule of the layout.
    pub fn open(folder: &Path, name: &SegmentName, kind: SegmentKind) -> Result<SegmentFile> {
        let path = folder.join(&name.file);
        let map = map(&path, Some(name.bytes), HEADER + FOOTER)?;
        SegmentFile::of(path, map, false, name, kind)
    }

    /// Reads the file that a manifest names into memory, and checks every byte.
    ///
    /// # Errors
    /// As [`Self::open`]; `Damaged`; `State` without so much memory.
    pub fn load(folder: &Path, name: &SegmentName, kind: SegmentKind) -> Result<SegmentFile> {
        let path = folder.join(&name.file);
        let memory = load(&path, name.bytes)?;
        let file = SegmentFile::of(path, memory, true, name, kind)?;
        file.check_all()?;
        Ok(file)
    }

    fn of(path: PathBuf, map: Mmap, resident: bool, name: &SegmentName, kind: SegmentKind) -> Result<SegmentFile> {
        let file = Layout { path: &path, bytes: &map };
        file.check_header(kind)?;
        let table = file.check_footer(name)?;
        let sections = file.read_table(table)?;
        let checksums = sections.last().map_or(0, |s| s.span.len() / 4); // one more bit than needed does no harm
        let sound = (0..checksums.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(SegmentFile { path, map, sections, keys_in_order: AtomicBool::new(true), resident, sound })
    }

    /// Its sections in file order.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Says that codes are read in no order: the system reads nothing ahead, searches ask for what they need.
    pub(crate) fn read_in_no_order(&self) {
        self.read_ahead([SectionKind::Codes, SectionKind::SecondCodes], false);
    }

    /// Says whether raw keys are about to be read in order, for which the system reads ahead, or in none.
    pub(crate) fn read_keys(&self, in_order: bool) {
        if self.keys_in_order.swap(in_order, Ordering::Relaxed) != in_order {
            self.read_ahead([SectionKind::Keys], in_order);
        }
    }

    /// Advice that is not taken changes no result. Elsewhere nobody knows when to ask (`disk.rs`).
    #[cfg_attr(not(target_os = "linux"), expect(unused_variables, reason = "nothing to say there"))]
    fn read_ahead(&self, sections: impl IntoIterator<Item = SectionKind>, ahead: bool) {
        if self.resident {
            return; // nothing to read, and advice would part huge pages
        }
        #[cfg(target_os = "linux")]
        for section in sections.into_iter().filter_map(|kind| self.find(kind)) {
            let advice = if ahead { memmap2::Advice::Normal } else { memmap2::Advice::Random };
            let _ = self.map.advise_range(advice, section.span.start, section.span.len());
        }
    }

    /// Whether it was read into memory.
    pub fn is_resident(&self) -> bool {
        self.resident
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// Where a section lies; none if the file lacks it.
    pub fn find(&self, kind: SectionKind) -> Option<&Section> {
        self.sections.iter().find(|s| s.number == kind as u32)
    }

    /// Reads every byte and lists what is damaged; tells `read` of the bytes as they are done and gives up once `cancel`
    /// is set.
    pub fn verify(&self, read: &dyn Fn(u64), cancel: &AtomicBool) -> Vec<Damage> {
        let mut damages = Vec::new();
        let footer = self.map.len() - FOOTER as usize;
        let entries = self.map[self.table_span()].chunks_exact(TABLE_ENTRY as usize);
        let reserved =
            entries.map(|entry| &entry[36..]).chain([&self.map[16..60], &self.map[footer + 24..footer + 52]]);
        // A later minor version may have given them a meaning.
        if u16_at(&self.map, 10) <= FORMAT_MINOR && reserved.flatten().any(|&b| b != 0) {
            damages.push(whole("reserved bytes of header, table and footer must be zero".into()));
        }
        let mut end = HEADER as usize;
        for section in &self.sections {
            if self.map[end..section.span.start].iter().any(|&b| b != 0) {
                damages.push(whole(format!("padding before {} must be zero", section.name())));
            }
            end = section.span.end;
        }
        let table = self.table_span();
        if self.map[end..table.start].iter().any(|&b| b != 0) {
            damages.push(whole("padding before the section table must be zero".into()));
        }
        for section in &self.sections {
            let bytes = &self.map[section.span.clone()];
            if section.number == SectionKind::Checksums as u32 {
                if crc32c::crc32c(bytes) != section.crc {
                    damages.push(part(
                        section,
                        0..bytes.len() as u64,
                        "the checksums themselves do not match the section table".into(),
                    ));
                }
                continue;
            }
            for i in 0..bytes.len().div_ceil(CHUNK as usize) {
                if cancel.load(Ordering::Relaxed) {
                    return damages;
                }
                damages.extend(self.chunk_damage(section, i));
                read(CHUNK.min((bytes.len() - i * CHUNK as usize) as u64));
            }
            if crc32c::crc32c(self.sums(section)) != section.crc {
                damages.push(part(
                    section,
                    0..bytes.len() as u64,
                    "its checksums do not match the section table".into(),
                ));
            }
        }
        damages
    }

    /// Checksums of a section; `read_table` has checked that there are as many as it needs.
    fn sums(&self, section: &Section) -> &[u8] {
        let all = self.find(SectionKind::Checksums).map_or(&[][..], |s| &self.map[s.span.clone()]);
        let first = (section.first_checksum as usize).saturating_mul(4);
        all.get(first..first + 4 * section.span.len().div_ceil(CHUNK as usize)).unwrap_or(&[])
    }

    /// What is wrong with MiB number `i` of a section, if anything.
    fn chunk_damage(&self, section: &Section, i: usize) -> Option<Damage> {
        let start = i * CHUNK as usize;
        let chunk = &self.map[section.span.clone()][start..section.span.len().min(start + CHUNK as usize)];
        let expected = self.sums(section).get(4 * i..4 * i + 4).map(|sum| u32_at(sum, 0));
        let found = crc32c::crc32c(chunk);
        (expected != Some(found)).then(|| {
            let message = format!("expected CRC32C {:08x}, found {found:08x}", expected.unwrap_or(0));
            part(section, start as u64..(start + chunk.len()) as u64, message)
        })
    }

    /// The first damage in some bytes of a section. MiB that were found sound since [`Self::check_anew`] are not read again.
    pub(crate) fn damage(&self, section: &Section, bytes: Range<usize>) -> Option<Damage> {
        let chunks = bytes.start / CHUNK as usize..bytes.end.div_ceil(CHUNK as usize);
        chunks.filter(|_| !bytes.is_empty()).find_map(|i| {
            let number = section.first_checksum as usize + i;
            let (word, bit) = (self.sound.get(number / 64), 1u64 << (number % 64));
            if word.is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0) {
                return None;
            }
            let damage = self.chunk_damage(section, i);
            if let (None, Some(word)) = (&damage, word) {
                word.fetch_or(bit, Ordering::Relaxed);
            }
            damage
        })
    }

    /// Checks all sections.
    ///
    /// # Errors
    /// `Damaged` for the first bytes that are not those that were written.
    pub(crate) fn check_all(&self) -> Result<()> {
        let sections = self.sections.iter().filter(|s| s.number != SectionKind::Checksums as u32);
        for section in sections {
            self.damage(section, 0..section.span.len()).map_or(Ok(()), |damage| Err(self.damaged(damage, None)))?;
        }
        Ok(())
    }

    /// Forgets what was found sound: what is derived from now on is derived from bytes that are checked from now on.
    pub(crate) fn check_anew(&self) {
        self.sound.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// An error that tells of damage and of the entries that it touches.
    pub(crate) fn damaged(&self, damage: Damage, entries: Option<Range<u64>>) -> Error {
        let section = damage.section.map_or_else(String::new, |section| section.name);
        let message = format!("{}; {RESTORE}, or compact without the documents that are damaged", damage.message);
        Error::Damaged { path: self.path.clone(), section, entries, message }
    }

    /// Section of mapped bytes, and where in it they lie; none of others.
    fn section_of(&self, part: &[u8]) -> Option<(&Section, Range<usize>)> {
        let start = part.as_ptr().addr().checked_sub(self.map.as_ptr().addr())?;
        let section = self.sections.iter().find(|s| s.span.contains(&start))?;
        let at = start - section.span.start;
        Some((section, at..at + part.len()))
    }

    fn table_span(&self) -> Range<usize> {
        let end = self.map.len() - FOOTER as usize;
        end - self.sections.len() * TABLE_ENTRY as usize..end
    }
}

fn whole(message: String) -> Damage {
    Damage { section: None, message }
}

fn part(section: &Section, bytes: Range<u64>, message: String) -> Damage {
    Damage { section: Some(DamagedSection { number: section.number, name: section.name(), bytes }), message }
}

impl SectionSource for SegmentFile {
    fn section(&self, kind: SectionKind) -> Result<&[u8]> {
        match self.find(kind) {
            Some(section) => Ok(&self.map[section.span.clone()]),
            None => Err(self.format_error(format!("expected a section {kind:?}, found none; {RESTORE}"))),
        }
    }

    fn check(&self, part: &[u8]) -> Result<()> {
        let Some((section, bytes)) = self.section_of(part).filter(|_| !part.is_empty()) else { return Ok(()) };
        let Some(damage) = self.damage(section, bytes) else { return Ok(()) };
        let entries = damage.section.as_ref().and_then(|section| positions(self, section));
        Err(self.damaged(damage, entries))
    }

    #[cfg_attr(not(unix), expect(unused_variables, reason = "nothing to ask there"))]
    fn advise(&self, part: &[u8]) {
        // Advice that is not taken changes no result.
        #[cfg(unix)]
        if let Some(at) = part.as_ptr().addr().checked_sub(self.map.as_ptr().addr()).filter(|_| !self.resident)
            && at + part.len() <= self.map.len()
        {
            // One request is cut where the disk's own reading ahead ends.
            for piece in (at..at + part.len()).step_by(PIECE) {
                let length = PIECE.min(at + part.len() - piece);
                let _ = self.map.advise_range(memmap2::Advice::WillNeed, piece, length);
            }
        }
    }

    fn format_error(&self, message: String) -> Error {
        Error::format(&self.path, message)
    }
}
