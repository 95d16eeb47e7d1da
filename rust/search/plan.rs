//! How far an approximate search looks and how many candidates it scores again, for an asked recall.
//!
//! A [`Calibration`] is measured after a build: stored keys serve as queries, their own entries left out, and every setting's
//! recall is counted against the exact scan. A search takes what lies between the two measured settings, in the order of
//! their cost, that the goal lies between. Each way of scoring candidates again has settings of its own: codes find other
//! neighbors than raw keys among the same candidates.

use super::probes::Reach;
use super::request::{Request, Rerank};
use crate::error::Why;
use crate::index::Codebook;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Recall that a search aims at when it is told nothing: at .95 the neighbors that are missing cost 0.4 % of perplexity where
/// the weight of p_kNN is large, at .97 none that could be measured.
pub const DEFAULT_RECALL: f32 = 0.97;
/// Recall of other queries is a little lower than that of the calibration's: by this share of what is missing.
const MARGIN: f32 = 0.05;

/// Recall that is not worth what the last settings cost, where the codes do not reach the default.
const WORTHLESS: f32 = 0.005;

/// Measured settings of a store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Number of queries that it was measured with.
    pub queries: usize,
    /// Number of entries that there were; 0: not known.
    #[serde(default)]
    pub entries: u64,
    /// Id after the last of them; 0: not known.
    #[serde(default)]
    pub ids: u64,
    /// With the best that the codes have: for each k in ascending order of cost.
    pub rows: Vec<Setting>,
    /// The same by codes of the first level alone, where there is a second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<Setting>,
    /// The same where candidates are scored again by raw keys, if these are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<Setting>,
}

impl Calibration {
    /// Whether all that was measured are finite numbers from 0 on.
    pub(crate) fn is_sound(&self) -> bool {
        let numbers = |row: &Setting| [row.stop, row.depth, row.recall, row.scanned];
        let all = self.rows.iter().chain(&self.first).chain(&self.keys);
        all.flat_map(numbers).all(|x| x.is_finite() && x >= 0.0)
    }

    /// What was measured with a way of scoring again.
    fn of(&self, codebook: &Codebook, rerank: Rerank) -> &[Setting] {
        match rerank {
            Rerank::Keys => &self.keys,
            Rerank::None if codebook.second_bits() > 0 => &self.first,
            _ => &self.rows,
        }
    }
}

/// The most that can be asked of settings: what the best of them finds, less the margin.
pub(crate) fn most(rows: &[Setting]) -> f32 {
    ((best(rows) - MARGIN) / (1.0 - MARGIN)).max(0.0)
}

fn best(rows: &[Setting]) -> f32 {
    rows.iter().map(|row| row.recall).fold(0.0, f32::max)
}

/// Settings of the measured numbers of neighbors around one that is asked for, and how far it lies from the first to the
/// second, by its logarithm: what few neighbors need is many times as many candidates.
struct Around {
    below: Vec<Setting>,
    above: Vec<Setting>,
    share: f32,
}

impl Around {
    fn of(rows: &[Setting], k: usize) -> Around {
        let all = || rows.iter().map(|row| row.k);
        let above = all().filter(|&measured| measured >= k).min().or(all().max());
        let below = all().filter(|&measured| measured <= k).max().or(above);
        let of = |k: Option<usize>| rows.iter().filter(|row| Some(row.k) == k).copied().collect();
        let ln = |k: Option<usize>| (k.unwrap_or(1).max(1) as f32).ln();
        let (from, to) = (ln(below), ln(above));
        let share = if from < to { (ln(Some(k)) - from) / (to - from) } else { 0.0 };
        Around { below: of(below), above: of(above), share: share.clamp(0.0, 1.0) }
    }

    /// The best recall that both have.
    fn best(&self) -> f32 {
        best(&self.below).min(best(&self.above))
    }

    /// The most that can be asked for.
    fn most(&self) -> f32 {
        most(&self.below).min(most(&self.above))
    }

