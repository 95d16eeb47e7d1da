//! Sections in memory: an index without files, for tests, benchmarks and short-lived stores.

use crate::sections::{SectionKind, SectionSink, SectionSource};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::PathBuf;

/// Sink and source of sections. Bytes are aligned for every element type.
#[derive(Default)]
pub struct Memory {
    sections: HashMap<SectionKind, (Vec<u64>, usize)>,
    current: Option<(SectionKind, Vec<u8>)>,
}

impl Memory {
    /// Puts or replaces a section.
    pub fn insert(&mut self, kind: SectionKind, bytes: &[u8]) {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        self.sections.insert(kind, (words, bytes.len()));
    }

    /// Removes a section.
    pub fn remove(&mut self, kind: SectionKind) {
        self.sections.remove(&kind);
    }

    /// Bytes of all sections.
    pub fn bytes(&self) -> usize {
        self.sections.values().map(|s| s.1).sum()
    }
}

impl SectionSink for Memory {
    fn begin(&mut self, kind: SectionKind) -> Result<()> {
        match self.current.replace((kind, Vec::new())) {
            None => Ok(()),
            Some((open, _)) => Err(Error::State(format!("section {open:?} is still open; end it before {kind:?}"))),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.current {
            Some((_, section)) => section.extend_from_slice(bytes),
            None => return Err(Error::State("write outside a section; begin one first".into())),
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        match self.current.take() {
            Some((kind, bytes)) => self.insert(kind, &bytes),
            None => return Err(Error::State("end outside a section; begin one first".into())),
        }
        Ok(())
    }
}

impl SectionSource for Memory {
    fn section(&self, kind: SectionKind) -> Result<&[u8]> {
        match self.sections.get(&kind) {
            Some((words, len)) => Ok(&bytemuck::cast_slice(words)[..*len]),
            None => Err(self.format_error(format!("section {kind:?} is missing; write it first"))),
        }
    }

    fn format_error(&self, message: String) -> Error {
        Error::Format { path: PathBuf::from("(memory)"), message }
    }
}
