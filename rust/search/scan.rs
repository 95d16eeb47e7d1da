//! Scan of the lists: coarse step, look-up tables, codes, second-level codes, for a tile of queries.
//!
//! Each query takes its nearest lists first: that gives it a limit, and, if the search stops by distance, the lists that are
//! still worth scanning. Both rounds run list by list, so that the codes of a list serve several queries from the cache
//! and up to six at a time in registers. What a query scans depends on the query alone. One look-up table per query serves every
//! list; what differs per list and entry is in `base`, A, B.

use super::ahead::Ahead;
use super::near::{Near, Probe, by_list, runs};
use super::places::order;
use super::probes::{Chooser, Reach};
use super::workspace::Workspace;
use crate::exact::{Filter, Nearest};
use crate::index::bytes::ByteRows;
use crate::index::coarse::{Coarse, Coded, ESTIMATED, score_floats};
use crate::index::quantiser::Tables;
use crate::index::{Codebook, Coding, Lists};
use crate::simd::{GROUP, Kernels, LANES, LevelQuery, ScanQuery, TILE_ROWS, prefetch};
use crate::{Error, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Blocks per kernel call: the limit tightens in between.
const CALL_BLOCKS: usize = 64;
/// Queries that meet the centroids together.
const COARSE_ROWS: usize = 8 * TILE_ROWS;

/// Queries as the kernels take them.
#[derive(Clone, Copy)]
pub struct Queries<'q> {
    /// Look-up tables of each.
    pub tables: &'q [Tables],
    /// Each in 8 bits.
    pub bytes: &'q ByteRows,
}

/// One task: some queries, and every `parts`-th of their lists.
#[derive(Clone, Copy)]
pub struct Scan<'s, 'a> {
    /// Kernels.
    pub kernels: &'s Kernels,
    /// Codebook of all lists.
    pub codebook: &'s Codebook<'a>,
    /// List segments.
    pub lists: &'s [Lists<'a>],
    /// Place of the first entry of each segment.
    pub starts: &'s [u32],
    /// Queries, q × d.
    pub queries: &'s [f32],
    /// Candidates to keep.
    pub k: usize,
    /// Lists to scan.
    pub reach: Reach,
    /// What each query may return.
    pub filter: Filter<'s>,
    /// Of the lists after the nearest, this task takes number i of a query if i % parts = part.
    pub part: usize,
    /// See `part`.
    pub parts: usize,
    /// Whether lists are likely to be on disk.
    pub cold: bool,
    /// Set to stop.
    pub cancel: &'s AtomicBool,
}

impl Scan<'_, '_> {
    /// The best `k` candidates of each query into `w.nearest`: those of its nearest lists, then the others, each by place.
    pub fn run(&self, w: &mut Workspace) -> Result<()> {
        let Scan { kernels, codebook, lists, starts, k, reach, .. } = *self;
        let chooser = Chooser { kernels, codebook, lists, k, reach };
        self.prepare(&chooser, w)?;
        let Workspace { near, choice, rounds: [first, rest], nearest, tables, entries, bytes, .. } = w;
        let (q, nlist) = (near.shifts.len(), codebook.nlist());
        choice.nearest.clear();
        choice.ends.clear();
        entries.clear();
        first.clear();
        for query in 0..q {
            let seen = match chooser.nearest(query, near.of(query), near.limits[query], choice, first) {
                Some(seen) => seen,
                None => {
                    let all = self.all_lists(query)?;
                    chooser.nearest(query, all.of(0), f32::INFINITY, choice, first).unwrap_or(0)
                }
            };
            entries.push(seen);
            choice.ends.push(choice.nearest.len());
        }
        by_list(first, nlist, choice);
        let queries = Queries { tables: &*tables, bytes: &*bytes };
        self.sweep(first, queries, nearest)?;
        rest.clear();
        for query in 0..q {
            nearest[query].cut(kernels, |p| order(lists, starts, p));
            let before = rest.len();
            let done = if query == 0 { 0 } else { choice.ends[query - 1] }..choice.ends[query];
            let limit = nearest[query].limit();
            if !chooser.further(query, near.of(query), near.limits[query], limit, done.clone(), choice, rest) {
                let all = self.all_lists(query)?;
                chooser.further(query, all.of(0), f32::INFINITY, limit, done, choice, rest);
            }
            entries[query] += rest[before..].iter().map(|probe| chooser.list_len(probe.list)).sum::<u64>();
            if self.parts > 1 {
                let mut kept = before;
                for (i, at) in (before..rest.len()).enumerate() {
                    rest[kept] = rest[at];
                    kept += usize::from(i % self.parts == self.part);
                }
                rest.truncate(kept);
                if self.part > 0 {
                    nearest[query].clear(); // the first part brings those of the nearest lists
                }
            }
        }
        by_list(rest, nlist, choice);
        self.sweep(rest, queries, nearest)?;
        nearest[..q].iter_mut().for_each(|nearest| nearest.cut(kernels, |p| order(lists, starts, p)));
        Ok(())
    }

