//! What all lists of a store share: centroids, rotation, product-quantiser words, calibration.

use crate::sections::SectionSource;
use crate::{Metric, Result};

/// A trained codebook: views of the sections of its segment file.
pub struct Codebook<'a> {
    d: usize,
    metric: Metric,
    source: &'a dyn SectionSource,
}

impl<'a> Codebook<'a> {
    /// Views and validates the codebook sections for keys of dimension `d`. Copies nothing.
    ///
    /// # Errors
    /// `Format`, naming the file, for sections that do not fit together.
    pub fn open(source: &'a dyn SectionSource, d: usize, metric: Metric) -> Result<Codebook<'a>> {
        Ok(Codebook { d, metric, source })
    }

    /// Dimension of the keys.
    pub fn d(&self) -> usize {
        self.d
    }

    /// How keys are compared.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// Number of lists.
    pub fn nlist(&self) -> usize {
        let _ = self.source;
        unimplemented!()
    }

    /// Number of sub-quantisers.
    pub fn m(&self) -> usize {
        unimplemented!()
    }

    /// Bits per sub-quantiser: 4 or 8.
    pub fn bits(&self) -> u8 {
        unimplemented!()
    }

    /// Bytes of one entry's code, without its two factors.
    pub fn code_bytes(&self) -> usize {
        unimplemented!()
    }

    /// Lists that a search scans when not told otherwise.
    pub fn default_nprobe(&self) -> usize {
        unimplemented!()
    }

    /// Softmax temperature that fits the distances of this store, for use before tuning.
    pub fn default_temperature(&self) -> f32 {
        unimplemented!()
    }

    /// Seed that it was trained with.
    pub fn seed(&self) -> u64 {
        unimplemented!()
    }
}
