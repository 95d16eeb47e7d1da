//! The lists of one segment: which entries each centroid holds, their codes and factors.
//!
//! Sections: *ListOffsets* nlist + 1 u64, in entries; *ListIds* u32, id less the segment's first id, ascending within a
//! list; *SecondCodes* records of `second.rs` in list order, if the
//! codebook has a second level; *Codes* blocks of 16 entries, codes then factors as [`crate::simd::Kernels::scan4`] and
//! [`crate::simd::Kernels::scan8`] read them. A list begins at a block of its own; the rest of its last block has
//! A = +∞, which no limit lets pass.

use super::codebook::Codebook;
use crate::error::RESTORE;
use crate::ids::contains;
use crate::sections::{SectionKind, SectionSource, coalesce, typed};
use crate::simd::{LANES, prefetch};
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Second-level records of `n` entries; empty if the codebook has none.
fn second_section(source: &dyn SectionSource, record_bytes: Option<usize>, n: usize) -> Result<&[u8]> {
    let Some(bytes) = record_bytes else { return Ok(&[]) };
    let records = source.section(SectionKind::SecondCodes)?;
    if n.checked_mul(bytes) != Some(records.len()) {
        return Err(source.format_error(format!(
            "second codes: expected {n} records of {bytes} bytes, found {} bytes; {RESTORE}",
            records.len()
        )));
    }
    Ok(records)
}

/// What opening lists found out, for opening them again without reading and checking anything twice.
#[derive(Clone)]
pub struct KeptLists {
    first_id: u64,
    n: u64,
    block_bytes: usize,
    record_bytes: Option<usize>,
    blocks: Arc<Vec<usize>>,
    gone: Gone,
}

/// What lists know of deleted entries among theirs.
#[derive(Clone)]
enum Gone {
    /// Nobody told: any may be deleted.
    Unknown,
    /// None is.
    Nothing,
    /// Number in each list.
    Counts(Arc<Vec<u32>>),
}

/// Lists of one segment: views of the sections of its file.
pub struct Lists<'a> {
    first_id: u64,
    n: u64,
    offsets: &'a [u64],
    /// First block of each list, and the end.
    blocks: Arc<Vec<usize>>,
    ids: &'a [u32],
    codes: &'a [u8],
    second: &'a [u8],
    record_bytes: Option<usize>,
    block_bytes: usize,
    gone: Gone,
    /// Positions whose ids cannot be read.
    lost: Vec<Range<u64>>,
    source: &'a dyn SectionSource,
}

impl<'a> Lists<'a> {
    /// Views and validates the list sections of entries with ids in `first_id .. first_id + n`.
    ///
    /// # Errors
    /// `Format`, naming the file, for offsets that are not monotone or lengths that do not fit.
    pub fn open(source: &'a dyn SectionSource, codebook: &Codebook, first_id: u64, n: u64) -> Result<Lists<'a>> {
        let wrong = |what: &str, expected: String, found: String| {
            source.format_error(format!("{what}: expected {expected}, found {found}; {RESTORE}"))
        };
        let offsets: &[u64] = typed(source, SectionKind::ListOffsets)?;
        source.check(bytemuck::cast_slice(offsets))?;
        let ids: &[u32] = typed(source, SectionKind::ListIds)?;
        let codes = source.section(SectionKind::Codes)?;
        let block_bytes = codebook.block_bytes();
        if offsets.len() != codebook.nlist() + 1 {
            return Err(wrong("list offsets", format!("{}", codebook.nlist() + 1), offsets.len().to_string()));
        }
        if offsets[0] != 0 || !offsets.is_sorted() || offsets[offsets.len() - 1] != ids.len() as u64 {
            let last = offsets[offsets.len() - 1];
            return Err(wrong("list offsets", format!("ascending from 0 to {}", ids.len()), format!("end {last}")));
        }
        if ids.len() as u64 > n || n > u64::from(u32::MAX) {
            return Err(wrong("entries in lists", format!("at most {n}, below 2³²"), ids.len().to_string()));
        }
        let mut blocks = Vec::with_capacity(offsets.len());
        let mut total = 0;
        blocks.push(0);
        for pair in offsets.windows(2) {
            total += ((pair[1] - pair[0]) as usize).div_ceil(LANES);
            blocks.push(total);
        }
        if total.checked_mul(block_bytes) != Some(codes.len()) {
            return Err(wrong(
                "codes",
                format!("{total} blocks of {block_bytes} bytes"),
                format!("{} bytes", codes.len()),
            ));
        }
        let record_bytes = codebook.second_bytes();
        let second = second_section(source, record_bytes, ids.len())?;
        if first_id.checked_add(n).is_none_or(|end| end > i64::MAX as u64) {
            return Err(wrong("ids", "below 2⁶³".into(), format!("{n} from {first_id}")));
        }
        Ok(Lists {
            first_id,
            n,
            offsets,
            blocks: Arc::new(blocks),
            ids,
            codes,
            second,
            record_bytes,
            block_bytes,
            gone: Gone::Unknown,
            lost: Vec::new(),
            source,
        })
    }

    /// The same without the entries at some positions, ascending, whose ids are damaged.
    pub(crate) fn losing(self, positions: &[Range<u64>]) -> Lists<'a> {
        Lists { lost: positions.to_vec(), ..self }
    }

