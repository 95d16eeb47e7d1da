//! Scores candidates again with second-level codes: list by list for a tile of queries, so that a record that several
//! queries ask for comes from memory once.

use super::near::{Probe, runs, span};
use super::places::locate;
use crate::Result;
use crate::exact::Nearest;
use crate::index::Lists;
use crate::index::bytes::ByteRows;
use crate::simd::{ByteQuery, Kernels, prefetch_far};
use std::ops::Range;

/// Fewer queries than this seldom share a record.
const SHARED: usize = 16;

/// What candidates are scored again with.
pub struct Rescore<'r, 'a> {
    /// Kernels.
    pub kernels: &'r Kernels,
    /// List segments.
    pub lists: &'r [Lists<'a>],
    /// Place of the first entry of each segment.
    pub starts: &'r [u32],
    /// Whether records are likely to be on disk.
    pub cold: bool,
}

impl Rescore<'_, '_> {
    /// Scores the candidates of all queries of a tile; `rounds` are the probes that found them. Candidates of a query
    /// lie in the order of its probes: of the first round by place, then of the second.
    pub fn tile(
        &self,
        rounds: &[Vec<Probe>; 2],
        queries: &ByteRows,
        nearest: &mut [Nearest],
        cursors: &mut Vec<u32>,
    ) -> Result<()> {
        cursors.clear();
        cursors.resize(nearest.len(), 0);
        if nearest.len() >= SHARED && !self.cold {
            let mut all = rounds.iter().flat_map(|probes| runs(probes)).peekable();
            while let Some(run) = all.next() {
                // Records of the next list come from memory while those of this one are scored.
                all.peek().into_iter().for_each(|next| self.prefetch_records(next, run[0].list, nearest, cursors));
                for (lists, &start) in self.lists.iter().zip(self.starts) {
                    let places = span(lists, start, run[0].list);
                    for probe in run {
                        let query = probe.query as usize;
                        let (scores, entries) = nearest[query].parts_mut();
                        let from = cursors[query] as usize;
                        let to = from + within(&entries[from..], &places);
                        self.score(lists, start, &queries.query(query), &entries[from..to], &mut scores[from..to])?;
                        cursors[query] = to as u32;
                    }
                }
            }
        }
        // All candidates of few queries, and where records come from disk; of many those that a damaged file put elsewhere.
        if let (true, Some(first)) = (self.cold, nearest.first()) {
            self.advise_records(first);
        }
        for query in 0..nearest.len() {
            if let (true, Some(next)) = (self.cold, nearest.get(query + 1)) {
                self.advise_records(next);
            }
            let from = cursors[query] as usize;
            let (scores, entries) = nearest[query].parts_mut();
            self.query(&queries.query(query), &mut scores[from..], &entries[from..])?;
        }
        Ok(())
    }

    /// Asks the disk for the records of all candidates of a query.
    fn advise_records(&self, nearest: &Nearest) {
        for (segment, lists) in self.lists.iter().enumerate() {
            let end = self.starts.get(segment + 1).copied().unwrap_or(u32::MAX);
            let of_segment = self.starts[segment]..end;
            let places = nearest.entries().iter().filter(|&place| of_segment.contains(place));
            lists.advise_records(places.map(|place| place - of_segment.start));
        }
    }

    /// Scores candidates of one query.
    pub fn query(&self, query: &ByteQuery, scores: &mut [f32], entries: &[u32]) -> Result<()> {
        let mut at = 0;
        while at < entries.len() {
            let (segment, _) = locate(self.starts, entries[at]);
            let next = self.starts.get(segment + 1).copied().unwrap_or(u32::MAX);
            let of_segment = self.starts[segment]..next;
            let n = entries[at..].iter().take_while(|&place| of_segment.contains(place)).count().max(1);
            let (entries, scores) = (&entries[at..at + n], &mut scores[at..at + n]);
            self.score(&self.lists[segment], self.starts[segment], query, entries, scores)?;
            at += n;
        }
        Ok(())
    }

    /// Has the records of the candidates in the list of some probes come from memory; those in the list `before` come before them.
    fn prefetch_records(&self, run: &[Probe], before: u32, nearest: &[Nearest], cursors: &[u32]) {
        for probe in run {
            let query = probe.query as usize;
            let mut entries = &nearest[query].entries()[cursors[query] as usize..];
            for (lists, &start) in self.lists.iter().zip(self.starts) {
                entries = &entries[within(entries, &span(lists, start, before))..];
            }
            for (lists, &start) in self.lists.iter().zip(self.starts) {
                let (own, rest) = entries.split_at(within(entries, &span(lists, start, run[0].list)));
                let Some((records, stride)) = lists.records() else { return };
                for place in own {
                    let at = (place - start) as usize * stride;
                    records.get(at..at + stride).into_iter().for_each(prefetch_far);
                }
                entries = rest;
            }
        }
    }

    fn score(&self, lists: &Lists, start: u32, query: &ByteQuery, entries: &[u32], scores: &mut [f32]) -> Result<()> {
        let added = lists.records().is_some_and(|(records, stride)| {
            self.kernels.add_corrections(records, stride, entries, start, query, scores)
        });
        if added {
            return Ok(());
        }
        Err(lists
            .wrong(format!("a list has entries beyond {} of its segment, or they have no second code", lists.len())))
    }
}

/// How many places from the first on lie in a range.
fn within(entries: &[u32], places: &Range<u32>) -> usize {
    entries.iter().take_while(|&place| places.contains(place)).count()
}
