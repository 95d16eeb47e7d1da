//! How a segment file is laid out, byte by byte as in `docs/format.md`, and the checks of opening one: header, footer and
//! table, and that every section lies exactly where the one before it ends.

use crate::error::RESTORE;
use crate::sections::{Element, SectionKind};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

#[cfg(target_endian = "big")]
compile_error!("stores are little-endian and mapped without conversion; big-endian machines are not supported");

/// First bytes of a segment file; the line ending shows a transfer in text mode, as in PNG.
pub(crate) const MAGIC: [u8; 8] = *b"\x89KNNLM\r\n";
/// Last bytes of a segment file.
pub(crate) const END_MAGIC: [u8; 8] = *b"\x89KNNEND\n";
/// Versions that differ here cannot be read.
pub const FORMAT_MAJOR: u16 = 1;
/// Versions that differ here can be read; they may hold sections that this program ignores.
pub const FORMAT_MINOR: u16 = 2;
pub(crate) const HEADER: u64 = 64;
pub(crate) const TABLE_ENTRY: u64 = 48;
pub(crate) const FOOTER: u64 = 64;
pub(crate) const ALIGNMENT: u64 = 64;
/// Bytes that share a checksum.
pub(crate) const CHUNK: u64 = 1 << 20;

/// What a segment file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SegmentKind {
    /// Entries in corpus order.
    Data = 1,
    /// What all lists share.
    Codebook = 2,
    /// Lists of codes.
    Lists = 3,
    /// Deleted documents.
    Deleted = 4,
}

/// How a manifest names a segment file. The checksum is that of the section table, which holds those of all sections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentName {
    /// Name inside the store's folder.
    pub file: String,
    /// Length of the file.
    pub bytes: u64,
    /// CRC32C of its section table.
    pub crc32c: u32,
}

/// Span and type of a section.
#[derive(Clone, Debug)]
pub struct Section {
    /// Number of its kind; a later minor version may know more of them than [`SectionKind`].
    pub number: u32,
    /// Type of its elements.
    pub element: Element,
    /// Bytes of the file.
    pub span: Range<usize>,
    pub(super) first_checksum: u64,
    pub(super) crc: u32,
}

impl Section {
    /// Name for messages.
    pub fn name(&self) -> String {
        SectionKind::from_number(self.number)
            .map_or_else(|| format!("section {}", self.number), |kind| format!("{kind:?}"))
    }
}