    /// Whether the entry at `position` in list order is one of these.
    pub(crate) fn is_lost(&self, position: u32) -> bool {
        self.lost.iter().any(|positions| positions.contains(&u64::from(position)))
    }

    /// Checks all ids but the lost ones.
    ///
    /// # Errors
    /// `Damaged`.
    pub(crate) fn check_ids(&self) -> Result<()> {
        let mut start = 0;
        let ends = self.lost.iter().map(|lost| (lost.start, lost.end)).chain([(self.ids.len() as u64, 0)]);
        for (end, next) in ends {
            let part = self.ids.get(start..end as usize).unwrap_or(&[]);
            self.source.check(bytemuck::cast_slice(part))?;
            start = next as usize;
        }
        Ok(())
    }

    /// Views the sections of lists that were opened before.
    ///
    /// # Errors
    /// `Format` if `source` is not the file that `kept` came from.
    pub fn view(source: &'a dyn SectionSource, kept: &KeptLists) -> Result<Lists<'a>> {
        let KeptLists { first_id, n, block_bytes, record_bytes, blocks, gone } = kept.clone();
        let offsets: &[u64] = typed(source, SectionKind::ListOffsets)?;
        let ids: &[u32] = typed(source, SectionKind::ListIds)?;
        let codes = source.section(SectionKind::Codes)?;
        let total = blocks.last().copied().unwrap_or(0);
        if offsets.len() != blocks.len() || ids.len() as u64 > n || codes.len() != total * block_bytes {
            return Err(
                source.format_error("lists: expected the file that was opened, found another; open again".into())
            );
        }
        let second = second_section(source, record_bytes, ids.len())?;
        Ok(Lists {
            first_id,
            n,
            offsets,
            blocks,
            ids,
            codes,
            second,
            record_bytes,
            block_bytes,
            gone,
            lost: Vec::new(),
            source,
        })
    }

    /// What [`Self::view`] needs.
    pub fn keep(&self) -> KeptLists {
        KeptLists {
            first_id: self.first_id,
            n: self.n,
            block_bytes: self.block_bytes,
            record_bytes: self.record_bytes,
            blocks: self.blocks.clone(),
            gone: self.gone.clone(),
        }
    }

    /// Ids that the entries lie in.
    pub fn ids(&self) -> Range<u64> {
        self.first_id..self.first_id + self.n
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Bytes of all sections.
    pub fn bytes(&self) -> u64 {
        (self.offsets.len() * 8 + self.ids.len() * 4 + self.codes.len() + self.second.len()) as u64
    }

    /// Number of entries of every list.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize)
    }

    /// Checks every id: in range and none twice. Reads the whole section.
    ///
    /// # Errors
    /// `Format` names the first wrong one.
    pub fn verify(&self) -> Result<()> {
        let mut seen = vec![false; self.n as usize];
        for (position, &id) in self.ids.iter().enumerate() {
            match seen.get_mut(id as usize) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => return Err(self.wrong(format!("entry {position} in list order repeats id {id}"))),
                None => return Err(self.bad_id(position)),
            }
        }
        Ok(())
    }

    pub(crate) fn wrong(&self, message: String) -> Error {
        self.source.format_error(format!("{message}; {RESTORE}"))
    }

    fn bad_id(&self, position: usize) -> Error {
        let found = self.ids.get(position).map_or("no id".into(), |id| id.to_string());
        self.wrong(format!("entry {position} in list order: expected an id below {}, found {found}", self.n))
    }

