//! Scan of the lists: coarse step, look-up tables, codes, for a tile of queries.
//!
//! Each query takes its nearest lists first, until [`FIRST`] times as many entries are seen as it wants: that gives it a
//! limit, and, if the search stops by distance, the lists that are still worth scanning. Both rounds run list by list, so that
//! the codes of a list serve several queries from the cache and four at a time in registers. What a query scans depends
//! on the query alone. One look-up table per query serves every list; what differs per list and entry is in `base`, A, B.

use super::filter::Filter;
use super::select::{Nearest, kth_smallest};
use crate::index::coarse::CoarseQuery;
use crate::index::quantiser::Tables;
use crate::index::second::QueryBytes;
use crate::index::{Codebook, Lists};
use crate::simd::{GROUP, Kernels, LANES, ScanQuery, TILE_ROWS, prefetch};
use crate::{Error, Metric, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// Blocks per kernel call: the limit tightens in between.
const CALL_BLOCKS: usize = 64;
/// Entries of the nearest lists that give a query its limit, as a multiple of the candidates it wants.
const FIRST: usize = 2;

/// Queries that meet the centroids together.
const COARSE_ROWS: usize = 8 * TILE_ROWS;

/// How far a query looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// Lists to scan at most.
    pub nprobe: usize,
    /// L2: lists whose centroid is further than this multiple of the limit that the nearest lists gave are left out. Inner
    /// product: further than the limit by this share, less one, of the limit's distance from the nearest centroid.
    pub stop: Option<f32>,
}

/// One task: some queries, and every `parts`-th of their lists.
pub struct Scan<'s, 'a> {
    /// Kernels.
    pub kernels: &'s Kernels,
    /// Codebook of all lists.
    pub codebook: &'s Codebook<'a>,
    /// List segments.
    pub lists: &'s [Lists<'a>],
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
    /// Set to stop.
    pub cancel: &'s AtomicBool,
}

/// What a scan knows of a query.
pub struct Scanned {
    /// Best candidates: scores, and places in list order counted through all segments.
    pub nearest: Nearest,
    /// The rotated query in 8 bits, for the second level.
    pub bytes: QueryBytes,
    /// Entries in its lists.
    pub entries: u64,
    tables: Tables,
}

/// A list that a query scans.
#[derive(Clone, Copy, Default)]
struct Probe {
    list: u32,
    query: u32,
    /// Score of the centroid: |q − c|², or −⟨q, c⟩.
    base: f32,
}

/// Scores of all lists for a query, and what is left of them after the nearest.
struct Coarse {
    scores: Vec<f32>,
    /// Added to a score gives the base.
    shift: f32,
}

impl Scan<'_, '_> {
    /// The best `k` candidates of each query, in no order.
    pub fn run(&self) -> Result<Vec<Scanned>> {
        let starts = starts(self.lists)?;
        let (mut scanned, coarse) = self.prepare()?;
        let mut first: Vec<Probe> = Vec::new();
        let mut chosen: Vec<Vec<u32>> = Vec::with_capacity(scanned.len());
        let mut found = vec![0u32; self.codebook.nlist() + LANES];
        for (query, (scanned, coarse)) in scanned.iter_mut().zip(&coarse).enumerate() {
            let lists = self.nearest_lists(coarse, &mut found);
            scanned.entries = lists.iter().map(|&list| self.list_len(list)).sum();
            first.extend(lists.iter().map(|&list| self.probe(list, query, coarse)));
            chosen.push(lists);
        }
        self.sweep(&starts, &mut first, &mut scanned)?;
        let mut rest: Vec<Probe> = Vec::new();
        for (query, (scanned, coarse)) in scanned.iter_mut().zip(&coarse).enumerate() {
            scanned.nearest.cut(self.kernels, |p| order(self.lists, &starts, p));
            let before = rest.len();
            self.further_lists(query, coarse, &scanned.nearest, &chosen[query], &mut found, &mut rest);
            scanned.entries += rest[before..].iter().map(|probe| self.list_len(probe.list)).sum::<u64>();
            if self.parts > 1 {
                let mut kept = before;
                for (i, at) in (before..rest.len()).enumerate() {
                    rest[kept] = rest[at];
                    kept += usize::from(i % self.parts == self.part);
                }
                rest.truncate(kept);
                if self.part > 0 {
                    scanned.nearest.clear(); // the first part brings those of the nearest lists
                }
            }
        }
        self.sweep(&starts, &mut rest, &mut scanned)?;
        for scanned in &mut scanned {
            scanned.nearest.cut(self.kernels, |p| order(self.lists, &starts, p));
        }
        Ok(scanned)
    }

