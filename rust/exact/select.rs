//! Keeps the k best of a stream of (score, entry): a buffer with a limit, cut back by bisection when full.
//!
//! A heap costs a branch miss per candidate; here candidates are only appended (the scan kernels compress them in), and
//! every few thousand the k-th score is found by bisecting on its bits with a vectorised count. It becomes the limit
//! that later candidates must meet. Equal scores at the limit are decided by id, so the outcome does not depend on the
//! order of the stream.

use crate::simd::Kernels;
use std::cmp::Ordering;

/// Order-preserving map from floats to integers.
pub fn key(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// Inverse of [`key`].
fn value(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// The k-th smallest of `scores` (k from 1 to their number; no NaN).
pub fn kth_smallest(kernels: &Kernels, scores: &[f32], k: usize) -> f32 {
    debug_assert!(k >= 1 && k <= scores.len());
    let (mut low, mut high) = (key(kernels.least(scores)), key(kernels.greatest_at_most(scores, f32::INFINITY)));
    // Numbers of scores below `low`, and up to `high`.
    let (mut below, mut within) = (0, scores.len());
    for turn in 0.. {
        if low >= high {
            break;
        }
        // Where the k-th lies if scores are spread evenly; now and then the middle, so that it ends.
        let share = if turn % 4 == 3 { 0.5 } else { (k - below) as f64 / (within - below).max(1) as f64 };
        let guess = (low + (f64::from(high - low) * share) as u32).min(high - 1);
        let count = kernels.count_at_most(scores, value(guess));
        match count.cmp(&k) {
            Ordering::Less => (low, below) = (guess + 1, count),
            // Exactly k: the k-th is the last of them.
            Ordering::Equal => return kernels.greatest_at_most(scores, value(guess)),
            Ordering::Greater => (high, within) = (guess, count),
        }
    }
    value(low)
}

/// Indices of the `k` smallest scores, by (score, index).
pub fn smallest(kernels: &Kernels, scores: &[f32], k: usize) -> Vec<u32> {
    let k = k.min(scores.len());
    if k == 0 {
        return Vec::new();
    }
    let mut chosen: Vec<u32> = Vec::with_capacity(k + 8);
    if k == scores.len() {
        chosen.extend(0..k as u32);
    } else {
        let limit = kth_smallest(kernels, scores, k);
        chosen.extend((0u32..).zip(scores).filter(|&(_, &s)| s < limit).map(|(i, _)| i));
        let ties = (0u32..).zip(scores).filter(|&(_, &s)| s == limit).map(|(i, _)| i);
        chosen.extend(ties.take(k - chosen.len().min(k)));
    }
    chosen.sort_unstable_by(|&a, &b| scores[a as usize].total_cmp(&scores[b as usize]).then(a.cmp(&b)));
    chosen
}

/// The best `k` so far, with their entries, in the order in which they came.
#[derive(Default)]
pub struct Nearest {
    k: usize,
    scores: Vec<f32>,
    entries: Vec<u32>,
    len: usize,
    limit: f32,
}

impl Nearest {
    /// Keeps `k`; candidates above `limit` will not be offered.
    pub fn new(k: usize, limit: f32) -> Nearest {
        Nearest { k, scores: Vec::new(), entries: Vec::new(), len: 0, limit }
    }

    /// Empties it, keeping its memory, for the best `k` of candidates up to `limit`.
    pub fn reset(&mut self, k: usize, limit: f32) {
        (self.k, self.len, self.limit) = (k, 0, limit);
    }

    /// Bytes that it holds on to.
    pub fn capacity(&self) -> usize {
        8 * self.scores.capacity()
    }

    /// What a candidate must meet: score at most this.
    pub fn limit(&self) -> f32 {
        self.limit
    }

    /// Number of candidates held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Scores held.
    pub fn scores(&self) -> &[f32] {
        &self.scores[..self.len]
    }

    /// Entries held.
    pub fn entries(&self) -> &[u32] {
        &self.entries[..self.len]
    }

    /// Makes room for `n` candidates more, cutting if need be; `id` orders equal scores.
    pub fn make_room(&mut self, kernels: &Kernels, n: usize, id: impl Fn(u32) -> u64) {
        if self.len + n > self.scores.len() {
            self.cut(kernels, id);
            let capacity = (5 * self.k / 2 + 1024).max(self.len + n);
            if self.scores.len() < self.len + n {
                self.scores.resize(capacity, 0.0);
                self.entries.resize(capacity, 0);
            }
        }
    }

    /// The free part: write candidates there, then [`Self::advance`].
    pub fn free(&mut self) -> (&mut [f32], &mut [u32]) {
        (&mut self.scores[self.len..], &mut self.entries[self.len..])
    }

    /// The first `n` of the free part were written.
    pub fn advance(&mut self, n: usize) {
        self.len += n;
    }

    /// Drops candidates from position `from` on whose entry `unwanted` says.
    pub fn drop_after(&mut self, from: usize, unwanted: impl Fn(u32) -> bool) {
        let mut kept = from;
        for i in from..self.len {
            self.scores[kept] = self.scores[i];
            self.entries[kept] = self.entries[i];
            kept += usize::from(!unwanted(self.entries[i]));
        }
        self.len = kept;
    }

    /// Drops candidates with a score above `limit`.
    pub fn drop_above(&mut self, limit: f32) {
        let mut kept = 0;
        for i in 0..self.len {
            self.scores[kept] = self.scores[i];
            self.entries[kept] = self.entries[i];
            kept += usize::from(self.scores[i] <= limit);
        }
        self.len = kept;
    }

    /// Appends the candidates of another.
    pub fn append_all(&mut self, other: &Nearest) {
        other.scores().iter().zip(other.entries()).for_each(|(&score, &entry)| self.append(score, entry));
    }

    /// Forgets every candidate; the limit stays.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Keeps the best `k` from now on, at most as many as before; scores may have been replaced.
    pub fn narrow(&mut self, k: usize) {
        self.k = k.min(self.k);
        self.limit = f32::MAX;
    }

    /// Scores and entries held, scores to be changed.
    pub fn parts_mut(&mut self) -> (&mut [f32], &[u32]) {
        (&mut self.scores[..self.len], &self.entries[..self.len])
    }

    /// Puts what is no number (an estimate of a damaged record) last.
    pub fn put_nan_last(&mut self) {
        self.scores[..self.len].iter_mut().filter(|score| score.is_nan()).for_each(|score| *score = f32::INFINITY);
    }

    /// Replaces every score.
    pub fn rescore(&mut self, score: impl Fn(u32) -> f32) {
        for (s, &entry) in self.scores[..self.len].iter_mut().zip(&self.entries) {
            *s = score(entry);
        }
    }

    /// Appends one candidate without ever cutting.
    pub fn append(&mut self, score: f32, entry: u32) {
        if self.len == self.scores.len() {
            let capacity = (2 * self.len).max(1024);
            self.scores.resize(capacity, 0.0);
            self.entries.resize(capacity, 0);
        }
        self.scores[self.len] = score;
        self.entries[self.len] = entry;
        self.len += 1;
    }

    /// Appends one candidate, cutting when full.
    pub fn push(&mut self, kernels: &Kernels, score: f32, entry: u32, id: impl Fn(u32) -> u64) {
        self.make_room(kernels, 1, id);
        self.append(score, entry);
    }

    /// Cuts back to the best `k` and lowers the limit to the k-th score.
    pub fn cut(&mut self, kernels: &Kernels, id: impl Fn(u32) -> u64) {
        if self.len < self.k {
            return;
        }
        let limit = kth_smallest(kernels, &self.scores[..self.len], self.k);
        self.limit = limit;
        if self.len == self.k {
            return;
        }
        let held = kernels.keep_at_most(&mut self.scores[..self.len], &mut self.entries[..self.len], limit);
        self.len = held;
        // Fewer than k only where scores of a damaged file are not numbers.
        if held <= self.k {
            return;
        }
        // More equal scores at the limit than there are places: those with the lowest ids stay.
        let mut ties: Vec<u64> = Vec::new();
        let mut below = 0;
        for (&score, &entry) in self.scores[..held].iter().zip(&self.entries) {
            below += usize::from(score < limit);
            if score == limit {
                ties.push(id(entry));
            }
        }
        let last = *ties.select_nth_unstable(self.k - below - 1).1;
        let mut kept = 0;
        for i in 0..held {
            let (score, entry) = (self.scores[i], self.entries[i]);
            self.scores[kept] = score;
            self.entries[kept] = entry;
            kept += usize::from(kept < self.k && (score < limit || id(entry) <= last));
        }
        self.len = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keeps_what_sorting_keeps(raw in prop::collection::vec(-20i32..20, 1..3000), k in 1usize..600, chunk in 1usize..200) {
            let scores: Vec<f32> = raw.iter().map(|&x| x as f32 / 4.0).collect();
            // Ids run against the order of the stream: ties must go by id, not by position.
            let id = |entry: u32| 1_000_000 - u64::from(entry);
            let kernels = Kernels::best();
            let mut nearest = Nearest::new(k, f32::MAX);
            for (c, part) in scores.chunks(chunk).enumerate() {
                nearest.make_room(&kernels, part.len(), id);
                let limit = nearest.limit();
                let (s, e) = nearest.free();
                let mut n = 0;
                for (i, &score) in part.iter().enumerate() {
                    if score <= limit {
                        s[n] = score;
                        e[n] = (c * chunk + i) as u32;
                        n += 1;
                    }
                }
                nearest.advance(n);
            }
            nearest.cut(&kernels, id);
            let mut got: Vec<(f32, u64)> = nearest.scores().iter().zip(nearest.entries()).map(|(&s, &e)| (s, id(e))).collect();
            got.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let mut want: Vec<(f32, u64)> = (0u32..).zip(&scores).map(|(e, &s)| (s, id(e))).collect();
            want.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            want.truncate(k);
            prop_assert_eq!(got, want);
        }

        #[test]
        fn smallest_is_a_sorted_prefix(raw in prop::collection::vec(-50i32..50, 0..500), k in 0usize..600) {
            let scores: Vec<f32> = raw.iter().map(|&x| x as f32).collect();
            let mut want: Vec<u32> = (0..scores.len() as u32).collect();
            want.sort_by(|&a, &b| scores[a as usize].total_cmp(&scores[b as usize]).then(a.cmp(&b)));
            want.truncate(k);
            prop_assert_eq!(smallest(&Kernels::best(), &scores, k), want);
        }
    }
}
