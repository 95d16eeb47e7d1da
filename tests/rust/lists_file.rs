//! What physically lies in a lists segment, read by nothing but `docs/format.md`: padding as well as entries.

use crate::forge::{table, u32_at, u64_at};
use knnlm::index::CodeKind;
use knnlm::sections::SectionKind;
use std::path::Path;

const LANES: usize = 16;

/// One of the 16 places of a block: the bytes (or nibbles) of its code, then A and B.
pub type Lane = Vec<u8>;

/// A lists segment.
pub struct ListsFile {
    /// Number of entries before each list, and in all.
    pub offsets: Vec<u64>,
    /// Id less the segment's first, list order.
    pub ids: Vec<u32>,
    /// Section `Codes`.
    pub codes: Vec<u8>,
    /// Second-level records, one after the other.
    pub second: Vec<u8>,
    kind: CodeKind,
    dim: usize,
}

impl ListsFile {
    /// Reads a file whose codebook has keys of dimension `dim` and codes of `kind`.
    pub fn read(file: &Path, dim: usize, kind: CodeKind) -> ListsFile {
        let bytes = std::fs::read(file).expect("read");
        let section = |kind| section(&bytes, kind).unwrap_or(&[]);
        ListsFile {
            offsets: section(SectionKind::ListOffsets).chunks_exact(8).map(|x| u64_at(x, 0)).collect(),
            ids: section(SectionKind::ListIds).chunks_exact(4).map(|x| u32_at(x, 0)).collect(),
            codes: section(SectionKind::Codes).to_vec(),
            second: section(SectionKind::SecondCodes).to_vec(),
            kind,
            dim,
        }
    }

    /// The 16 lanes of every block.
    pub fn lanes(&self) -> Vec<[Lane; LANES]> {
        let code_bytes = match self.kind {
            CodeKind { levels: true, .. } => self.dim.div_ceil(128) * 64,
            CodeKind { m, bits, .. } => m * usize::from(bits) / 8,
        };
        let blocks = self.codes.chunks_exact(LANES * (code_bytes + 8));
        assert!(blocks.remainder().is_empty(), "whole blocks");
        blocks.map(|block| std::array::from_fn(|lane| self.lane(block, lane))).collect()
    }

    fn lane(&self, block: &[u8], lane: usize) -> Lane {
        let (codes, factors) = block.split_at(block.len() - 8 * LANES);
        let mut out: Vec<u8> = match self.kind {
            CodeKind { levels: true, .. } => {
                codes.chunks_exact(64).flat_map(|unit| unit[4 * lane..4 * lane + 4].to_vec()).collect()
            }
            _ => codes.chunks_exact(LANES).map(|row| row[lane]).collect(),
        };
        out.extend(&factors[4 * lane..4 * lane + 4]);
        out.extend(&factors[4 * (LANES + lane)..4 * (LANES + lane) + 4]);
        out
    }

    /// Lane and second-level record (empty if there are none) of each entry, list order.
    pub fn entries(&self) -> Vec<(u32, Lane, &[u8])> {
        let lanes = self.lanes();
        let record = self.second.len() / self.ids.len().max(1);
        let mut block = 0;
        let mut entries = Vec::new();
        for list in self.offsets.windows(2) {
            for place in list[0]..list[1] {
                let (at, within) = (place as usize, (place - list[0]) as usize);
                let lane = lanes[block + within / LANES][within % LANES].clone();
                entries.push((self.ids[at], lane, &self.second[at * record..(at + 1) * record]));
            }
            block += ((list[1] - list[0]) as usize).div_ceil(LANES);
        }
        entries
    }
}

/// Bytes of a section of a segment file, if it is there.
pub fn section(bytes: &[u8], kind: SectionKind) -> Option<&[u8]> {
    let (start, count) = table(bytes);
    let entry = (0..count).map(|i| start + 48 * i).find(|&e| u32_at(bytes, e) == kind as u32)?;
    let (offset, length) = (u64_at(bytes, entry + 8) as usize, u64_at(bytes, entry + 16) as usize);
    Some(&bytes[offset..offset + length])
}