    /// Tables, bytes and near lists of each query.
    fn prepare(&self, chooser: &Chooser, w: &mut Workspace) -> Result<()> {
        let (book, d) = (self.codebook, self.codebook.d());
        let (shape, centroids, nlist) = (book.shape(), book.coarse(self.kernels), book.nlist());
        let q = self.queries.len() / d;
        w.bytes.reset(d);
        w.near.clear();
        if w.nearest.len() < q {
            w.nearest.resize_with(q, Nearest::default);
            w.tables.resize_with(q, Tables::default);
        }
        w.nearest[..q].iter_mut().for_each(|nearest| nearest.reset(self.k, f32::MAX));
        let stride = shape.padded();
        for group in self.queries.chunks(COARSE_ROWS * d) {
            self.check()?;
            let (done, rows) = (w.near.shifts.len(), group.len() / d);
            w.centred.clear();
            w.centred.extend_from_slice(group);
            w.rotated.clear();
            w.rotated.resize(rows * stride, 0.0);
            let pairs = w.centred.chunks_exact_mut(d).zip(w.rotated.chunks_exact_mut(stride));
            for ((row, rotated), tables) in pairs.zip(&mut w.tables[done..]) {
                row.iter_mut().zip(book.mean).for_each(|(x, m)| *x -= m);
                rotated[..d].copy_from_slice(row);
                book.rotation.apply(self.kernels, &mut rotated[..d]);
                w.bytes.push(self.kernels, &rotated[..d]);
                tables.fill(self.kernels, shape, book.words, rotated, &mut w.products);
            }
            match centroids {
                Coarse::Coded(coded) => self.near_coded(coded, chooser, done..done + rows, w),
                Coarse::Floats => {
                    w.scores.resize(w.scores.len().max(rows * nlist), 0.0);
                    score_floats(self.kernels, nlist, &book.float_panels(), &w.centred, &mut w.scores[..rows * nlist]);
                    for scores in w.scores[..rows * nlist].chunks_exact(nlist) {
                        let (n, limit) = chooser.keep(scores, &mut w.choice);
                        let found = &w.choice.found[..n];
                        w.near.push(found, found.iter().map(|&list| scores[list as usize]), limit);
                    }
                }
            }
            for rotated in w.rotated.chunks_exact(stride) {
                w.near.shifts.push(centroids.shift(self.kernels, book.metric(), &rotated[..d]));
            }
        }
        Ok(())
    }

    /// Lists near some queries, chosen by estimates, and their scores.
    fn near_coded(&self, coded: &Coded, chooser: &Chooser, queries: Range<usize>, w: &mut Workspace) {
        let (nlist, stride) = (self.codebook.nlist(), self.codebook.nlist().next_multiple_of(LANES));
        w.scores.resize(w.scores.len().max(ESTIMATED * stride), 0.0);
        for first in queries.clone().step_by(ESTIMATED) {
            let group = first..queries.end.min(first + ESTIMATED);
            coded.estimate(self.kernels, &w.tables[group.clone()], stride, &mut w.scores, &mut w.choice.ignored);
            for (query, scores) in group.zip(w.scores.chunks_exact(stride)) {
                let (n, limit) = chooser.keep(&scores[..nlist], &mut w.choice);
                let picks = &w.choice.found[..n];
                w.choice.lows.resize(n, 0.0);
                coded.score(self.kernels, self.codebook.metric(), &w.bytes, query, picks, &mut w.choice.lows);
                w.near.push(picks, w.choice.lows.iter().copied(), limit);
            }
        }
    }

    /// All lists of a query, for the rare one that needs more than were kept.
    pub fn all_lists(&self, query: usize) -> Result<Near> {
        let (book, d) = (self.codebook, self.codebook.d());
        let Scan { kernels, codebook, lists, k, .. } = *self;
        let everything = Reach { nprobe: book.nlist(), stop: None };
        let alone = Scan { queries: &self.queries[query * d..(query + 1) * d], ..*self };
        let mut w = Workspace::default();
        alone.prepare(&Chooser { kernels, codebook, lists, k, reach: everything }, &mut w)?;
        Ok(w.near)
    }

    fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Scans probes list by list, for candidates of each query.
    pub fn sweep(&self, probes: &[Probe], queries: Queries, nearest: &mut [Nearest]) -> Result<()> {
        let four = self.codebook.bits() == 4;
        let mut ahead = Ahead::new(self.lists, probes, self.cold);
        let mut all = runs(probes).enumerate().peekable();
        while let Some((seen, run)) = all.next() {
            if seen % 64 == 0 {
                self.check()?;
            }
            ahead.reach(run);
            if let Some((_, next)) = all.peek() {
                // Where the next list begins comes from memory while this one is scanned; the kernels ask for what follows.
                self.lists.iter().for_each(|lists| prefetch_start(lists.list(next[0].list as usize).0));
            }
            for (lists, &start) in self.lists.iter().zip(self.starts) {
                let parts = if four { run.len().div_ceil(GROUP) } else { run.len() };
                for part in 0..parts {
                    // Groups of about the same size.
                    match &run[part * run.len() / parts..(part + 1) * run.len() / parts] {
                        [probe] => self.scan_list(lists, start, *probe, queries, nearest),
                        &[a, b] => self.scan_group(lists, start, [a, b], queries, nearest),
                        &[a, b, c] => self.scan_group(lists, start, [a, b, c], queries, nearest),
                        &[a, b, c, d] => self.scan_group(lists, start, [a, b, c, d], queries, nearest),
                        &[a, b, c, d, e] => self.scan_group(lists, start, [a, b, c, d, e], queries, nearest),
                        &[a, b, c, d, e, f] => self.scan_group(lists, start, [a, b, c, d, e, f], queries, nearest),
                        other => other.iter().for_each(|&p| self.scan_list(lists, start, p, queries, nearest)),
                    }
                }
            }
        }
        self.check()
    }

