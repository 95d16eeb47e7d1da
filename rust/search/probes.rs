//! Which lists a query scans: the nearest first, then those that are still worth it.

use super::near::{Choice, NearLists, Probe};
use crate::Metric;
use crate::index::{Codebook, Lists};
use crate::simd::{Kernels, LANES};

/// Entries of the nearest lists that give a query its limit, as a multiple of the candidates it wants.
const FIRST: usize = 2;
/// And at least so many.
const LEAST_FIRST: usize = 512;
/// Lists that are kept of a query at least, beyond `nprobe`, if there are so many.
pub const LEAST_KEPT: usize = 192;

/// How far a query looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// Lists to scan at most.
    pub nprobe: usize,
    /// L2: lists whose centroid is further than this multiple of the limit that the nearest lists gave are left out. Inner
    /// product: further than the limit by this share, less one, of the limit's distance from the nearest centroid.
    pub stop: Option<f32>,
}

/// What lists are chosen by.
pub struct Chooser<'c, 'a> {
    /// Kernels.
    pub kernels: &'c Kernels,
    /// Codebook of all lists.
    pub codebook: &'c Codebook<'a>,
    /// List segments.
    pub lists: &'c [Lists<'a>],
    /// Candidates to keep.
    pub k: usize,
    /// How far to look.
    pub reach: Reach,
}

impl Chooser<'_, '_> {
    /// Entries of a list that are not deleted.
    pub fn list_len(&self, list: u32) -> u64 {
        self.lists.iter().map(|l| l.live_len(list as usize) as u64).sum()
    }

    /// Chooses from scores of all lists, or estimates of them, those that a search may need, into `choice.found`: far more than
    /// most searches do. Returns their number and a limit that the others are above.
    pub fn keep(&self, scores: &[f32], choice: &mut Choice) -> (usize, f32) {
        let nlist = scores.len();
        let wanted = if self.reach.stop.is_some() { nlist / 32 } else { self.reach.nprobe };
        let (n, limit) = self.at_most_nth(scores, (wanted + LEAST_KEPT).min(nlist), choice);
        (n, if n == nlist { f32::INFINITY } else { limit })
    }

    /// The nearest lists of a query, until they hold [`FIRST`] times k entries, by (score, number), to `choice.nearest`
    /// and as probes to `out`. Returns their entries; none if more than the kept lists are needed.
    pub fn nearest(
        &self,
        query: usize,
        coarse: NearLists,
        limit: f32,
        choice: &mut Choice,
        out: &mut Vec<Probe>,
    ) -> Option<u64> {
        let nlist = self.codebook.nlist();
        let entries: u64 = self.lists.iter().map(|l| l.len() as u64).sum();
        let wanted = (FIRST * self.k).max(LEAST_FIRST) as u64;
        // As many as hold enough if they are of mean length; lists where queries fall are longer.
        let mut guess = 8 + (wanted.saturating_mul(nlist as u64) / entries.max(1)).min(nlist as u64) as usize;
        let most = self.reach.nprobe.min(nlist);
        loop {
            guess = guess.min(most);
            if guess > coarse.lists.len() && limit < f32::INFINITY {
                return None;
            }
            let guess_here = guess.min(coarse.lists.len());
            let n = self.at_most_nth(coarse.scores, guess_here, choice).0;
            let found = &mut choice.found[..n];
            let scores = coarse.scores;
            found.sort_unstable_by(|&a, &b| scores[a as usize].total_cmp(&scores[b as usize]).then(a.cmp(&b)));
            let mut lists = &found[..guess_here.min(n)]; // fewer only where centroids of a damaged file are not numbers
            let mut seen = 0;
            let enough = lists.iter().position(|&i| {
                seen += self.list_len(coarse.lists[i as usize]);
                seen >= wanted
            });
            match enough {
                Some(last) => lists = &lists[..=last],
                None if guess == most => (),
                None => {
                    guess *= 2;
                    continue;
                }
            }
            choice.nearest.extend(lists.iter().map(|&i| coarse.lists[i as usize]));
            out.extend(lists.iter().map(|&i| coarse.probe(i, query)));
            return Some(seen);
        }
    }