/// Little-endian number at `at`; the caller has checked the length.
fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(number(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(number(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(number(bytes, at))
}

/// The checks of opening.
pub(super) struct Layout<'a> {
    pub(super) path: &'a Path,
    pub(super) bytes: &'a [u8],
}

impl Layout<'_> {
    fn error(&self, message: String) -> Error {
        Error::format(self.path, message)
    }

    fn damaged(&self, what: &str) -> Error {
        self.error(format!("{what}; the file is damaged, {RESTORE}"))
    }

    pub(super) fn check_header(&self, kind: SegmentKind) -> Result<()> {
        let header = &self.bytes[..HEADER as usize];
        if header[..8] != MAGIC {
            return Err(self.error(format!(
                "expected magic bytes {MAGIC:02x?}, found {:02x?}: not a segment of a knnlm store",
                &header[..8]
            )));
        }
        let (major, minor) = (u16_at(header, 8), u16_at(header, 10));
        check_version(self.path, major, minor)?;
        let (expected, found) = (u32_at(header, 60), crc32c::crc32c(&header[..60]));
        if expected != found {
            return Err(self.damaged(&format!("header: expected CRC32C {expected:08x}, found {found:08x}")));
        }
        let found = u32_at(header, 12);
        if found != kind as u32 {
            return Err(self.damaged(&format!("expected segment kind {} ({kind:?}), found {found}", kind as u32)));
        }
        Ok(())
    }

    /// Checks the footer and the table's checksum; returns the table's span.
    pub(super) fn check_footer(&self, name: &SegmentName) -> Result<Range<usize>> {
        let length = self.bytes.len() as u64;
        let footer = &self.bytes[self.bytes.len() - FOOTER as usize..];
        if footer[56..] != END_MAGIC {
            return Err(self.damaged(&format!("expected end magic {END_MAGIC:02x?}, found {:02x?}", &footer[56..])));
        }
        let (expected, found) = (u32_at(footer, 52), crc32c::crc32c(&footer[..52]));
        if expected != found {
            return Err(self.damaged(&format!("footer: expected CRC32C {expected:08x}, found {found:08x}")));
        }
        let (offset, count) = (u64_at(footer, 0), u64::from(u32_at(footer, 8)));
        let end = length - FOOTER;
        let fits = count.checked_mul(TABLE_ENTRY).and_then(|bytes| offset.checked_add(bytes)) == Some(end);
        if !fits || offset < HEADER || offset % ALIGNMENT != 0 || u64_at(footer, 16) != length {
            return Err(self.damaged(&format!(
                "expected a section table that ends at byte {end} of {length}, found {count} entries at byte {offset} of {}",
                u64_at(footer, 16)
            )));
        }
        let table = offset as usize..end as usize;
        let (expected, found) = (u32_at(footer, 12), crc32c::crc32c(&self.bytes[table.clone()]));
        if expected != found {
            return Err(self.damaged(&format!("section table: expected CRC32C {expected:08x}, found {found:08x}")));
        }
        if name.crc32c != found {
            return Err(self.error(format!(
                "the manifest names a file whose section table has CRC32C {:08x}, found {found:08x}: a file of another store or generation; restore the right one",
                name.crc32c
            )));
        }
        Ok(table)
    }

    pub(super) fn read_table(&self, table: Range<usize>) -> Result<Vec<Section>> {
        let limit = table.start as u64;
        let mut sections: Vec<Section> = Vec::new();
        let mut checksums = 0u64;
        let mut end = HEADER;
        for entry in self.bytes[table].chunks_exact(TABLE_ENTRY as usize) {
            let number = u32_at(entry, 0);
            let (offset, length, first_checksum) = (u64_at(entry, 8), u64_at(entry, 16), u64_at(entry, 24));
            let name = SectionKind::from_number(number)
                .map_or_else(|| format!("section {number}"), |k| format!("section {k:?}"));
            let element = Element::from_number(u32_at(entry, 4)).ok_or_else(|| {
                self.damaged(&format!("{name}: expected an element type from 0 to 4, found {}", u32_at(entry, 4)))
            })?;
            if sections.iter().any(|s| s.number == number) {
                return Err(self.damaged(&format!("{name}: expected once, found twice")));
            }
            let expected = end.checked_next_multiple_of(ALIGNMENT);
            if Some(offset) != expected {
                return Err(self.damaged(&format!(
                    "{name}: expected at byte {} (sections follow each other without holes or overlaps), found at byte {offset}",
                    expected.unwrap_or(u64::MAX)
                )));
            }
            end = offset.checked_add(length).filter(|&end| end <= limit).ok_or_else(|| {
                self.damaged(&format!("{name}: expected to end by byte {limit}, found {length} bytes at byte {offset}"))
            })?;
            if length % element.size() as u64 != 0 {
                return Err(self.damaged(&format!(
                    "{name}: expected whole elements of {} bytes, found {length} bytes",
                    element.size()
                )));
            }
            if number != SectionKind::Checksums as u32 {
                if first_checksum != checksums {
                    return Err(self.damaged(&format!(
                        "{name}: expected checksums from {checksums}, found from {first_checksum}"
                    )));
                }
                checksums += length.div_ceil(CHUNK);
            }
            sections.push(Section {
                number,
                element,
                span: offset as usize..end as usize,
                first_checksum,
                crc: u32_at(entry, 32),
            });
        }
        if end.next_multiple_of(ALIGNMENT) != limit {
            return Err(self.damaged(&format!(
                "expected the section table at byte {}, found at byte {limit}",
                end.next_multiple_of(ALIGNMENT)
            )));
        }
        let found =
            sections.last().filter(|s| s.number == SectionKind::Checksums as u32).map_or(0, |s| s.span.len() as u64);
        if found != checksums * 4 {
            return Err(
                self.damaged(&format!("expected {} bytes of checksums as last section, found {found}", checksums * 4))
            );
        }
        Ok(sections)
    }
}

/// Refuses formats that this program cannot read.
pub(crate) fn check_version(path: &Path, major: u16, minor: u16) -> Result<()> {
    if major > FORMAT_MAJOR {
        return Err(Error::format(
            path,
            format!(
                "expected format version {FORMAT_MAJOR}.x, found {major}.{minor}: written by a newer knnlm; upgrade knnlm to read it"
            ),
        ));
    }
    if major == 0 {
        return Err(Error::format(
            path,
            format!("expected format version {FORMAT_MAJOR}.x, found {major}.{minor}: the file is damaged"),
        ));
    }
    Ok(())
}
