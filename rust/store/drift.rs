//! How well codes fit: mean quantisation error of what the codebook was learnt from, and of what was added since.

use crate::Result;
use crate::index::{Codebook, Lists, reconstruct};
use crate::keys::KeyBlock;
use serde::{Deserialize, Serialize};

/// Entries that an error is estimated from.
const SAMPLE: usize = 1024;

/// Mean squared distances between keys and what their codes decode to, from samples. In single precision, which comes back
/// from a manifest as it went in: an interrupted build must end with the bytes of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// Of the entries that were there when the codebook was learnt.
    pub trained_error: f32,
    /// Of those added since.
    pub added_error: f32,
    /// Number of entries added since.
    pub added: u64,
}

impl Fit {
    /// The same after `entries` more with a mean error.
    pub fn with(self, entries: u64, error: f32) -> Fit {
        let added = self.added.saturating_add(entries);
        let sum = f64::from(self.added_error) * self.added as f64 + f64::from(error) * entries as f64;
        let mean = finite(sum / added.max(1) as f64);
        Fit { added, added_error: mean, ..self }
    }

    /// Whether these are errors that keys can have.
    pub(crate) fn is_sound(&self) -> bool {
        [self.trained_error, self.added_error].iter().all(|error| error.is_finite() && *error >= 0.0)
    }

    /// How much larger the error of what was added is, as a fraction; none if nothing was.
    pub fn drift(&self) -> Option<f64> {
        let known = self.added > 0 && self.trained_error > 0.0;
        known.then(|| f64::from(self.added_error) / f64::from(self.trained_error) - 1.0)
    }
}

/// Mean squared distance between some of the keys and what their codes decode to.
pub(crate) fn quantisation_error(codebook: &Codebook, lists: &[Lists], keys: &[KeyBlock]) -> Result<f32> {
    let (d, n) = (codebook.d(), keys.iter().map(KeyBlock::n).sum::<usize>());
    let every = n.div_ceil(SAMPLE).max(1);
    let mut ids = Vec::with_capacity(SAMPLE);
    let mut rows = Vec::with_capacity(SAMPLE * d);
    let mut before = 0;
    for block in keys {
        for i in (before..before + block.n()).filter(|i| i % every == 0) {
            let start = rows.len();
            rows.resize(start + d, 0f32);
            block.read_row(i - before, &mut rows[start..]);
            ids.push(block.first_id + (i - before) as u64);
        }
        before += block.n();
    }
    if ids.is_empty() {
        return Ok(0.0);
    }
    let decoded = reconstruct(codebook, lists, &ids)?;
    let sum: f64 = rows.iter().zip(&decoded).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    Ok(finite(sum / ids.len() as f64))
}

/// In single precision; what is beyond its numbers becomes the largest of them, because JSON has no infinity.
pub(crate) fn finite(mean: f64) -> f32 {
    (mean as f32).min(f32::MAX)
}