    /// Finds at least the `n` lowest scores (with all that equal the last); returns their number and a limit that they,
    /// and no others, are within.
    fn at_most_nth(&self, scores: &[f32], n: usize, choice: &mut Choice) -> (usize, f32) {
        choice.found.resize(choice.found.len().max(scores.len() + LANES), 0);
        // Of the least of twice as many classes the n-th lowest is a limit that at least n scores are within, and few more.
        let limit = if 4 * n > scores.len() {
            if n >= scores.len() || n == 0 {
                f32::INFINITY
            } else {
                choice.lows.clear();
                choice.lows.extend_from_slice(scores);
                *choice.lows.select_nth_unstable_by(n - 1, f32::total_cmp).1
            }
        } else {
            choice.lows.resize((2 * n).next_multiple_of(LANES).min(scores.len()), 0.0);
            self.kernels.least_of_classes(scores, &mut choice.lows);
            *choice.lows.select_nth_unstable_by(n - 1, f32::total_cmp).1
        };
        if limit == f32::INFINITY {
            choice.found.iter_mut().zip(0..scores.len() as u32).for_each(|(f, i)| *f = i);
            return (scores.len(), limit);
        }
        (self.kernels.find_at_most(scores, limit, &mut choice.found), limit)
    }

    /// The lists that are left to a query in the order of their numbers, appended to `out`; `limit` is what its nearest
    /// lists (`nearest` of `choice.nearest`) gave, `kept` the limit of the kept lists. False, and nothing appended, if more
    /// than those are needed.
    #[allow(clippy::too_many_arguments)]
    pub fn further(
        &self,
        query: usize,
        coarse: NearLists,
        kept: f32,
        limit: f32,
        nearest: std::ops::Range<usize>,
        choice: &mut Choice,
        out: &mut Vec<Probe>,
    ) -> bool {
        let (nprobe, scores) = (self.reach.nprobe.min(self.codebook.nlist()), coarse.scores);
        if nearest.len() >= nprobe {
            return true;
        }
        let base = choice
            .nearest
            .get(nearest.start)
            .and_then(|first| coarse.lists.binary_search(first).ok().map(|i| coarse.shift + scores[i]));
        let reach = match self.reach.stop {
            Some(stop) if limit < f32::MAX => self.reach_of(stop, limit, coarse.shift, base.unwrap_or(0.0)),
            _ => f32::MAX,
        };
        let (mut most, mut ties) = (f32::MAX, usize::MAX);
        if nprobe < self.codebook.nlist() {
            if nprobe > scores.len() {
                return false;
            }
            choice.lows.clear();
            choice.lows.extend_from_slice(scores);
            most = *choice.lows.select_nth_unstable_by(nprobe - 1, f32::total_cmp).1;
            // Equal scores at the limit: the lower numbers, as many as nprobe lets pass.
            ties = nprobe - choice.lows.iter().filter(|&&score| score < most).count().min(nprobe);
        }
        if most.min(reach) > kept {
            return false;
        }
        choice.done.clear();
        choice.done.extend_from_slice(&choice.nearest[nearest]);
        choice.done.sort_unstable();
        choice.found.resize(choice.found.len().max(scores.len() + LANES), 0);
        let n = self.kernels.find_at_most(scores, most.min(reach), &mut choice.found);
        let mut next = choice.done.iter().copied().peekable();
        for &i in &choice.found[..n] {
            if scores[i as usize] == most {
                if ties == 0 {
                    continue;
                }
                ties = ties.saturating_sub(1);
            }
            let list = coarse.lists[i as usize];
            // Some of the nearest lists may be out of reach themselves.
            while next.next_if(|&done| done < list).is_some() {}
            if next.next_if_eq(&list).is_none() && self.list_len(list) > 0 {
                out.push(coarse.probe(i, query));
            }
        }
        true
    }

    /// Score of the furthest list that is worth scanning; `nearest` is the base of the nearest.
    pub fn reach_of(&self, stop: f32, limit: f32, shift: f32, nearest: f32) -> f32 {
        let furthest = match self.codebook.metric() {
            Metric::L2 => stop * limit,
            Metric::Ip => limit + (stop - 1.0) * (limit - nearest).abs(),
        };
        furthest - shift
    }
}
