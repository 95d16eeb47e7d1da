//! How far an approximate search looks and how many candidates it scores again, for an asked recall.
//!
//! A [`Calibration`] is measured after a build: stored keys serve as queries, their own entries left out, and every setting's
//! recall is counted against the exact scan. A search takes what lies between the two measured settings, in the order of
//! their cost, that the goal lies between.

use super::probes::Reach;
use super::{Request, Rerank};
use crate::error::Why;
use crate::index::Codebook;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Recall that a search aims at when it is told nothing: at .95 the neighbours that are missing cost 0.4 % of perplexity where
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
    /// For each k in ascending order of cost.
    pub rows: Vec<Setting>,
}

impl Calibration {
    /// Whether all that was measured are finite numbers from 0 on.
    pub(crate) fn is_sound(&self) -> bool {
        let numbers = |row: &Setting| [row.stop, row.depth, row.recall, row.scanned];
        self.rows.iter().flat_map(numbers).all(|x| x.is_finite() && x >= 0.0)
    }
}

/// One measured setting.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Neighbours asked for.
    pub k: usize,
    /// See `Reach::stop`.
    pub stop: f32,
    /// Candidates scored again, as a multiple of k.
    pub depth: f32,
    /// Measured recall@k.
    pub recall: f32,
    /// Entries scanned per query on average.
    pub scanned: f32,
}

impl Setting {
    /// About the nanoseconds that it takes on one core, beside what all settings take.
    pub fn cost(&self) -> f32 {
        0.6 * self.scanned + 15.0 * self.depth * self.k as f32
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

/// Decides for a request.
///
/// # Errors
/// `Argument` for a recall that was not reached when the store was built.
pub fn plan(codebook: &Codebook, request: &Request) -> Result<Plan> {
    let rerank = match request.rerank {
        Rerank::Auto if codebook.second_bits() > 0 => Rerank::Code,
        Rerank::Auto => Rerank::None,
        chosen => chosen,
    };
    let everything = codebook.default_nprobe() == codebook.nlist();
    let setting = match (request.nprobe, everything) {
        (None, false) => chosen(codebook, request)?,
        _ => None,
    };
    let nprobe = request.nprobe.unwrap_or(if setting.is_some() { codebook.nlist() } else { codebook.default_nprobe() });
    let deep = match setting {
        Some(setting) => (setting.depth * request.k as f32).ceil() as usize,
        None => request.k.saturating_mul(2).max(request.k.saturating_add(128)),
    };
    let candidates = match rerank {
        Rerank::None | Rerank::Auto => request.k,
        Rerank::Code | Rerank::Keys => request.depth.unwrap_or(deep).max(request.k),
    };
    let reach = Reach { nprobe: nprobe.min(codebook.nlist()), stop: setting.map(|s| s.stop) };
    Ok(Plan { reach, candidates, rerank })
}

/// The cheapest setting that reaches the goal, between two measured ones. If nothing was asked and the codes reach less than
/// the default, the cheapest that comes near what they can.
fn chosen(codebook: &Codebook, request: &Request) -> Result<Option<Setting>> {
    let rows = codebook.calibration().map_or(&[][..], |c| &c.rows);
    let Some(k) = rows.iter().map(|r| r.k).filter(|&k| k >= request.k).min().or(rows.iter().map(|r| r.k).max()) else {
        return match request.recall {
            Some(_) => Err(Error::state(
                Why::NotCalibrated,
                "recall: expected a store whose recall was measured when it was built, found one that was not; retrain it, or give nprobe",
            )),
            None => Ok(None),
        };
    };
    let rows: Vec<Setting> = rows.iter().filter(|r| r.k == k).copied().collect();
    let best = rows.iter().map(|r| r.recall).fold(0.0, f32::max);
    let goal = match request.recall {
        Some(asked) if asked > best => {
            return Err(Error::Argument(format!(
                "recall: expected at most {best:.3}, what this store's codes reach for k = {k}, found {asked}; ask for less, or where raw keys are kept rerank by them or search exactly"
            )));
        }
        Some(asked) => safe(asked).min(best),
        None => safe(DEFAULT_RECALL).min(best - WORTHLESS),
    };
    Ok(between(&rows, goal))
}

/// The measured recall that is wanted so that other queries have this one.
fn safe(recall: f32) -> f32 {
    recall + MARGIN * (1.0 - recall)
}

/// What lies between the last row before the goal and the first that reaches it, where the goal does.
fn between(rows: &[Setting], goal: f32) -> Option<Setting> {
    let at = rows.iter().position(|r| r.recall >= goal)?;
    let after = rows[at];
    let Some(before) = at.checked_sub(1).map(|i| rows[i]).filter(|before| before.recall < goal) else {
        return Some(after);
    };
    let share = (goal - before.recall) / (after.recall - before.recall);
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
        let rows = [row(0.5, 1.0, 0.6), row(0.75, 1.0, 0.7), row(1.0, 2.0, 0.9)];
        assert_eq!(between(&rows, 0.5), Some(rows[0])); // less cannot be had
        assert_eq!(between(&rows, 0.7), Some(rows[1]));
        let found = between(&rows, 0.8).expect("reached");
        assert!((found.stop - 0.875).abs() < 1e-6 && (found.depth - 1.5).abs() < 1e-6, "{found:?}");
        assert!((found.scanned - 87.5).abs() < 1e-3, "{found:?}");
        assert_eq!(between(&rows, 0.95), None);
    }
}
