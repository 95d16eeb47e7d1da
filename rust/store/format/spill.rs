//! Bytes waiting for their section: in memory up to a limit, then in a temporary file.

use super::files::{Folder, OutputFile, TEMPORARY};
use crate::error::Action;
use crate::sections::SectionSink;
use crate::{Error, Result};
use std::fs::File;
use std::io::Read;

/// Bytes kept in memory before a file is started.
const LIMIT: usize = 16 << 20;

/// An append-only buffer that moves to disk when it grows.
#[derive(Debug)]
pub struct Spill {
    folder: Folder,
    name: String,
    memory: Vec<u8>,
    file: Option<OutputFile>,
    limit: usize,
}

impl Spill {
    /// An empty buffer that spills into `stem` with the temporary ending.
    pub fn new(folder: &Folder, stem: &str) -> Spill {
        Spill {
            folder: folder.clone(),
            name: format!("{stem}{TEMPORARY}"),
            memory: Vec::new(),
            file: None,
            limit: LIMIT,
        }
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.memory.extend_from_slice(bytes);
        if self.memory.len() > self.limit {
            let file = match &mut self.file {
                Some(file) => file,
                None => self.file.insert(self.folder.create(&self.name)?),
            };
            file.write(&self.memory)?;
            self.memory.clear();
        }
        Ok(())
    }

    /// Hands everything to `sink` and removes the file.
    pub fn drain(&mut self, sink: &mut dyn SectionSink) -> Result<()> {
        if let Some(output) = self.file.take() {
            let path = output.path().to_path_buf();
            drop(output);
            let read = |e| Error::io(&path, Action::Read, e);
            let mut file = File::open(&path).map_err(read)?;
            let mut buffer = vec![0; 1 << 20];
            loop {
                let n = file.read(&mut buffer).map_err(read)?;
                if n == 0 {
                    break;
                }
                sink.write(&buffer[..n])?;
            }
            self.folder.remove(&self.name)?;
        }
        sink.write(&self.memory)?;
        self.memory = Vec::new();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sections::SectionKind;
    use crate::store::format::files::Disk;
    use std::sync::Arc;

    #[derive(Default)]
    struct Bytes(Vec<u8>);

    impl SectionSink for Bytes {
        fn begin(&mut self, _: SectionKind) -> Result<()> {
            Ok(())
        }
        fn write(&mut self, bytes: &[u8]) -> Result<()> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
        fn end(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn gives_back_what_was_written_from_memory_and_from_disk() {
        let folder = tempfile::tempdir().expect("folder");
        for limit in [1 << 20, 100] {
            let mut spill = Spill::new(&Folder::new(folder.path(), Arc::new(Disk)), "values");
            spill.limit = limit;
            let mut want = Vec::new();
            for i in 0..50u8 {
                spill.write(&[i; 7]).expect("write");
                want.extend([i; 7]);
            }
            assert_eq!(spill.file.is_some(), limit == 100);
            let mut got = Bytes::default();
            spill.drain(&mut got).expect("drain");
            assert!(got.0 == want);
            assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 0, "the file must be gone");
        }
    }
}
