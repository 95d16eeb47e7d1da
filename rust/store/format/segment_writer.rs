//! Writes a segment file from its start to its end, one section after the other, with one MiB of memory.

use super::files::{Folder, OutputFile, TEMPORARY};
use super::layout::{
    ALIGNMENT, CHUNK, END_MAGIC, FOOTER, FORMAT_MAJOR, FORMAT_MINOR, HEADER, MAGIC, SegmentKind, SegmentName,
    TABLE_ENTRY,
};
use crate::error::Why;
use crate::sections::{Element, SectionKind, SectionSink};
use crate::{Error, Result};

/// A segment file under its temporary name. Dropping it leaves that for the next writer to remove.
#[derive(Debug)]
pub struct SegmentWriter {
    folder: Folder,
    name: String,
    output: OutputFile,
    written: u64,
    table: Vec<u8>,
    checksums: Vec<u8>,
    current: Option<Open>,
    chunk: Vec<u8>,
}

/// The section being written.
#[derive(Debug)]
struct Open {
    kind: SectionKind,
    element: Element,
    offset: u64,
    first_checksum: usize,
}

impl SegmentWriter {
    /// Starts `name` in `folder`.
    pub fn create(folder: &Folder, name: &str, kind: SegmentKind) -> Result<SegmentWriter> {
        let mut output = folder.create(&format!("{name}{TEMPORARY}"))?;
        let mut header = Vec::with_capacity(HEADER as usize);
        header.extend(MAGIC);
        header.extend(FORMAT_MAJOR.to_le_bytes());
        header.extend(FORMAT_MINOR.to_le_bytes());
        header.extend((kind as u32).to_le_bytes());
        header.resize(60, 0);
        header.extend(crc32c::crc32c(&header).to_le_bytes());
        output.write(&header)?;
        Ok(SegmentWriter {
            folder: folder.clone(),
            name: name.to_owned(),
            output,
            written: HEADER,
            table: Vec::new(),
            checksums: Vec::new(),
            current: None,
            chunk: Vec::new(),
        })
    }

    /// Starts a section whose element type is not the usual one of its kind.
    pub fn begin_as(&mut self, kind: SectionKind, element: Element) -> Result<()> {
        if let Some(open) = &self.current {
            return Err(out_of_order(format!("section {:?} is still open; end it before {kind:?}", open.kind)));
        }
        self.pad()?;
        self.current = Some(Open { kind, element, offset: self.written, first_checksum: self.checksums.len() / 4 });
        Ok(())
    }

    /// Writes a whole section.
    pub fn section(&mut self, kind: SectionKind, element: Element, bytes: &[u8]) -> Result<()> {
        self.begin_as(kind, element)?;
        self.write(bytes)?;
        self.end()
    }

    /// Writes checksums, table and footer, forces the file to the disk and gives it its name.
    pub fn finish(mut self) -> Result<SegmentName> {
        if let Some(open) = &self.current {
            return Err(out_of_order(format!("{}: finished inside section {:?}; end it first", self.name, open.kind)));
        }
        if !self.checksums.is_empty() {
            self.pad()?;
            let checksums = std::mem::take(&mut self.checksums);
            let crc = crc32c::crc32c(&checksums);
            self.table_entry(SectionKind::Checksums, Element::U32, self.written, checksums.len() as u64, 0, crc);
            self.put(&checksums)?;
        }
        self.pad()?;
        let bytes = self.written + self.table.len() as u64 + FOOTER;
        let crc32c = crc32c::crc32c(&self.table);
        let mut footer = Vec::with_capacity(FOOTER as usize);
        footer.extend(self.written.to_le_bytes());
        footer.extend(((self.table.len() as u64 / TABLE_ENTRY) as u32).to_le_bytes());
        footer.extend(crc32c.to_le_bytes());
        footer.extend(bytes.to_le_bytes());
        footer.resize(52, 0);
        footer.extend(crc32c::crc32c(&footer).to_le_bytes());
        footer.extend(END_MAGIC);
        let table = std::mem::take(&mut self.table);
        self.put(&table)?;
        self.put(&footer)?;
        self.output.sync()?;
        drop(self.output);
        self.folder.rename(&format!("{}{TEMPORARY}", self.name), &self.name)?;
        Ok(SegmentName { file: self.name, bytes, crc32c })
    }

    fn table_entry(
        &mut self,
        kind: SectionKind,
        element: Element,
        offset: u64,
        length: u64,
        first_checksum: u64,
        crc: u32,
    ) {
        self.table.extend((kind as u32).to_le_bytes());
        self.table.extend((element as u32).to_le_bytes());
        self.table.extend(offset.to_le_bytes());
        self.table.extend(length.to_le_bytes());
        self.table.extend(first_checksum.to_le_bytes());
        self.table.extend(crc.to_le_bytes());
        self.table.resize(self.table.len().next_multiple_of(TABLE_ENTRY as usize), 0);
    }

