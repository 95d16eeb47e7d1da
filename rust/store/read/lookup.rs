//! Entries and documents of a store, by id, range or name.

use super::snapshot::{DataSegment, Snapshot};
use crate::error::Why;
use crate::ids::IdSet;
use crate::ids::id_set;
use crate::sections::{SectionKind, SectionSource, coalesce};
use crate::store::format::documents::{Document, DocumentKey, DocumentTable};
use crate::store::format::values::{Values, ValuesMut};
use crate::{Error, Result};
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// Values of some entries, and where in which document they lie. Ids that do not exist have an all-ones value and no document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// Values.
    pub values: Values,
    /// Numbers of their documents, −1 = missing.
    pub documents: Vec<i64>,
    /// Positions in their documents, −1 = missing.
    pub positions: Vec<i64>,
}

impl Snapshot {
    /// Number of a document.
    ///
    /// # Errors
    /// `Argument` for one that the store does not have.
    pub fn document_index(&self, document: &DocumentKey) -> Result<u64> {
        let n = self.manifest.documents();
        match document {
            DocumentKey::Index(index) if *index < n => Ok(*index),
            DocumentKey::Index(index) => {
                Err(Error::Argument(format!("document: expected a number below {n}, found {index}")))
            }
            DocumentKey::Name(name) => self.find_document(name)?.ok_or_else(|| {
                Error::Argument(format!("document: expected the name of one of {n} documents, found {name:?}"))
            }),
        }
    }

    /// Ids of the entries of some documents.
    ///
    /// # Errors
    /// `Argument` for one that the store does not have.
    pub fn ids_of(&self, documents: &[DocumentKey]) -> Result<IdSet> {
        let range = |key| self.document(self.document_index(key)?).map(|d| d.start..d.end);
        Ok(id_set(documents.iter().map(range).collect::<Result<_>>()?))
    }

    /// Values, documents and positions of entries; −1 and other ids that do not exist give missing ones.
    pub fn get(&self, ids: &[i64]) -> Result<Entries> {
        let (documents, positions) = self.positions_of(ids)?;
        Ok(Entries { values: self.values_of(ids)?, documents, positions })
    }

    /// Documents of entries and positions in them, −1 for ids that do not exist.
    pub fn positions_of(&self, ids: &[i64]) -> Result<(Vec<i64>, Vec<i64>)> {
        let (mut documents, mut positions) = (Vec::with_capacity(ids.len()), Vec::with_capacity(ids.len()));
        let mut last: Option<(u64, Document)> = None; // neighbors in a list of ids often share a document
        for &id in ids {
            let known = u64::try_from(id).ok().filter(|&id| id < self.manifest.entries);
            let (document, position) = match (known, &last) {
                (None, _) => (-1, -1),
                (Some(id), Some((index, d))) if (d.start..d.end).contains(&id) => {
                    (*index as i64, (id - d.start) as i64)
                }
                (Some(id), _) => match self.document_of(id)? {
                    None => (-1, -1),
                    Some(index) => {
                        let document = self.document(index)?;
                        let position = id.saturating_sub(document.start) as i64;
                        last = Some((index, document));
                        (index as i64, position)
                    }
                },
            };
            documents.push(document);
            positions.push(position);
        }
        Ok((documents, positions))
    }

    /// Raw keys of a range of ids as f32, row-major; checked against their checksums.
    ///
    /// # Errors
    /// `Damaged`; `Argument` for a range that does not exist; `State` where raw keys are not kept.
    pub fn keys(&self, ids: Range<u64>) -> Result<Vec<f32>> {
        self.check_range(&ids)?;
        let d = self.manifest.dim;
        let blocks = self.key_blocks(&ids)?;
        let found: u64 = blocks.iter().map(|b| b.n() as u64).sum();
        if found != self.pieces(&ids).map(|piece| piece.rows.len() as u64).sum::<u64>() {
            return Err(keys_not_kept(self, "raw keys"));
        }
        if found != ids.end - ids.start {
            return Err(Error::Argument(format!(
                "raw keys of {} .. {}: expected entries that exist, found {} that are deleted; ask document by document",
                ids.start,
                ids.end,
                ids.end - ids.start - found
            )));
        }
        self.check_keys(&ids, &AtomicBool::new(false))?;
        let mut out = vec![0f32; found as usize * d];
        let mut rows = out.chunks_exact_mut(d);
        for block in &blocks {
            for (i, row) in (0..block.n()).zip(&mut rows) {
                block.read_row(i, row);
            }
        }
        Ok(out)
    }

    /// Values of a range of ids; all ones for those that are deleted. Checked against their checksums.
    ///
    /// # Errors
    /// `Damaged`; `Argument` for a range that does not exist.
    pub fn values(&self, ids: Range<u64>) -> Result<Values> {
        self.check_range(&ids)?;
        let mut out = Values::try_with_capacity(self.manifest.values, ids.end - ids.start)?;
        let mut next = ids.start;
        for piece in self.pieces(&ids) {
            (next..piece.first_id).for_each(|_| out.push(None));
            next = piece.first_id + piece.rows.len() as u64;
            piece.segment.check(SectionKind::Values, piece.rows.clone())?;
            out.extend(piece.segment.values()?, piece.rows);
        }
        (next..ids.end).for_each(|_| out.push(None));
        Ok(out)
    }

