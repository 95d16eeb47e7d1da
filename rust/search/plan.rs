//! How far an approximate search looks and how many candidates it scores again, for an asked recall.
//!
//! A [`Calibration`] is measured after a build: stored keys serve as queries, their own entries left out, and every setting's
//! recall is counted against the exact scan. Of its rows the cheapest that reaches the goal is taken.

use super::probes::Reach;
use super::{Request, Rerank};
use crate::index::Codebook;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Recall that a search aims at when it is told nothing.
pub const DEFAULT_RECALL: f32 = 0.95;
/// Recall of other queries is a little lower than that of the calibration's.
const MARGIN: f32 = 0.005;

/// Measured settings of a store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Number of queries that it was measured with.
    pub queries: usize,
    /// For each k in ascending order of cost.
    pub rows: Vec<Setting>,
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

/// The cheapest setting that reaches the goal.
fn chosen(codebook: &Codebook, request: &Request) -> Result<Option<Setting>> {
    let rows = codebook.calibration().map_or(&[][..], |c| &c.rows);
    let Some(k) = rows.iter().map(|r| r.k).filter(|&k| k >= request.k).min().or(rows.iter().map(|r| r.k).max()) else {
        return match request.recall {
            Some(_) => Err(Error::State(
                "recall: expected a store that was calibrated when it was built, found none; build with retrain=True, or give nprobe".into(),
            )),
            None => Ok(None),
        };
    };
    let goal = request.recall.unwrap_or(DEFAULT_RECALL) + MARGIN;
    let of_k = || rows.iter().filter(|r| r.k == k);
    if let Some(setting) = of_k().find(|r| r.recall >= goal) {
        return Ok(Some(*setting));
    }
    let best = of_k().max_by(|a, b| a.recall.total_cmp(&b.recall)).copied();
    match (request.recall, best) {
        (Some(asked), Some(best)) if asked > best.recall => Err(Error::Argument(format!(
            "recall: expected at most {:.3}, what this store's codes reach for k = {k}, found {asked}; use nprobe with rerank=\"keys\", or exact=True",
            best.recall
        ))),
        _ => Ok(best),
    }
}
