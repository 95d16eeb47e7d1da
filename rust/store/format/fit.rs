//! How well an index fits what is in its lists, as the manifest remembers it.

use serde::{Deserialize, Serialize};

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

    /// How much larger the error of what was added is, as a fraction; none if nothing was. Infinite where the codebook was
    /// learnt from keys that it codes without an error: from one, or from equal ones.
    pub fn drift(&self) -> Option<f64> {
        let (added, trained) = (f64::from(self.added_error), f64::from(self.trained_error));
        match () {
            _ if self.added == 0 => None,
            _ if trained > 0.0 => Some(added / trained - 1.0),
            _ => Some(if added > 0.0 { f64::INFINITY } else { 0.0 }),
        }
    }
}

/// In single precision; what is beyond its numbers becomes the largest of them, because JSON has no infinity.
pub(crate) fn finite(mean: f64) -> f32 {
    (mean as f32).min(f32::MAX)
}