    fn list_len(&self, list: u32) -> u64 {
        self.lists.iter().map(|l| l.live_len(list as usize) as u64).sum()
    }

    fn probe(&self, list: u32, query: usize, coarse: &Coarse) -> Probe {
        Probe { list, query: query as u32, base: coarse.shift + coarse.scores[list as usize] }
    }

    /// Tables, bytes and list scores of each query.
    fn prepare(&self) -> Result<(Vec<Scanned>, Vec<Coarse>)> {
        let (book, d) = (self.codebook, self.codebook.d());
        let (shape, centroids) = (book.shape(), book.coarse(self.kernels));
        let mut scanned = Vec::with_capacity(self.queries.len() / d);
        let mut coarse = Vec::with_capacity(self.queries.len() / d);
        let mut scores = Vec::new();
        for group in self.queries.chunks(COARSE_ROWS * d) {
            self.check()?;
            let mut centred = group.to_vec();
            let mut rotated = vec![0f32; group.len() / d * shape.padded()];
            for (row, rotated) in centred.chunks_exact_mut(d).zip(rotated.chunks_exact_mut(shape.padded())) {
                row.iter_mut().zip(book.mean).for_each(|(x, m)| *x -= m);
                rotated[..d].copy_from_slice(row);
                book.rotation.apply(self.kernels, &mut rotated[..d]);
                let mut bytes = QueryBytes::default();
                bytes.fill(&rotated[..d]);
                let mut tables = Tables::default();
                tables.fill(self.kernels, shape, book.words, rotated)?;
                scanned.push(Scanned { nearest: Nearest::new(self.k, f32::MAX), bytes, entries: 0, tables });
            }
            let rows = centred.chunks_exact(d).zip(rotated.chunks_exact(shape.padded())).zip(&scanned[coarse.len()..]);
            let queries: Vec<CoarseQuery> = rows
                .map(|((centred, rotated), s)| CoarseQuery { centred, rotated: &rotated[..d], bytes: s.bytes.clone() })
                .collect();
            let shifts = centroids.scores(self.kernels, book, &queries, &mut scores);
            let rows = scores.chunks_exact(book.nlist()).zip(shifts);
            coarse.extend(rows.map(|(row, shift)| Coarse { scores: row.to_vec(), shift }));
        }
        Ok((scanned, coarse))
    }

    /// The nearest lists of a query, until they hold [`FIRST`] times k entries, by (score, number).
    fn nearest_lists(&self, coarse: &Coarse, found: &mut [u32]) -> Vec<u32> {
        let (nlist, scores) = (self.codebook.nlist(), &coarse.scores);
        let entries: u64 = self.lists.iter().map(|l| l.len() as u64).sum();
        let wanted = (FIRST * self.k) as u64;
        // As many as hold enough if they are of mean length; lists where queries fall are longer.
        let mut guess = 8 + (wanted.saturating_mul(nlist as u64) / entries.max(1)).min(nlist as u64) as usize;
        loop {
            guess = guess.min(self.reach.nprobe).min(nlist);
            let n = if guess == nlist {
                found[..nlist].iter_mut().zip(0u32..).for_each(|(f, i)| *f = i);
                nlist
            } else {
                let limit = kth_smallest(self.kernels, scores, guess);
                self.kernels.find_at_most(scores, limit, found)
            };
            let lists = &mut found[..n];
            lists.sort_unstable_by(|&a, &b| scores[a as usize].total_cmp(&scores[b as usize]).then(a.cmp(&b)));
            let lists = &lists[..guess.min(n)]; // fewer only where centroids of a damaged file are not numbers
            let mut seen = 0;
            let enough = lists.iter().position(|&list| {
                seen += self.list_len(list);
                seen >= wanted
            });
            match enough {
                Some(last) => return lists[..=last].to_vec(),
                None if guess == self.reach.nprobe.min(nlist) => return lists.to_vec(),
                None => guess *= 2,
            }
        }
    }

