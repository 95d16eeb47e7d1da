//! Sections in memory: an index without files, for tests, benchmarks and short-lived stores.

use crate::aligned::Aligned;
use crate::error::Why;
use crate::sections::{SectionKind, SectionSink, SectionSource};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::PathBuf;

/// Sink and source of sections. Bytes are aligned as those of a file are.
#[derive(Default)]
pub struct Memory {
    sections: HashMap<SectionKind, Aligned<u8>>,
    current: Option<(SectionKind, Vec<u8>)>,
}

impl Memory {
    /// Puts or replaces a section.
    pub fn insert(&mut self, kind: SectionKind, bytes: &[u8]) {
        let mut section = Aligned::zeros(bytes.len());
        section.copy_from_slice(bytes);
        self.sections.insert(kind, section);
    }

    /// Removes a section.
    pub fn remove(&mut self, kind: SectionKind) {
        self.sections.remove(&kind);
    }

    /// Bytes of all sections.
    pub fn bytes(&self) -> usize {
        self.sections.values().map(|s| s.len()).sum()
    }
}

impl SectionSink for Memory {
    fn begin(&mut self, kind: SectionKind) -> Result<()> {
        match self.current.replace((kind, Vec::new())) {
            None => Ok(()),
            Some((open, _)) => {
                Err(Error::state(Why::Broken, format!("section {open:?} is still open; end it before {kind:?}")))
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.current {
            Some((_, section)) => section.extend_from_slice(bytes),
            None => return Err(Error::state(Why::Broken, "write outside a section; begin one first")),
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        match self.current.take() {
            Some((kind, bytes)) => self.insert(kind, &bytes),
            None => return Err(Error::state(Why::Broken, "end outside a section; begin one first")),
        }
        Ok(())
    }
}

impl SectionSource for Memory {
    fn section(&self, kind: SectionKind) -> Result<&[u8]> {
        match self.sections.get(&kind) {
            Some(section) => Ok(section),
            None => Err(self.format_error(format!("section {kind:?} is missing; write it first"))),
        }
    }

    fn format_error(&self, message: String) -> Error {
        Error::Format { path: PathBuf::from("(memory)"), message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_come_back_and_calls_out_of_order_are_errors() {
        let mut memory = Memory::default();
        assert!(matches!(memory.write(b"x"), Err(Error::State { message: m, .. }) if m.contains("outside")));
        assert!(matches!(memory.end(), Err(Error::State { message: m, .. }) if m.contains("outside")));
        memory.begin(SectionKind::Words).expect("begin");
        memory.write(b"ab").expect("write");
        memory.write(b"c").expect("write");
        memory.end().expect("end");
        assert_eq!((memory.section(SectionKind::Words).expect("there"), memory.bytes()), (&b"abc"[..], 3));
        assert!(
            matches!(memory.section(SectionKind::Codes), Err(Error::Format { message, .. }) if message.contains("Codes"))
        );
        memory.remove(SectionKind::Words);
        assert!(memory.section(SectionKind::Words).is_err());
        memory.begin(SectionKind::Words).expect("begin");
        assert!(
            matches!(memory.begin(SectionKind::Codes), Err(Error::State { message: m, .. }) if m.contains("Words is still open"))
        );
    }
}
