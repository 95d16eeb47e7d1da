//! Scan of the lists: coarse step, look-up tables, codes, for a tile of queries.
//!
//! Each query takes its nearest lists first, until as many entries are seen as it wants: that gives it a limit. The other
//! (query, list) pairs are done list by list, so that the codes of a list serve all its queries from the cache. One
//! look-up table per query serves every list; what differs per list and entry is in `base`, A and B.

use super::Found;
use super::filter::Filter;
use super::select::{Nearest, smallest};
use super::sweep::{Matrix, sweep};
use crate::index::quantiser::Tables;
use crate::index::{Codebook, Lists};
use crate::simd::{FACTOR_BYTES, Kernels, LANES, ScanQuery, TILE_ROWS};
use crate::{Error, Metric, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// Blocks per kernel call: the limit tightens in between.
const CALL_BLOCKS: usize = 64;

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
    pub nprobe: usize,
    /// What each query may return.
    pub filter: Filter<'s>,
    /// This task takes list i of a query if i % parts = part.
    pub part: usize,
    /// See `part`.
    pub parts: usize,
    /// Set to stop.
    pub cancel: &'s AtomicBool,
}

/// A list that a query scans.
#[derive(Clone, Copy)]
struct Probe {
    list: u32,
    /// Score of the centroid: |q − c|², or −⟨q, c⟩.
    base: f32,
}

impl Scan<'_, '_> {
    /// The best `k` candidates of each query, unsorted.
    pub fn run(&self) -> Result<Vec<Found>> {
        let q = self.queries.len() / self.codebook.d();
        let (probes, tables) = self.prepare()?;
        let mut found = vec![Found::new(); q];
        for lists in self.lists {
            let mut nearest: Vec<Nearest> = (0..q).map(|_| Nearest::new(self.k, f32::MAX)).collect();
            let mut pairs: Vec<(u32, u32, f32)> = Vec::new();
            for (i, probes) in probes.iter().enumerate() {
                let mut seen = 0;
                for probe in probes {
                    if seen < 2 * self.k {
                        seen += lists.list_len(probe.list as usize);
                        self.scan_list(lists, i, *probe, &tables[i], &mut nearest[i])?;
                    } else if lists.list_len(probe.list as usize) > 0 {
                        pairs.push((probe.list, i as u32, probe.base));
                    }
                }
                nearest[i].cut(self.kernels, |p| lists.order(p));
            }
            pairs.sort_unstable_by_key(|&(list, query, _)| (list, query));
            for (list, query, base) in pairs {
                let i = query as usize;
                self.scan_list(lists, i, Probe { list, base }, &tables[i], &mut nearest[i])?;
            }
            for (nearest, found) in nearest.iter_mut().zip(&mut found) {
                nearest.cut(self.kernels, |p| lists.order(p));
                for (&score, &position) in nearest.scores().iter().zip(nearest.entries()) {
                    found.push((score, lists.id(position)?));
                }
            }
        }
        if self.lists.len() > 1 {
            found.iter_mut().for_each(|f| super::best(f, self.k));
        }
        Ok(found)
    }

    /// Number of entries in the lists that each query scans.
    pub fn scanned(&self) -> Result<Vec<u64>> {
        let (probes, _) = self.prepare()?;
        let in_list = |list: u32| self.lists.iter().map(|l| l.list_len(list as usize) as u64).sum::<u64>();
        Ok(probes.iter().map(|probes| probes.iter().map(|p| in_list(p.list)).sum()).collect())
    }

    /// Lists and tables of each query.
    fn prepare(&self) -> Result<(Vec<Vec<Probe>>, Vec<Tables>)> {
        let (book, d) = (self.codebook, self.codebook.d());
        let shape = book.shape();
        let mut centred = self.queries.to_vec();
        for row in centred.chunks_exact_mut(d) {
            row.iter_mut().zip(book.mean).for_each(|(x, m)| *x -= m);
        }
        let mut probes = Vec::with_capacity(centred.len() / d);
        let mut tables = Vec::with_capacity(centred.len() / d);
        let mut rotated = vec![0f32; shape.padded()];
        let mut matrix = Matrix { n: book.nlist(), scores: Vec::new() };
        for group in centred.chunks(TILE_ROWS * d) {
            self.check()?;
            matrix.scores.clear();
            matrix.scores.resize(group.len() / d * matrix.n, f32::INFINITY);
            sweep(self.kernels, group, &book.coarse(), &mut matrix);
            for (row, scores) in group.chunks_exact(d).zip(matrix.scores.chunks_exact(matrix.n)) {
                let norm = if book.metric() == Metric::L2 { self.kernels.ip_f32(row, row) } else { 0.0 };
                let lists = smallest(self.kernels, scores, self.nprobe);
                let mine = lists.iter().skip(self.part).step_by(self.parts);
                probes.push(mine.map(|&list| Probe { list, base: norm + scores[list as usize] }).collect());
                rotated[..d].copy_from_slice(row);
                book.rotation.apply(self.kernels, &mut rotated[..d]);
                let mut table = Tables::default();
                table.fill(self.kernels, shape, book.words, &rotated)?;
                tables.push(table);
            }
        }
        Ok((probes, tables))
    }

    fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn scan_list(
        &self,
        lists: &Lists,
        query: usize,
        probe: Probe,
        tables: &Tables,
        nearest: &mut Nearest,
    ) -> Result<()> {
        let (blocks, mut first) = lists.list(probe.list as usize);
        let block_bytes = self.codebook.code_bytes() * LANES + FACTOR_BYTES;
        for blocks in blocks.chunks(CALL_BLOCKS * block_bytes) {
            let n = blocks.len() / block_bytes * LANES;
            let order = |p: u32| lists.order(p);
            nearest.make_room(self.kernels, n, order);
            let (limit, before) = (nearest.limit(), nearest.len());
            let (scores, entries) = nearest.free();
            let found = if self.codebook.bits() == 4 {
                let query = ScanQuery {
                    table: &tables.bytes[..],
                    scale: tables.scale,
                    bias: tables.bias,
                    base: probe.base,
                    limit,
                };
                self.kernels.scan4(blocks, &query, first, scores, entries)
            } else {
                let query = ScanQuery { table: &tables.floats[..], scale: 1.0, bias: 0.0, base: probe.base, limit };
                self.kernels.scan8(blocks, &query, first, scores, entries)
            };
            nearest.advance(found);
            if !self.filter.is_open() {
                nearest.drop_after(before, |p| !self.filter.admits(query, order(p)));
            }
            first += n as u32;
        }
        self.check()
    }
}