    /// Appends the lists that are left to a query in the order of their numbers.
    fn further_lists(
        &self,
        query: usize,
        coarse: &Coarse,
        nearest: &Nearest,
        done: &[u32],
        found: &mut [u32],
        out: &mut Vec<Probe>,
    ) {
        let (nprobe, scores) = (self.reach.nprobe.min(self.codebook.nlist()), &coarse.scores);
        if done.len() >= nprobe {
            return;
        }
        let most = if nprobe == scores.len() { f32::MAX } else { kth_smallest(self.kernels, scores, nprobe) };
        let reach = match self.reach.stop {
            Some(stop) if nearest.limit() < f32::MAX => self.reach_of(stop, nearest.limit(), coarse, done),
            _ => f32::MAX,
        };
        let n = self.kernels.find_at_most(scores, most.min(reach), found);
        let mut done = done.to_vec();
        done.sort_unstable();
        let mut next = done.iter().copied().peekable();
        // Equal scores at the limit: the lower numbers, as many as nprobe lets pass.
        let mut left = usize::MAX;
        if n > nprobe {
            let ties = found[..n].iter().filter(|&&list| scores[list as usize] == most).count();
            left = nprobe - (n - ties).min(nprobe);
        }
        for &list in &found[..n] {
            if scores[list as usize] == most {
                if left == 0 {
                    continue;
                }
                left = left.saturating_sub(1);
            }
            // Some of the nearest lists may be out of reach themselves.
            while next.next_if(|&done| done < list).is_some() {}
            if next.next_if_eq(&list).is_none() && self.list_len(list) > 0 {
                out.push(self.probe(list, query, coarse));
            }
        }
    }

    /// Score of the furthest list that is worth scanning.
    fn reach_of(&self, stop: f32, limit: f32, coarse: &Coarse, done: &[u32]) -> f32 {
        let nearest = done.first().map_or(0.0, |&list| coarse.shift + coarse.scores[list as usize]);
        let furthest = match self.codebook.metric() {
            Metric::L2 => stop * limit,
            Metric::Ip => limit + (stop - 1.0) * (limit - nearest).abs(),
        };
        furthest - coarse.shift
    }

    fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Scans probes list by list.
    fn sweep(&self, starts: &[u32], probes: &mut [Probe], scanned: &mut [Scanned]) -> Result<()> {
        if scanned.len() > 1 {
            by_list(probes, self.codebook.nlist());
        }
        let four = self.codebook.bits() == 4 && scanned.len() > 1;
        let mut i = 0;
        while i < probes.len() {
            let list = probes[i].list;
            let n = probes[i..].iter().take_while(|p| p.list == list).count();
            if i % 64 == 0 {
                self.check()?;
            }
            for (lists, &start) in self.lists.iter().zip(starts) {
                if scanned.len() == 1 {
                    // The next lists come from memory while this one is scanned.
                    probes.get(i + 1).into_iter().for_each(|p| prefetch_start(lists.list(p.list as usize).0));
                }
                let mut rest = &probes[i..i + n];
                while four && rest.len() >= GROUP {
                    let (group, more) = rest.split_at(GROUP);
                    self.scan_group(lists, starts, start, group, scanned);
                    rest = more;
                }
                for probe in rest {
                    self.scan_list(lists, starts, start, *probe, scanned);
                }
            }
            i += n;
        }
        self.check()
    }

    fn scan_list(&self, lists: &Lists, starts: &[u32], start: u32, probe: Probe, scanned: &mut [Scanned]) {
        let (blocks, first) = lists.list(probe.list as usize);
        let mut first = start + first;
        let Scanned { nearest, tables, .. } = &mut scanned[probe.query as usize];
        for blocks in blocks.chunks(CALL_BLOCKS * self.codebook.block_bytes()) {
            let n = blocks.len() / self.codebook.block_bytes() * LANES;
            nearest.make_room(self.kernels, n, |p| order(self.lists, starts, p));
            let (limit, before) = (nearest.limit(), nearest.len());
            let (scores, entries) = nearest.free();
            let found = if self.codebook.bits() == 4 {
                self.kernels.scan4(blocks, &bytes_query(tables, probe.base, limit), first, scores, entries)
            } else {
                let query = ScanQuery { table: &tables.floats[..], scale: 1.0, bias: 0.0, base: probe.base, limit };
                self.kernels.scan8(blocks, &query, first, scores, entries)
            };
            nearest.advance(found);
            self.drop_filtered(starts, nearest, before, probe.query);
            first += n as u32;
        }
    }

