//! Whether an index still fits what is in its lists: mean quantisation error of what the codebook was learnt from and of what was
//! added since, and how much was added.

use super::manifest::Manifest;
use crate::Result;
use crate::index::{Codebook, Lists, plan, reconstruct};
use crate::keys::KeyBlock;
use crate::search::{Calibration, Measured};
use serde::{Deserialize, Serialize};

/// Growth of the quantisation error above which a new codebook is advised.
const RETRAIN_ABOVE: f64 = 0.2;
/// Growth of the number of entries above which it is, if a new one has twice the lists at least.
const GROWN: u64 = 4;

/// Of so many entries one must have been added for their error to be a reason: a few odd ones tell nothing of a store.
const SHARE: u64 = 100;

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

impl Manifest {
    /// What searches go by.
    pub(crate) fn measured(&self) -> Option<Measured<'_>> {
        let calibration = self.calibration.as_ref()?;
        let drifted = self.fit.and_then(|fit| fit.drift()).is_some_and(|drift| drift > RETRAIN_ABOVE);
        let older = self.live() - self.added_since(calibration);
        let outgrown = calibration.entries > 0
            && self.live() > older.saturating_mul(2)
            && (drifted || self.live() > older.saturating_mul(GROWN))
            || self.has_shrunk();
        Some(Measured { calibration, outgrown })
    }

    /// Entries, at most all that are there, that were added since recall was measured; by ids, since deletions hide them from
    /// a comparison of sizes.
    fn added_since(&self, calibration: &Calibration) -> u64 {
        let added = match calibration.ids {
            0 => self.live().saturating_sub(calibration.entries),
            ids => self.entries.saturating_sub(ids),
        };
        added.min(self.live())
    }

    /// Whether the recall of the index ought to be measured again, where that can be done.
    pub(crate) fn is_measured_long_ago(&self) -> bool {
        let long_ago = |calibration| self.added_since(calibration).saturating_mul(2) > self.live();
        self.calibration.as_ref().is_none_or(long_ago) || self.has_shrunk()
    }

    /// Whether most of the entries that recall was measured with are deleted: among fewer, as many neighbours lie further.
    fn has_shrunk(&self) -> bool {
        let live = self.live();
        live > 0 && self.calibration.as_ref().is_some_and(|measured| live.saturating_mul(2) < measured.entries)
    }

    /// Why a new index is advised, if it is, for a number of entries.
    pub(crate) fn retrain_reason(&self, codebook: &Codebook, live: u64) -> Option<String> {
        let enough = |fit: &Fit| live > 0 && fit.added.saturating_mul(SHARE) >= live;
        let drift = self.fit.filter(enough).and_then(|fit| fit.drift()).filter(|&drift| drift > RETRAIN_ABOVE);
        if let Some(drift) = drift {
            let than = "larger than of what they were learnt from";
            return Some(match drift.is_finite() {
                true => format!("the error of codes of what was added is {:.0} % {than}", 100.0 * drift),
                false => "codes were learnt from one key, or from equal ones, and do not fit what was added".into(),
            });
        }
        // Few lists that somebody chose for what was there are no reason, nor is a small sample that many were learnt from.
        let lists = codebook.nlist();
        let now = plan(live as usize, codebook.d(), None).0;
        if live > GROWN.saturating_mul(codebook.trained_on()) && now >= 2 * lists {
            let words = "it was built for fewer entries than the";
            return Some(format!("{words} {live} there are: it has {lists} lists, a new one {now}"));
        }
        let measured = self.calibration.as_ref().filter(|_| self.has_shrunk())?;
        Some(format!("recall was measured with {} entries, most of which were deleted since", measured.entries))
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