    fn pad(&mut self) -> Result<()> {
        let padding = self.written.next_multiple_of(ALIGNMENT) - self.written;
        self.put(&[0; ALIGNMENT as usize][..padding as usize])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if !bytes.is_empty() {
            self.output.write(bytes)?;
            self.written += bytes.len() as u64;
        }
        Ok(())
    }

    fn put_chunk(&mut self) -> Result<()> {
        let chunk = std::mem::take(&mut self.chunk);
        self.put(&chunk)?;
        self.checksums.extend(crc32c::crc32c(&chunk).to_le_bytes());
        self.chunk = chunk;
        self.chunk.clear();
        Ok(())
    }
}

impl SectionSink for SegmentWriter {
    fn begin(&mut self, kind: SectionKind) -> Result<()> {
        self.begin_as(kind, kind.element())
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        if self.current.is_none() {
            return Err(out_of_order("write outside a section; begin one first".into()));
        }
        while !bytes.is_empty() {
            let room = CHUNK as usize - self.chunk.len();
            let (head, tail) = bytes.split_at(room.min(bytes.len()));
            self.chunk.extend_from_slice(head);
            bytes = tail;
            if self.chunk.len() == CHUNK as usize {
                self.put_chunk()?;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let Some(open) = self.current.take() else {
            return Err(out_of_order("end outside a section; begin one first".into()));
        };
        if !self.chunk.is_empty() {
            self.put_chunk()?;
        }
        let length = self.written - open.offset;
        let crc = crc32c::crc32c(&self.checksums[open.first_checksum * 4..]);
        self.table_entry(open.kind, open.element, open.offset, length, open.first_checksum as u64, crc);
        Ok(())
    }
}

/// As sections in memory say it (`index/memory.rs`).
fn out_of_order(message: String) -> Error {
    Error::state(Why::Broken, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sections::SectionSource;
    use crate::store::format::files::Disk;
    use crate::store::format::segment::SegmentFile;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    fn bytes(seed: u64, length: usize) -> Vec<u8> {
        (0..length as u64).map(|i| (i.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }

    #[test]
    fn calls_out_of_order_are_errors() {
        let folder = tempfile::tempdir().expect("folder");
        let folder = Folder::new(folder.path(), Arc::new(Disk));
        let mut writer = SegmentWriter::create(&folder, "lists-00000001.seg", SegmentKind::Lists).expect("create");
        let refused = |outcome: Result<()>, words: &str| {
            let error = outcome.expect_err("out of order");
            assert!(matches!(&error, Error::State { why: Why::Broken, message } if message.contains(words)), "{error}");
        };
        refused(writer.write(b"x"), "outside a section");
        refused(writer.end(), "outside a section");
        writer.begin(SectionKind::Codes).expect("begin");
        refused(writer.begin(SectionKind::ListIds), "Codes is still open");
        refused(writer.finish().map(drop), "finished inside section Codes");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
        #[test]
        fn sections_come_back_aligned_whatever_their_lengths(
            lengths in prop::collection::vec(prop_oneof![0usize..200, (CHUNK as usize - 2)..(CHUNK as usize + 2)], 0..6),
            piece in 1usize..100_000,
            seed: u64,
        ) {
            let folder = tempfile::tempdir().expect("folder");
            let path = folder.path();
            let folder = Folder::new(path, Arc::new(Disk));
            let kinds = [SectionKind::Codes, SectionKind::Factors, SectionKind::Parameters, SectionKind::Derived, SectionKind::Documents];
            let sections: Vec<_> = kinds.into_iter().zip(&lengths).map(|(kind, &n)| (kind, bytes(seed, n))).collect();
            let mut writer = SegmentWriter::create(&folder, "lists-00000001.seg", SegmentKind::Lists).expect("create");
            for (kind, bytes) in &sections {
                writer.begin(*kind).expect("begin");
                bytes.chunks(piece).for_each(|piece| writer.write(piece).expect("write"));
                writer.end().expect("end");
            }
            let name = writer.finish().expect("finish");
            prop_assert_eq!(std::fs::read_dir(path).expect("list").count(), 1);
            let file = SegmentFile::open(path, &name, SegmentKind::Lists).expect("open");
            for (kind, bytes) in &sections {
                let found = file.section(*kind).expect("section");
                prop_assert!(found == &bytes[..]);
                prop_assert_eq!(found.as_ptr() as usize % ALIGNMENT as usize, 0);
            }
            prop_assert!(file.section(SectionKind::Words).is_err());
            prop_assert_eq!(file.verify(&|_| (), &AtomicBool::new(false)), vec![]);
        }
    }
}