    /// Scans a list for four queries at once.
    fn scan_group(&self, lists: &Lists, starts: &[u32], start: u32, group: &[Probe], scanned: &mut [Scanned]) {
        let (blocks, first) = lists.list(group[0].list as usize);
        let mut first = start + first;
        // Queries of a list ascend: each is taken out of the slice in turn.
        let mut parts: Vec<&mut Scanned> = Vec::with_capacity(GROUP);
        let mut rest = scanned;
        let mut offset = 0;
        for probe in group {
            let at = probe.query as usize - offset;
            let Some((one, more)) = rest.get_mut(at..).and_then(<[_]>::split_first_mut) else { return };
            parts.push(one);
            rest = more;
            offset = probe.query as usize + 1;
        }
        for blocks in blocks.chunks(CALL_BLOCKS * self.codebook.block_bytes()) {
            let n = blocks.len() / self.codebook.block_bytes() * LANES;
            let mut before = [0; GROUP];
            for (part, before) in parts.iter_mut().zip(&mut before) {
                part.nearest.make_room(self.kernels, n, |p| order(self.lists, starts, p));
                *before = part.nearest.len();
            }
            let [a, b, c, d] = &mut parts[..] else { return };
            let found = {
                let limits = [a.nearest.limit(), b.nearest.limit(), c.nearest.limit(), d.nearest.limit()];
                let tables = [&a.tables, &b.tables, &c.tables, &d.tables];
                let queries = std::array::from_fn(|i| bytes_query(tables[i], group[i].base, limits[i]));
                let out = [a.nearest.free(), b.nearest.free(), c.nearest.free(), d.nearest.free()];
                self.kernels.scan4_group(blocks, &queries, first, out)
            };
            for (i, part) in parts.iter_mut().enumerate() {
                part.nearest.advance(found[i]);
                self.drop_filtered(starts, &mut part.nearest, before[i], group[i].query);
            }
            first += n as u32;
        }
    }

    fn drop_filtered(&self, starts: &[u32], nearest: &mut Nearest, before: usize, query: u32) {
        if !self.filter.is_open() {
            nearest.drop_after(before, |p| !self.filter.admits(query as usize, order(self.lists, starts, p)));
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

/// Sorts probes by (list, query), given in the order of the queries: a counting sort.
fn by_list(probes: &mut [Probe], nlist: usize) {
    let mut next = vec![0u32; nlist + 1];
    probes.iter().for_each(|p| next[p.list as usize + 1] += 1);
    for i in 0..nlist {
        next[i + 1] += next[i];
    }
    let mut sorted = vec![Probe::default(); probes.len()];
    for probe in probes.iter() {
        let at = &mut next[probe.list as usize];
        sorted[*at as usize] = *probe;
        *at += 1;
    }
    probes.copy_from_slice(&sorted);
}

/// Place of the first entry of each segment, counted through all segments.
pub fn starts(lists: &[Lists]) -> Result<Vec<u32>> {
    let mut sum = 0usize;
    let mut starts = Vec::with_capacity(lists.len());
    for lists in lists {
        starts.push(sum as u32);
        sum += lists.len();
        // The padding of the last block lies behind the last entry.
        if sum > u32::MAX as usize - LANES {
            return Err(Error::State(format!(
                "expected less than 2^32 − 16 indexed entries in one store, found {sum}; use several stores"
            )));
        }
    }
    Ok(starts)
}

/// Segment of a place, and the position in it.
pub fn locate(starts: &[u32], place: u32) -> (usize, u32) {
    let segment = starts.partition_point(|&s| s <= place).max(1) - 1;
    (segment, place - starts.get(segment).copied().unwrap_or(0))
}

/// Id of the entry at a place, for ordering: damaged ones give a large number.
pub fn order(lists: &[Lists], starts: &[u32], place: u32) -> u64 {
    if let [lists] = lists {
        return lists.order(place);
    }
    let (segment, position) = locate(starts, place);
    lists.get(segment).map_or(u64::MAX, |lists| lists.order(position))
}