    /// First id and id after the last of every document, in order: what a table of many documents costs least as.
    ///
    /// # Errors
    /// `Damaged`; `Format` for records that do not fit.
    pub fn document_spans(&self) -> Result<(Vec<u64>, Vec<u64>)> {
        let n = usize::try_from(self.manifest.documents()).unwrap_or(0);
        let (mut starts, mut ends) = (Vec::with_capacity(n.min(1 << 20)), Vec::with_capacity(n.min(1 << 20)));
        for (segment, record) in self.data.iter().zip(&self.manifest.data) {
            let table = DocumentTable::open(&segment.file)?;
            for j in 0..table.len() {
                if self.deleted.holds_record(segment.first_document + j as u64) {
                    continue;
                }
                let ids = table.ids(j)?;
                if j == 0 && record.continues && !starts.is_empty() {
                    ends.pop(); // a document that goes on: the later record has all of it
                    starts.pop();
                }
                starts.push(ids.start);
                ends.push(ids.end);
            }
        }
        Ok((starts, ends))
    }

    /// Numbers of the documents that ids lie in, −1 for ids that do not exist.
    pub fn documents_of(&self, ids: &[i64]) -> Result<Vec<i64>> {
        let find = |&id: &i64| match u64::try_from(id) {
            Ok(id) => Ok(self.document_of(id)?.map_or(-1, |index| index as i64)),
            Err(_) => Ok(-1),
        };
        ids.iter().map(find).collect()
    }

    pub(crate) fn check_range(&self, ids: &Range<u64>) -> Result<()> {
        if ids.start > ids.end || ids.end > self.manifest.entries {
            return Err(Error::Argument(format!(
                "expected ids within 0 .. {}, found {} .. {}",
                self.manifest.entries, ids.start, ids.end
            )));
        }
        Ok(())
    }

    /// Values of ids; all ones for ids that do not exist.
    fn values_of(&self, ids: &[i64]) -> Result<Values> {
        let mut out = Values::zeros(self.manifest.values, ids.len());
        let mut into = out.as_mut();
        for (i, &id) in ids.iter().enumerate() {
            let known = u64::try_from(id).ok().and_then(|id| self.locate(id));
            let value = |(segment, row): (&DataSegment, usize)| {
                segment.check(SectionKind::Values, row..row + 1)?;
                Ok(segment.values()?.get(row))
            };
            into.set(i, known.map(value).transpose()?);
        }
        Ok(out)
    }

    /// Asks the disk for the values of entries that a search found; near ones are read together.
    pub(crate) fn advise_values(&self, ids: &[i64]) -> Result<()> {
        let mut ids: Vec<u64> = ids.iter().filter_map(|&id| u64::try_from(id).ok()).collect();
        ids.sort_unstable();
        ids.dedup();
        for segment in &self.data {
            let own =
                ids.partition_point(|&id| id < segment.ids.start)..ids.partition_point(|&id| id < segment.ids.end);
            let values = segment.values()?;
            let (bytes, stride) = (values.as_bytes(), values.as_bytes().len() / values.len().max(1));
            let rows = ids[own].iter().filter_map(|&id| segment.row_of(id));
            let advise = |span| bytes.get(span).into_iter().for_each(|part| segment.file.advise(part));
            coalesce(rows.map(|row| row * stride), stride, advise);
        }
        Ok(())
    }

    /// Writes the values of entries that a search found, which are not deleted; all ones for −1.
    pub(crate) fn values_found(&self, ids: &[i64], mut out: ValuesMut) -> Result<()> {
        let segments: Vec<_> = self.data.iter().map(|s| Ok((s, s.values()?))).collect::<Result<_>>()?;
        // Most entries of most stores lie in one segment, most often with ids that count from its first.
        let Some(&(main, values)) = segments.iter().max_by_key(|(s, _)| s.ids.end - s.ids.start) else {
            (0..ids.len()).for_each(|i| out.set(i, None));
            return Ok(());
        };
        let (start, counted) = (main.ids.start, if main.counts_ids() { values.len() as u64 } else { 0 });
        for (i, &id) in ids.iter().enumerate() {
            let row = (id as u64).wrapping_sub(start);
            let value = match u64::try_from(id) {
                _ if row < counted => Some(values.get(row as usize)),
                Ok(id) if main.ids.contains(&id) => main.row_of(id).map(|row| values.get(row)),
                Ok(id) => {
                    let after = segments.partition_point(|(s, _)| s.ids.start <= id);
                    let segment = segments[..after].iter().rev().find(|(s, _)| s.ids.contains(&id));
                    segment.and_then(|(s, values)| s.row_of(id).map(|row| values.get(row)))
                }
                Err(_) => None,
            };
            out.set(i, value);
        }
        Ok(())
    }
}

/// Why raw keys are missing, and what to do.
pub(crate) fn keys_not_kept(snapshot: &Snapshot, what: &str) -> Error {
    Error::state(
        Why::KeysNotKept,
        format!(
            "{what}: expected raw keys of all {} entries, found a store that does not keep them",
            snapshot.manifest.entries
        ),
    )
}
