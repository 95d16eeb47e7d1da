//! Named arrays of a segment file: the language between [`crate::store`] (files) and [`crate::index`] (contents).

use crate::Result;

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
    /// Lists: per-entry factors, list order.
    Factors = 35,
    /// Lists: second-level codes for re-ranking, list order.
    SecondCodes = 36,
}

/// Where sections are read from: an opened segment file.
pub trait SectionSource: Sync {
    /// Bytes of a section, 64-byte aligned; an error that names the file if it is absent.
    fn section(&self, kind: SectionKind) -> Result<&[u8]>;
    /// An error that names this file.
    fn format_error(&self, message: String) -> crate::Error;
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
            "section {kind:?}: {} bytes do not form whole {} ({e}); restore the file from a copy",
            bytes.len(),
            std::any::type_name::<T>()
        ))
    })
}