    /// The same, knowing which ids are deleted: reads all ids.
    pub(crate) fn without(mut self, deleted: &[Range<u64>]) -> Lists<'a> {
        if deleted.iter().all(|span| span.end <= self.first_id || span.start >= self.first_id + self.n) {
            self.gone = Gone::Nothing;
            return self;
        }
        let is_gone = |&&id: &&u32| contains(deleted, self.first_id + u64::from(id));
        let count = |list: &[u64]| self.ids[list[0] as usize..list[1] as usize].iter().filter(is_gone).count() as u32;
        self.gone = Gone::Counts(Arc::new(self.offsets.windows(2).map(count).collect()));
        self
    }

    /// Number of entries of `list` that are not deleted: how far a query looks must not depend on what is gone.
    pub(crate) fn live_len(&self, list: usize) -> usize {
        self.list_len(list) - if let Gone::Counts(gone) = &self.gone { gone[list] as usize } else { 0 }
    }

    /// Whether `list` may hold deleted entries.
    pub(crate) fn may_hold_deleted(&self, list: usize) -> bool {
        match &self.gone {
            Gone::Unknown => true,
            Gone::Nothing => false,
            Gone::Counts(gone) => gone[list] > 0,
        }
    }

    /// Length of `list`.
    pub(crate) fn list_len(&self, list: usize) -> usize {
        (self.offsets[list + 1] - self.offsets[list]) as usize
    }

    /// Blocks of `list` and the position (in list order) of its first entry.
    pub(crate) fn list(&self, list: usize) -> (&'a [u8], u32) {
        let span = self.blocks[list] * self.block_bytes..self.blocks[list + 1] * self.block_bytes;
        (&self.codes[span], self.offsets[list] as u32)
    }

    /// Id of the entry at `position` in list order, for ordering: damaged ones give a large number.
    pub(crate) fn order(&self, position: u32) -> u64 {
        self.ids.get(position as usize).map_or(u64::MAX, |&id| self.first_id + u64::from(id))
    }

    /// Whether entries have second-level records.
    pub(crate) fn has_second(&self) -> bool {
        self.record_bytes.is_some()
    }

    /// Second-level record of the entry at `position` in list order; empty if there is none.
    pub(crate) fn record(&self, position: u32) -> &'a [u8] {
        let bytes = self.record_bytes.unwrap_or(0);
        (position as usize).checked_mul(bytes).and_then(|at| self.second.get(at..at + bytes)).unwrap_or(&[])
    }

    /// Second-level records in list order, and the bytes of one; none if there are none.
    pub(crate) fn records(&self) -> Option<(&'a [u8], usize)> {
        self.record_bytes.map(|bytes| (self.second, bytes))
    }

    /// Asks the disk for the codes and ids of `list`; returns the bytes of the codes.
    pub(crate) fn advise_list(&self, list: usize) -> usize {
        let codes = self.list(list).0;
        self.source.advise(codes);
        let ids = self.ids.get(self.offsets[list] as usize..self.offsets[list + 1] as usize).unwrap_or(&[]);
        self.source.advise(bytemuck::cast_slice(ids));
        codes.len()
    }

    /// Asks the disk for second-level records of entries at ascending positions; near ones are read together.
    pub(crate) fn advise_records(&self, positions: impl Iterator<Item = u32>) {
        let Some((records, stride)) = self.records() else { return };
        let advise = |span: Range<usize>| records.get(span).into_iter().for_each(|part| self.source.advise(part));
        coalesce(positions.map(|position| position as usize * stride), stride, advise);
    }

    /// Prefetches the id of an entry.
    pub(crate) fn prefetch_id(&self, position: u32) {
        self.ids.get(position as usize..position as usize + 1).into_iter().for_each(prefetch);
    }

    /// Id of the entry at `position` in list order.
    pub(crate) fn id(&self, position: u32) -> Result<u64> {
        match self.ids.get(position as usize) {
            Some(&id) if u64::from(id) < self.n => Ok(self.first_id + u64::from(id)),
            _ => Err(self.bad_id(position as usize)),
        }
    }

    /// List and block bytes of the entry at `position`, and its lane in the block.
    pub(crate) fn block_of(&self, position: usize) -> (usize, &'a [u8], usize) {
        let list = self.offsets.partition_point(|&o| o <= position as u64) - 1;
        let within = position - self.offsets[list] as usize;
        let block = self.blocks[list] + within / LANES;
        (list, &self.codes[block * self.block_bytes..(block + 1) * self.block_bytes], within % LANES)
    }

    /// Checks bytes that [`Self::list`], [`Self::record`] or [`Self::relative_ids`] gave.
    ///
    /// # Errors
    /// `Damaged`, naming the file and the positions of the entries.
    pub(crate) fn check(&self, part: &[u8]) -> Result<()> {
        self.source.check(part)
    }

    /// Ids less the first, in list order.
    pub(crate) fn relative_ids(&self) -> &'a [u32] {
        self.ids
    }
}