    /// Scans a list for one query.
    pub fn scan_list(&self, lists: &Lists, start: u32, probe: Probe, queries: Queries, nearest: &mut [Nearest]) {
        let (blocks, first) = lists.list(probe.list as usize);
        let mut first = start + first;
        let query = probe.query as usize;
        let (tables, nearest) = (&queries.tables[query], &mut nearest[query]);
        for blocks in blocks.chunks(CALL_BLOCKS * self.codebook.block_bytes()) {
            let n = blocks.len() / self.codebook.block_bytes() * LANES;
            nearest.make_room(self.kernels, n, |p| order(self.lists, self.starts, p));
            let (limit, before) = (nearest.limit(), nearest.len());
            let (scores, entries) = nearest.free();
            let found = match self.codebook.coding() {
                Coding::Levels { .. } => {
                    let query = LevelQuery { bytes: queries.bytes.query(query), base: probe.base, limit };
                    self.kernels.scan_levels(blocks, &query, first, scores, entries)
                }
                Coding::Product(shape) if shape.bits == 4 => {
                    self.kernels.scan4(blocks, &bytes_query(tables, probe.base, limit), first, scores, entries)
                }
                Coding::Product(_) => {
                    let query = ScanQuery { table: &tables.floats[..], scale: 1.0, bias: 0.0, base: probe.base, limit };
                    self.kernels.scan8(blocks, &query, first, scores, entries)
                }
            };
            nearest.advance(found);
            self.drop_filtered(lists, probe, nearest, before);
            first += n as u32;
        }
    }

    /// Scans a list for several queries at once.
    fn scan_group<const N: usize>(
        &self,
        lists: &Lists,
        start: u32,
        group: [Probe; N],
        queries: Queries,
        nearest: &mut [Nearest],
    ) {
        let (blocks, first) = lists.list(group[0].list as usize);
        let mut first = start + first;
        let numbers: [usize; N] = std::array::from_fn(|i| group[i].query as usize);
        let Ok(mut parts) = nearest.get_disjoint_mut(numbers) else {
            // The queries of a list differ. If ever they did not, each would be scanned for by itself, and nothing lost.
            debug_assert!(false, "two probes of one query in a group: {numbers:?}");
            return group.iter().for_each(|&probe| self.scan_list(lists, start, probe, queries, nearest));
        };
        for blocks in blocks.chunks(CALL_BLOCKS * self.codebook.block_bytes()) {
            let n = blocks.len() / self.codebook.block_bytes() * LANES;
            let mut before = [0; N];
            for (part, before) in parts.iter_mut().zip(&mut before) {
                part.make_room(self.kernels, n, |p| order(self.lists, self.starts, p));
                *before = part.len();
            }
            let limits: [f32; N] = std::array::from_fn(|i| parts[i].limit());
            let out = parts.each_mut().map(|part| part.free());
            let Queries { tables, bytes } = queries;
            let found = match self.codebook.coding() {
                Coding::Levels { .. } => {
                    let query =
                        |i: usize| LevelQuery { bytes: bytes.query(numbers[i]), base: group[i].base, limit: limits[i] };
                    self.kernels.scan_levels_group(blocks, &std::array::from_fn(query), first, out)
                }
                Coding::Product(_) => {
                    let query = |i: usize| bytes_query(&tables[numbers[i]], group[i].base, limits[i]);
                    self.kernels.scan4_group(blocks, &std::array::from_fn(query), first, out)
                }
            };
            for (i, part) in parts.iter_mut().enumerate() {
                part.advance(found[i]);
                self.drop_filtered(lists, group[i], part, before[i]);
            }
            first += n as u32;
        }
    }

    /// Drops candidates of a list, from number `before` on, that the query may not return.
    fn drop_filtered(&self, lists: &Lists, probe: Probe, nearest: &mut Nearest, before: usize) {
        if !self.filter.is_open(lists.may_hold_deleted(probe.list as usize)) {
            let query = probe.query as usize;
            nearest.drop_after(before, |p| !self.filter.admits(query, order(self.lists, self.starts, p)));
        }
    }
}

fn bytes_query(tables: &Tables, base: f32, limit: f32) -> ScanQuery<'_, u8> {
    ScanQuery { table: &tables.bytes[..], scale: tables.scale, bias: tables.bias, base, limit }
}

/// Asks for the first 4 KiB.
fn prefetch_start(blocks: &[u8]) {
    prefetch(&blocks[..blocks.len().min(4096)]);
}
