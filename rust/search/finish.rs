//! Turns the candidates of a tile of queries into neighbors: best first, as ids.

use super::places::{locate, order};
use super::request::Rerank;
use super::rescore::Rescore;
use super::sort::sort;
use super::workspace::Workspace;
use crate::disk::Watch;
use crate::error::Why;
use crate::exact::{Found, Nearest, Rows, best, select};
use crate::index::Lists;
use crate::sections::Advise;
use crate::simd::Kernels;
use crate::{Error, Metric, Result};

/// What turns candidates into neighbors.
pub struct Finish<'f, 'a> {
    /// Kernels.
    pub kernels: &'f Kernels,
    /// How keys are compared.
    pub metric: Metric,
    /// List segments.
    pub lists: &'f [Lists<'a>],
    /// Place of the first entry of each segment.
    pub starts: &'f [u32],
    /// Raw keys, for [`Rerank::Keys`].
    pub rows: Rows<'f>,
    /// How candidates are scored again.
    pub rerank: Rerank,
    /// Neighbors per query.
    pub k: usize,
    /// Whether records and rows are likely to be on disk.
    pub cold: bool,
    /// Where rows can be asked of.
    pub advise: Option<&'f dyn Advise>,
}

impl Finish<'_, '_> {
    /// Writes the best `k` of the candidates in `w.nearest` of each query (q × d): scores and ids, −1 for missing ones.
    pub fn run(&self, queries: &[f32], w: &mut Workspace, scores: &mut [f32], ids: &mut [i64]) -> Result<()> {
        let q = scores.len() / self.k;
        let Workspace { rounds, bytes, nearest, cursors, keys: [keys, spare], .. } = w;
        let nearest = &mut nearest[..q];
        if self.rerank == Rerank::Code {
            let rescore = Rescore { kernels: self.kernels, lists: self.lists, starts: self.starts, cold: self.cold };
            rescore.tile(rounds, bytes, nearest, cursors)?;
        }
        if self.rerank == Rerank::Keys {
            return self.score_keys(queries, nearest, scores, ids);
        }
        let rows = scores.chunks_exact_mut(self.k).zip(ids.chunks_exact_mut(self.k));
        for (nearest, (scores, ids)) in nearest.iter_mut().zip(rows) {
            nearest.narrow(self.k);
            nearest.cut(self.kernels, |p| order(self.lists, self.starts, p));
            nearest.put_nan_last();
            self.rank(nearest, (keys, spare), scores, ids)?;
        }
        Ok(())
    }

    /// Writes candidates in the order of (score, id).
    fn rank(
        &self,
        nearest: &Nearest,
        (keys, spare): (&mut Vec<u64>, &mut Vec<u64>),
        scores: &mut [f32],
        ids: &mut [i64],
    ) -> Result<()> {
        // Integers sort several times faster than pairs: score above, position below; then equal scores by id.
        keys.clear();
        let pairs = nearest.scores().iter().zip(0u64..);
        keys.extend(pairs.map(|(score, i)| u64::from(select::key(score + 0.0)) << 32 | i));
        // Ids come from memory while scores are sorted.
        match self.lists {
            [lists] => nearest.entries().iter().for_each(|&entry| lists.prefetch_id(entry)),
            all => nearest.entries().iter().for_each(|&entry| {
                let (segment, position) = locate(self.starts, entry);
                all[segment].prefetch_id(position);
            }),
        }
        sort(keys, spare);
        let (found, entries) = (nearest.scores(), nearest.entries());
        for (&key, (score, id)) in keys.iter().zip(scores.iter_mut().zip(ids.iter_mut())) {
            let i = key as u32 as usize;
            let (segment, position) =
                if self.starts.len() == 1 { (0, entries[i]) } else { locate(self.starts, entries[i]) };
            (*score, *id) = (found[i], self.lists[segment].id(position)? as i64);
        }
        let n = keys.len();
        let mut start = 0;
        for equal in scores[..n].chunk_by(|a, b| a == b) {
            ids[start..start + equal.len()].sort_unstable();
            start += equal.len();
        }
        scores[n..].fill(f32::INFINITY);
        ids[n..].fill(-1);
        Ok(())
    }

    /// Writes the best candidates by their raw keys. Those of the next query come from disk while those of one are scored.
    fn score_keys(&self, queries: &[f32], nearest: &[Nearest], scores: &mut [f32], ids: &mut [i64]) -> Result<()> {
        let d = queries.len() / nearest.len().max(1);
        let rows = scores.chunks_exact_mut(self.k).zip(ids.chunks_exact_mut(self.k));
        let mut watch = Watch::new(self.cold);
        let mut ahead = nearest.iter().map(|nearest| self.found(nearest, watch.is_cold()));
        let mut next = ahead.next().transpose()?;
        for (query, (scores, ids)) in queries.chunks_exact(d.max(1)).zip(rows) {
            let Some((mut found, at)) = next else { break };
            next = ahead.next().transpose()?;
            self.rows.score_all(self.kernels, self.metric, query, at.iter().copied(), &mut found);
            best(&mut found, self.k);
            write(&found, scores, ids);
        }
        Ok(())
    }

    /// Candidates of a query in the order of their ids, which is how their raw keys lie, and the rows of these; asks the
    /// disk for them if it is `cold`.
    fn found(&self, nearest: &Nearest, cold: bool) -> Result<(Found, Vec<usize>)> {
        let mut found = Found::with_capacity(nearest.len());
        for (&score, &place) in nearest.scores().iter().zip(nearest.entries()) {
            let (segment, position) = locate(self.starts, place);
            found.push((score, self.lists[segment].id(position)?));
        }
        found.sort_unstable_by_key(|f| f.1);
        let mut at = Vec::with_capacity(found.len());
        for f in found.iter() {
            at.push(self.rows.find(f.1).ok_or_else(|| {
                Error::state(
                    Why::Broken,
                    format!("rerank by keys: the raw key of entry {} is missing; verify the store", f.1),
                )
            })?);
        }
        self.advise.filter(|_| cold).into_iter().for_each(|disk| self.rows.advise(disk, &at));
        Ok((found, at))
    }
}

/// Writes sorted neighbors and fills up with missing ones.
pub fn write(found: &Found, scores: &mut [f32], ids: &mut [i64]) {
    scores.fill(f32::INFINITY);
    ids.fill(-1);
    for (f, (score, id)) in found.iter().zip(scores.iter_mut().zip(ids)) {
        (*score, *id) = (f.0, f.1 as i64);
    }
}
