//! Named arrays of a segment file: the language between [`crate::store`] (files) and [`crate::index`] (contents).

use crate::Result;
use crate::error::RESTORE;
use std::ops::Range;

/// What a section holds. The number is written to disk and never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SectionKind {
    /// Data: values in corpus order, u32 or u64.
    Values = 1,
    /// Data: raw keys in corpus order, f32 or f16.
    Keys = 2,
    /// Data: fixed-size records of the document table.
    Documents = 3,
    /// Data: names and JSON metadata of the documents, referred to by the records.
    DocumentText = 4,
    /// Data: u32 record numbers of the named documents, sorted by name.
    DocumentNames = 5,
    /// Data: u64 pairs (first id, first row) of the runs of rows whose ids follow each other; only where ids are gone.
    Runs = 6,
    /// Codebook: small JSON of parameters (m, bits, nlist, seed, calibration …).
    Parameters = 16,
    /// Codebook: `nlist × d` f32 centroids.
    Centroids = 17,
    /// Codebook: product-quantiser words, f32.
    Words = 18,
    /// Codebook: anything else the index derives from the above and wants to map (for instance packed panels).
    Derived = 19,
    /// Lists: `nlist + 1` u64 offsets in entries.
    ListOffsets = 32,
    /// Lists: u32 ids relative to the segment's first id, list order.
    ListIds = 33,
    /// Lists: codes, list order.
    Codes = 34,
    /// Lists: not used by this version; factors lie in the blocks of the codes.
    Factors = 35,
    /// Lists: second-level codes for re-ranking, list order.
    SecondCodes = 36,
    /// Deleted: u64 triples (document record, first id, id after the last).
    Deleted = 48,
    /// Any segment: one CRC32C (u32) per MiB of every other section.
    Checksums = 255,
}

/// What the bytes of a section are, for a reader in another language. The number is written to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Element {
    /// Bytes whose meaning follows from the parameters, or text.
    Bytes = 0,
    /// Unsigned 32-bit integers.
    U32 = 1,
    /// Unsigned 64-bit integers.
    U64 = 2,
    /// 16-bit floats.
    F16 = 3,
    /// 32-bit floats.
    F32 = 4,
}

impl Element {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Element::Bytes => 1,
            Element::F16 => 2,
            Element::U32 | Element::F32 => 4,
            Element::U64 => 8,
        }
    }

    /// The element type of a number in a file.
    pub fn from_number(number: u32) -> Option<Element> {
        [Element::Bytes, Element::U32, Element::U64, Element::F16, Element::F32]
            .into_iter()
            .find(|e| *e as u32 == number)
    }
}

impl SectionKind {
    /// Every kind that this version knows.
    pub const ALL: [SectionKind; 17] = [
        SectionKind::Values,
        SectionKind::Keys,
        SectionKind::Documents,
        SectionKind::DocumentText,
        SectionKind::DocumentNames,
        SectionKind::Runs,
        SectionKind::Parameters,
        SectionKind::Centroids,
        SectionKind::Words,
        SectionKind::Derived,
        SectionKind::ListOffsets,
        SectionKind::ListIds,
        SectionKind::Codes,
        SectionKind::Factors,
        SectionKind::SecondCodes,
        SectionKind::Deleted,
        SectionKind::Checksums,
    ];

    /// The kind of a number in a file; none if a later version wrote it.
    pub fn from_number(number: u32) -> Option<SectionKind> {
        SectionKind::ALL.into_iter().find(|kind| *kind as u32 == number)
    }

    /// Element type unless the writer says otherwise (values and keys come in two types each).
    pub fn element(self) -> Element {
        match self {
            SectionKind::Values | SectionKind::DocumentNames | SectionKind::ListIds | SectionKind::Checksums => {
                Element::U32
            }
            SectionKind::ListOffsets | SectionKind::Runs | SectionKind::Deleted => Element::U64,
            SectionKind::Keys | SectionKind::Centroids | SectionKind::Words => Element::F32,
            SectionKind::Documents
            | SectionKind::DocumentText
            | SectionKind::Parameters
            | SectionKind::Derived
            | SectionKind::Codes
            | SectionKind::Factors
            | SectionKind::SecondCodes => Element::Bytes,
        }
    }
}

/// Where sections are read from: an opened segment file.
pub trait SectionSource: Sync {
    /// Bytes of a section, 64-byte aligned; an error that names the file if it is absent.
    fn section(&self, kind: SectionKind) -> Result<&[u8]>;
    /// Checks a part of a section against its checksums, before something is made of it that gets new ones.
    ///
    /// # Errors
    /// `Damaged`, naming file, section and entries.
    fn check(&self, _part: &[u8]) -> Result<()> {
        Ok(())
    }
    /// Asks the system to bring a part of a section into memory, without waiting for it.
    fn advise(&self, _part: &[u8]) {}
    /// An error that names this file.
    fn format_error(&self, message: String) -> crate::Error;
}

/// What the system can be asked to read ahead: mapped rows.
pub trait Advise: Sync {
    /// Asks the system to bring mapped bytes into memory, without waiting for them.
    fn advise(&self, part: &[u8]);
}

/// Rows that lie no farther apart than this are read from disk together, bytes.
const TOGETHER: usize = 64 << 10;

/// Calls `advise` with spans that cover rows of `stride` bytes each, which begin at `ascending`; near ones together.
pub(crate) fn coalesce(ascending: impl Iterator<Item = usize>, stride: usize, mut advise: impl FnMut(Range<usize>)) {
    let mut span = 0..0;
    for at in ascending {
        if at < span.start || at > span.end + TOGETHER {
            if !span.is_empty() {
                advise(span);
            }
            span = at..at;
        }
        span.end = at + stride;
    }
    if !span.is_empty() {
        advise(span);
    }
}

/// Where sections are written to, one after the other, each streamed.
pub trait SectionSink {
    /// Starts a section.
    fn begin(&mut self, kind: SectionKind) -> Result<()>;
    /// Appends bytes to the current section.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
    /// Ends the current section.
    fn end(&mut self) -> Result<()>;
}

/// Views the bytes of a section as numbers; an error if length or alignment do not fit.
pub fn typed<T: bytemuck::Pod>(source: &dyn SectionSource, kind: SectionKind) -> Result<&[T]> {
    let bytes = source.section(kind)?;
    bytemuck::try_cast_slice(bytes).map_err(|e| {
        source.format_error(format!(
            "section {kind:?}: {} bytes do not form whole {} ({e}); {RESTORE}",
            bytes.len(),
            std::any::type_name::<T>()
        ))
    })
}