    /// The cheapest setting that reaches a goal.
    fn reaching(&self, goal: f32) -> Option<Setting> {
        let (below, above) = (between(&self.below, goal)?, between(&self.above, goal)?);
        let part = |from: f32, to: f32| from + self.share * (to - from);
        let depth = below.depth * (above.depth / below.depth.max(f32::MIN_POSITIVE)).powf(self.share);
        Some(Setting {
            stop: part(below.stop, above.stop),
            depth,
            scanned: part(below.scanned, above.scanned),
            ..above
        })
    }
}

/// What a search goes by.
#[derive(Clone, Copy)]
pub struct Measured<'m> {
    /// What was measured.
    pub calibration: &'m Calibration,
    /// Whether the store has changed so much since that it holds no more.
    pub outgrown: bool,
}

/// One measured setting.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Neighbors asked for.
    pub k: usize,
    /// See `Reach::stop`; without meaning where searches scan all lists.
    pub stop: f32,
    /// Candidates scored again, as a multiple of k.
    pub depth: f32,
    /// Measured recall@k.
    pub recall: f32,
    /// Entries scanned per query on average.
    pub scanned: f32,
}

impl Setting {
    /// About the nanoseconds that it takes on one core, beside what all settings take; `again`: those to score a candidate
    /// again.
    pub fn cost(&self, again: f32) -> f32 {
        0.6 * self.scanned + again * self.depth * self.k as f32
    }
}

/// What a search will do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Lists to scan.
    pub reach: Reach,
    /// Candidates to keep.
    pub candidates: usize,
    /// How they are scored again; never `Auto`.
    pub rerank: Rerank,
}

/// Decides for a request; `keys`: whether all raw keys are there.
///
/// # Errors
/// `Argument` for a recall that was not reached when the store was built; `State` where it was not measured.
pub fn plan(codebook: &Codebook, measured: Option<Measured>, keys: bool, request: &Request) -> Result<Plan> {
    let codes = if codebook.second_bits() > 0 { Rerank::Code } else { Rerank::None };
    let mut rerank = if request.rerank == Rerank::Auto { codes } else { request.rerank };
    let around = |rerank| measured.map(|m| Around::of(m.calibration.of(codebook, rerank), request.k));
    let most = |rerank| around(rerank).map_or(0.0, |around| around.most());
    if let Some(asked) = request.recall.filter(|_| keys && request.rerank == Rerank::Auto)
        && asked > most(codes)
        && asked <= most(Rerank::Keys)
    {
        rerank = Rerank::Keys; // what codes cannot tell apart, raw keys can
    }
    let around = around(rerank).filter(|around| !around.below.is_empty());
    let goal = match (request.recall, &around) {
        (Some(asked), around) => asked_goal(asked, around.as_ref(), measured, rerank, request.k)?,
        (None, Some(around)) => safe(DEFAULT_RECALL).min(around.best() - WORTHLESS),
        (None, None) => 0.0,
    };
    let setting = around.and_then(|around| around.reaching(goal));
    // Small stores scan all lists whatever is asked: it takes microseconds.
    let everything = codebook.default_nprobe() == codebook.nlist();
    let (nprobe, stop) = match (request.nprobe, setting) {
        (Some(nprobe), _) => (nprobe, None),
        (None, Some(setting)) if !everything => (codebook.nlist(), Some(setting.stop)),
        (None, _) => (codebook.default_nprobe(), None),
    };
    let usual = request.k.saturating_mul(2).max(request.k.saturating_add(128));
    let deep = setting.map(|setting| (setting.depth * request.k as f32).ceil() as usize);
    let deep = match deep {
        Some(deep) if stop.is_some() => deep,
        // Lists that were chosen otherwise than measured hold as many candidates that raw keys would prefer.
        Some(deep) if everything || rerank == Rerank::Keys => deep.max(usual),
        _ => usual,
    };
    let candidates = match rerank {
        Rerank::None | Rerank::Auto => request.k,
        Rerank::Code | Rerank::Keys => request.depth.unwrap_or(deep).max(request.k),
    };
    Ok(Plan { reach: Reach { nprobe: nprobe.min(codebook.nlist()), stop }, candidates, rerank })
}

