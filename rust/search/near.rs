//! Lists near each query of a tile, and probes: which query scans which list.

use crate::index::Lists;

/// A list that a query scans.
#[derive(Clone, Copy, Default)]
pub struct Probe {
    /// Number of the list.
    pub list: u32,
    /// Number of the query in its tile.
    pub query: u32,
    /// Score of the centroid: |q − c|², or −⟨q, c⟩.
    pub base: f32,
}

/// Lists near a query and their scores.
#[derive(Clone, Copy)]
pub struct NearLists<'c> {
    /// Numbers, ascending.
    pub lists: &'c [u32],
    /// Score of each.
    pub scores: &'c [f32],
    /// Added to a score gives the base.
    pub shift: f32,
}

impl NearLists<'_> {
    /// The query scans list number `i` of these.
    pub fn probe(&self, i: u32, query: usize) -> Probe {
        Probe { list: self.lists[i as usize], query: query as u32, base: self.shift + self.scores[i as usize] }
    }
}

/// The lists that lie near each query, by number, one query after the other.
#[derive(Default)]
pub struct Near {
    /// Numbers of lists, ascending for each query.
    pub lists: Vec<u32>,
    /// Their scores.
    pub scores: Vec<f32>,
    /// Where those of each query end.
    pub ends: Vec<usize>,
    /// Scores of the lists that are left out are above it, for each query.
    pub limits: Vec<f32>,
    /// Added to a score gives the base of a probe, for each query.
    pub shifts: Vec<f32>,
}

impl Near {
    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.lists.clear();
        self.scores.clear();
        self.ends.clear();
        self.limits.clear();
        self.shifts.clear();
    }

    /// Appends the lists of the next query.
    pub fn push(&mut self, lists: &[u32], scores: impl Iterator<Item = f32>, limit: f32) {
        self.lists.extend_from_slice(lists);
        self.scores.extend(scores);
        self.ends.push(self.lists.len());
        self.limits.push(limit);
    }

    /// Those of a query.
    pub fn of(&self, query: usize) -> NearLists<'_> {
        let span = if query == 0 { 0 } else { self.ends[query - 1] }..self.ends[query];
        NearLists { lists: &self.lists[span.clone()], scores: &self.scores[span], shift: self.shifts[query] }
    }
}

/// Scratch of the choice of lists.
#[derive(Default)]
pub struct Choice {
    /// Positions of scores.
    pub found: Vec<u32>,
    /// What a scan of all centroids writes besides scores.
    pub ignored: Vec<u32>,
    /// Least score of each class of lists, and scores of what was found.
    pub lows: Vec<f32>,
    /// The lists that each query scans first, nearest first, one query after the other.
    pub nearest: Vec<u32>,
    /// Where those of each query end.
    pub ends: Vec<usize>,
    /// The same of one query, ascending.
    pub done: Vec<u32>,
    /// Counts and copies of a sort by list.
    pub counts: Vec<u32>,
    /// See `counts`.
    pub sorted: Vec<Probe>,
}

/// Sorts probes by (list, query), given in the order of the queries: a counting sort, where they are many.
pub fn by_list(probes: &mut Vec<Probe>, nlist: usize, choice: &mut Choice) {
    if 8 * probes.len() < nlist {
        probes.sort_by_key(|p| p.list);
        return;
    }
    let next = &mut choice.counts;
    next.clear();
    next.resize(nlist + 1, 0);
    probes.iter().for_each(|p| next[p.list as usize + 1] += 1);
    for i in 0..nlist {
        next[i + 1] += next[i];
    }
    choice.sorted.resize(probes.len(), Probe::default());
    for probe in probes.iter() {
        let at = &mut next[probe.list as usize];
        choice.sorted[*at as usize] = *probe;
        *at += 1;
    }
    std::mem::swap(probes, &mut choice.sorted);
}

/// Runs of probes of the same list.
pub fn runs(probes: &[Probe]) -> impl Iterator<Item = &[Probe]> {
    probes.chunk_by(|a, b| a.list == b.list)
}

/// Places of a list in a segment.
pub fn span(lists: &Lists, start: u32, list: u32) -> std::ops::Range<u32> {
    let first = start + lists.list(list as usize).1;
    first..first + lists.list_len(list as usize) as u32
}
