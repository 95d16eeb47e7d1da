//! The lists of one segment: which entries each centroid holds, their codes and factors.

use super::Codebook;
use crate::Result;
use crate::sections::SectionSource;
use std::ops::Range;

/// Lists of one segment: views of the sections of its file.
pub struct Lists<'a> {
    first_id: u64,
    n: u64,
    source: &'a dyn SectionSource,
}

impl<'a> Lists<'a> {
    /// Views and validates the list sections of entries with ids in `first_id .. first_id + n`.
    ///
    /// # Errors
    /// `Format`, naming the file, for offsets that are not monotone or lengths that do not fit.
    pub fn open(source: &'a dyn SectionSource, codebook: &Codebook, first_id: u64, n: u64) -> Result<Lists<'a>> {
        let _ = codebook;
        Ok(Lists { first_id, n, source })
    }

    /// Ids that the entries lie in.
    pub fn ids(&self) -> Range<u64> {
        let _ = self.source;
        self.first_id..self.first_id + self.n
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        unimplemented!()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all sections.
    pub fn bytes(&self) -> u64 {
        unimplemented!()
    }

    /// Number of entries of every list.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        std::iter::empty()
    }
}
