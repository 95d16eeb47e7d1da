//! Whether an index still fits what is in its lists: mean quantisation error of what the codebook was learnt from and of what was
//! added since, and how much was added.

use crate::Result;
use crate::index::{Codebook, Lists, plan, reconstruct};
use crate::keys::KeyBlock;
use crate::search::{Calibration, Measured};
use crate::store::format::fit::{Fit, finite};
use crate::store::format::manifest::Manifest;

/// Growth of the quantisation error above which a new codebook is advised.
const RETRAIN_ABOVE: f64 = 0.2;
/// Growth of the number of entries above which it is, if a new one has twice the lists at least.
const GROWN: u64 = 4;

/// Of so many entries one must have been added for their error to be a reason: a few odd ones tell nothing of a store.
const SHARE: u64 = 100;

/// Entries that an error is estimated from.
const SAMPLE: usize = 1024;

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

    /// Whether most of the entries that recall was measured with are deleted: among fewer, as many neighbors lie further.
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
