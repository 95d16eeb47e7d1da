//! Settings that are tried out: what each finds, and which of them are worth keeping.

use super::approximate::{Conditions, approximate};
use super::check::check;
use super::corpus::Corpus;
use super::plan::{Plan, Setting};
use super::probes::Reach;
use super::request::{HitsMut, Request, Rerank};
use crate::Result;
use crate::threads::Pool;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// Recall of two settings between which none was tried, at most: between them it does not follow a line.
const GAP: f32 = 0.06;
/// Gain of recall that is not worth a trial.
pub const NEGLIGIBLE: f32 = 0.001;
/// How often a gap is halved at most.
const HALVINGS: usize = 3;

/// Neighbors that may be missed though none was: as many queries do not tell ("rule of three", Hanley & Lippman-Hand 1983).
const OPEN: usize = 3;

/// Queries with their exact neighbors, which recall is counted against.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// q × d, row-major, finite.
    pub queries: Vec<f32>,
    /// For each query the ids that must not come back, such as its own.
    pub own: Vec<Range<u64>>,
    /// Exact neighbors of each query, `k` each, best first.
    pub ids: Vec<i64>,
    /// How many.
    pub k: usize,
}

/// What a setting did.
#[derive(Clone, Copy)]
pub struct Trial {
    /// With the share of the true neighbors among the k that came back.
    pub setting: Setting,
    /// Share of them among all candidates: the recall if raw keys chose among these.
    held: f32,
}

impl Trial {
    /// The setting of a search that scores the candidates with raw keys.
    pub fn by_keys(&self) -> Setting {
        Setting { recall: self.held, ..self.setting }
    }

    /// How much more it found than another.
    pub fn more_than(&self, other: &Trial) -> f32 {
        (self.setting.recall - other.setting.recall).max(self.held - other.held)
    }
}

/// Trials for one number of neighbors.
pub struct Trials<'t, 'a> {
    /// With an index.
    pub corpus: &'t Corpus<'a>,
    /// What is looked for.
    pub truth: &'t Truth,
    /// Neighbors.
    pub k: usize,
    /// Entries in lists.
    pub entries: usize,
    /// Lists.
    pub nlist: usize,
    /// Whether all lists are scanned, whatever the stop.
    pub everything: bool,
    /// Threads.
    pub pool: &'t Pool,
    /// Set to stop.
    pub cancel: &'t AtomicBool,
}

impl Trials<'_, '_> {
    /// Tries stops, ascending, until one finds what the last does: all between them cost more and find no more.
    pub fn all(&self, rerank: Rerank, depth: f32, stops: &[f32]) -> Result<Vec<Trial>> {
        let Some((&last, before)) = stops.split_last() else { return Ok(Vec::new()) };
        let last = self.one(rerank, depth, last)?;
        let mut tried = Vec::with_capacity(stops.len());
        for &stop in before {
            let trial = self.one(rerank, depth, stop)?;
            tried.push(trial);
            if last.more_than(&trial) < NEGLIGIBLE {
                break;
            }
        }
        tried.push(last);
        Ok(tried)
    }

    /// Tries stops, ascending, and others between them where a great step lies between what two find.
    pub fn closely(&self, rerank: Rerank, depth: f32, stops: &[f32]) -> Result<Vec<Trial>> {
        let mut tried = self.all(rerank, depth, stops)?;
        for _ in 0..HALVINGS {
            let mut closer: Vec<Trial> = Vec::with_capacity(tried.len());
            for trial in tried {
                if let Some(before) = closer.last().filter(|before| trial.more_than(before) > GAP) {
                    let middle = (before.setting.stop + trial.setting.stop) / 2.0;
                    closer.push(self.one(rerank, depth, middle)?);
                }
                closer.push(trial);
            }
            tried = closer;
        }
        Ok(tried)
    }

    /// Has all candidates come back: the first k of them are those that a search for k would return.
    fn one(&self, rerank: Rerank, depth: f32, stop: f32) -> Result<Trial> {
        let (corpus, truth, k) = (self.corpus, self.truth, self.k);
        let candidates = ((depth * k as f32).ceil() as usize).min(self.entries.max(1)).max(k);
        let reach = Reach { nprobe: self.nlist, stop: (!self.everything).then_some(stop) };
        let plan = Plan { reach, candidates, rerank };
        let request = Request { k: candidates, exclude: Some(&truth.own), ..Request::default() };
        let kernels = check(corpus, &truth.queries, &request)?;
        let q = truth.queries.len() / corpus.d;
        let (mut distances, mut ids) = (vec![0.0; q * candidates], vec![0; q * candidates]);
        let mut out = HitsMut { distances: &mut distances, ids: &mut ids };
        let now = Conditions::now();
        let scanned =
            approximate(corpus, &truth.queries, &request, &plan, &kernels, self.pool, self.cancel, &mut out, now)?;
        let (mut hits, mut held, mut all) = (0usize, 0usize, 0usize);
        for (found, exact) in ids.chunks_exact(candidates).zip(truth.ids.chunks_exact(truth.k)) {
            let mut wanted: Vec<i64> = exact[..k].iter().copied().filter(|&id| id >= 0).collect();
            wanted.sort_unstable();
            let count = |found: &[i64]| found.iter().filter(|&id| wanted.binary_search(id).is_ok()).count();
            hits += count(&found[..k]);
            held += count(found).min(wanted.len());
            all += wanted.len();
        }
        let share = |found: usize| found.saturating_sub(OPEN) as f32 / all.max(1) as f32;
        let (recall, held) = (share(hits), share(held));
        let scanned = scanned.iter().sum::<u64>() as f32 / q.max(1) as f32;
        Ok(Trial { setting: Setting { k, stop, depth, recall, scanned }, held })
    }
}

/// For each k, in ascending order of cost, the settings that find more than every cheaper one, and before each of them the next
/// cheaper: what lies between two settings is only known where nothing was tried between them. `again`: nanoseconds to
/// score a candidate again.
pub fn front(mut rows: Vec<Setting>, again: f32) -> Vec<Setting> {
    rows.sort_by(|a, b| a.k.cmp(&b.k).then(a.cost(again).total_cmp(&b.cost(again))));
    let mut kept: Vec<Setting> = Vec::new();
    for rows in rows.chunk_by(|a, b| a.k == b.k) {
        let (mut best, mut dropped) = (-1.0, None);
        for &row in rows {
            if row.recall > best {
                best = row.recall;
                kept.extend(dropped.take());
                kept.push(row);
            } else {
                dropped = Some(row);
            }
        }
    }
    kept
}