/// The measured recall to aim at for one that is asked.
fn asked_goal(
    asked: f32,
    around: Option<&Around>,
    measured: Option<Measured>,
    rerank: Rerank,
    k: usize,
) -> Result<f32> {
    let Some(around) = around else {
        return Err(Error::state(
            Why::NotCalibrated,
            "recall: expected a store whose recall was measured when it was built, found one that was not; retrain it, or give nprobe",
        ));
    };
    if measured.is_some_and(|m| m.outgrown) {
        return Err(Error::state(
            Why::Outgrown,
            "recall: expected a store that is about as it was when its recall was measured, found that most of its entries were added or deleted since; retrain it, or give nprobe",
        ));
    }
    if asked > around.most() {
        let (what, instead) = match rerank {
            Rerank::Keys => ("these candidates", "search exactly"),
            _ => ("this store's codes", "where raw keys are kept rerank by them or search exactly"),
        };
        return Err(Error::Argument(format!(
            "recall: expected at most {:.3}, what {what} reach for k = {k}, found {asked}; ask for less, or {instead}",
            around.most()
        )));
    }
    Ok(safe(asked))
}

/// The measured recall that is wanted so that other queries have this one.
fn safe(recall: f32) -> f32 {
    recall + MARGIN * (1.0 - recall)
}

/// What lies between the last row before the goal and the first that reaches it, where the goal does and the rows differ in
/// one thing: nobody knows what half of each of two changes finds. The best row for a goal that rounding puts above it.
fn between(rows: &[Setting], goal: f32) -> Option<Setting> {
    const ROUNDING: f32 = 1e-6;
    let at = rows.iter().position(|r| r.recall >= goal - ROUNDING)?;
    let after = rows[at];
    let Some(before) = at
        .checked_sub(1)
        .map(|i| rows[i])
        .filter(|before| before.recall < goal && (before.depth == after.depth || before.stop == after.stop))
    else {
        return Some(after);
    };
    let share = ((goal - before.recall) / (after.recall - before.recall)).min(1.0);
    let part = |from: f32, to: f32| from + share * (to - from);
    Some(Setting {
        k: after.k,
        stop: part(before.stop, after.stop),
        depth: part(before.depth, after.depth),
        recall: goal,
        scanned: part(before.scanned, after.scanned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_between_two_rows_takes_what_lies_between_them() {
        let row = |stop: f32, depth: f32, recall: f32| Setting { k: 8, stop, depth, recall, scanned: 100.0 * stop };
        let rows = [row(0.5, 1.0, 0.6), row(0.75, 1.0, 0.7), row(1.0, 1.0, 0.9), row(0.9, 2.0, 0.94)];
        assert_eq!(between(&rows, 0.5), Some(rows[0])); // less cannot be had
        assert_eq!(between(&rows, 0.7), Some(rows[1]));
        let found = between(&rows, 0.8).expect("reached");
        assert!((found.stop - 0.875).abs() < 1e-6 && found.depth == 1.0, "{found:?}");
        assert!((found.scanned - 87.5).abs() < 1e-3, "{found:?}");
        assert_eq!(between(&rows, 0.92), Some(rows[3])); // two things differ
        assert_eq!(between(&rows, 0.95), None);
    }

    #[test]
    fn the_most_that_can_be_asked_is_reached_with_its_margin() {
        for best in [0.1, 0.5, 0.939, 0.97, 1.0] {
            let row = Setting { k: 8, stop: 1.0, depth: 4.0, recall: best, scanned: 1.0 };
            let most = most(&[row]);
            assert!((safe(most) - best).abs() < 1e-6 && (best == 1.0) == (most == 1.0), "{best} {most}");
            assert_eq!(between(&[row], safe(most)), Some(row));
        }
    }

    #[test]
    fn what_is_asked_between_two_measured_numbers_of_neighbors_needs_what_lies_between() {
        let row = |k, depth| Setting { k, stop: 1.0, depth, recall: 0.99, scanned: 1.0 };
        let rows = [row(8, 64.0), row(64, 4.0)];
        let depth = |k: usize| Around::of(&rows, k).reaching(0.9).expect("reached").depth * k as f32;
        assert_eq!((depth(8), depth(64), depth(1), depth(100)), (512.0, 256.0, 64.0, 400.0));
        assert!(
            (250.0..520.0).contains(&depth(10)) && (250.0..520.0).contains(&depth(40)),
            "{} {}",
            depth(10),
            depth(40)
        );
    }
}
