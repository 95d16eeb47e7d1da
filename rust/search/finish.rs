//! Turns the candidates of a tile of queries into neighbours: best first, as ids.

use super::places::{locate, order};
use super::rescore::Rescore;
use super::rows::Rows;
use super::select::{self, Nearest};
use super::workspace::Workspace;
use super::{Found, Rerank, best};
use crate::index::Lists;
use crate::simd::Kernels;
use crate::{Error, Metric, Result};

/// Ids that are asked for ahead of their turn.
const IDS_AHEAD: usize = 24;

/// What turns candidates into neighbours.
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
    /// Neighbours per query.
    pub k: usize,
}

impl Finish<'_, '_> {
    /// Writes the best `k` of the candidates in `w.nearest` of each query (q × d): scores and ids, −1 for missing ones.
    pub fn run(&self, queries: &[f32], w: &mut Workspace, scores: &mut [f32], ids: &mut [i64]) -> Result<()> {
        let q = scores.len() / self.k;
        let Workspace { rounds, bytes, nearest, cursors, keys, sorted, .. } = w;
        let nearest = &mut nearest[..q];
        if self.rerank == Rerank::Code {
            let rescore = Rescore { kernels: self.kernels, lists: self.lists, starts: self.starts };
            rescore.tile(rounds, bytes, nearest, cursors)?;
        }
        let rows = scores.chunks_exact_mut(self.k).zip(ids.chunks_exact_mut(self.k));
        for (i, (nearest, (scores, ids))) in nearest.iter_mut().zip(rows).enumerate() {
            if self.rerank == Rerank::Keys {
                let d = queries.len() / q;
                let found = self.score_keys(&queries[i * d..(i + 1) * d], nearest)?;
                write(&found, scores, ids);
            } else {
                nearest.narrow(self.k);
                nearest.cut(self.kernels, |p| order(self.lists, self.starts, p));
                self.rank(nearest, keys, sorted, scores, ids)?;
            }
        }
        Ok(())
    }

    /// Writes candidates in the order of (score, id).
    #[inline(never)]
    fn rank(&self, nearest: &Nearest, keys: &mut Vec<u64>, sorted: &mut Vec<u64>, scores: &mut [f32], ids: &mut [i64]) -> Result<()> {
        sort_keys(nearest.scores(), keys, sorted);
        let (found, entries) = (nearest.scores(), nearest.entries());
        for (at, (score, id)) in scores.iter_mut().zip(ids.iter_mut()).enumerate().take(sorted.len()) {
            if let (Some(&ahead), [lists]) = (sorted.get(at + IDS_AHEAD), self.lists) {
                lists.ask_id(entries[ahead as u32 as usize]);
            }
            let i = sorted[at] as u32 as usize;
            let (segment, position) =
                if self.starts.len() == 1 { (0, entries[i]) } else { locate(self.starts, entries[i]) };
            (*score, *id) = (found[i], self.lists[segment].id(position)? as i64);
        }
        let n = sorted.len();
        let mut start = 0;
        for equal in scores[..n].chunk_by(|a, b| a == b) {
            ids[start..start + equal.len()].sort_unstable();
            start += equal.len();
        }
        scores[n..].fill(f32::INFINITY);
        ids[n..].fill(-1);
        Ok(())
    }

    /// The best candidates by their raw keys, which are read in the order of their ids: that is how they lie.
    fn score_keys(&self, query: &[f32], nearest: &Nearest) -> Result<Found> {
        let mut found = Found::with_capacity(nearest.len());
        for (&score, &place) in nearest.scores().iter().zip(nearest.entries()) {
            let (segment, position) = locate(self.starts, place);
            found.push((score, self.lists[segment].id(position)?));
        }
        found.sort_unstable_by_key(|f| f.1);
        let mut at = Vec::with_capacity(found.len());
        for f in found.iter() {
            at.push(self.rows.find(f.1).ok_or_else(|| {
                Error::State(format!("rerank=\"keys\": the raw key of entry {} is missing; verify the store", f.1))
            })?);
        }
        self.rows.score_all(self.kernels, self.metric, query, at.iter().copied(), &mut found);
        best(&mut found, self.k);
        Ok(found)
    }
}

/// Buckets of the sort.
const BUCKETS: usize = 1024;

/// Sorts scores (no NaN) into `sorted`: an order-preserving integer above, the position in `scores` below; `keys` is scratch.
///
/// Scores fall into buckets of equal width, which leaves little to do: twice as fast as a comparison sort for a thousand.
fn sort_keys(scores: &[f32], keys: &mut Vec<u64>, sorted: &mut Vec<u64>) {
    keys.clear();
    keys.extend(scores.iter().zip(0u64..).map(|(score, i)| u64::from(select::key(score + 0.0)) << 32 | i));
    sorted.clear();
    sorted.extend_from_slice(keys);
    let (low, high) = scores.iter().fold((f32::MAX, f32::MIN), |(low, high), &x| (low.min(x), high.max(x)));
    let scale = (BUCKETS - 1) as f32 / (high - low);
    if keys.len() < 64 || !scale.is_finite() {
        return sorted.sort_unstable();
    }
    let bucket = |score: f32| ((score - low) * scale) as usize & (BUCKETS - 1);
    let mut ends = [0u32; BUCKETS];
    scores.iter().for_each(|&score| ends[bucket(score)] += 1);
    let (mut sum, mut most) = (0, 0);
    for end in &mut ends {
        most = most.max(*end);
        sum += std::mem::replace(end, sum);
    }
    if most > 64 {
        return sorted.sort_unstable();
    }
    for (&key, &score) in keys.iter().zip(scores) {
        let at = &mut ends[bucket(score)];
        sorted[*at as usize] = key;
        *at += 1;
    }
    // What is left are inversions within buckets.
    for i in 1..sorted.len() {
        let key = sorted[i];
        let mut at = i;
        while at > 0 && sorted[at - 1] > key {
            sorted[at] = sorted[at - 1];
            at -= 1;
        }
        sorted[at] = key;
    }
}

/// Writes sorted neighbours and fills up with missing ones.
pub fn write(found: &Found, scores: &mut [f32], ids: &mut [i64]) {
    scores.fill(f32::INFINITY);
    ids.fill(-1);
    for (f, (score, id)) in found.iter().zip(scores.iter_mut().zip(ids)) {
        (*score, *id) = (f.0, f.1 as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bucket_sort_sorts(raw in prop::collection::vec(-500i32..500, 1..1500), width in 1f32..1e9, power in 1i32..6) {
            // Evenly spread, crowded at one end, and many equal ones.
            let scores: Vec<f32> = raw.iter().map(|&x| width * (x as f32 / 500.0).powi(power)).collect();
            let (mut keys, mut sorted) = (Vec::new(), Vec::new());
            sort_keys(&scores, &mut keys, &mut sorted);
            let mut want: Vec<usize> = (0..scores.len()).collect();
            want.sort_by(|&a, &b| (scores[a] + 0.0).total_cmp(&(scores[b] + 0.0)).then(a.cmp(&b)));
            prop_assert_eq!(sorted.iter().map(|&k| k as u32 as usize).collect::<Vec<_>>(), want);
        }
    }
}
