//! Coarse step: which lists lie near a query.
//!
//! With 4-bit codes, centroids are coded as entries are, and scanned by the same kernel: that estimates the score of every
//! list. Of the lists that may be near the scores are then computed in 8 bits. This costs little at any number of lists, for one
//! query too: 60 bytes a list are read, and a few hundred rows. Sums of integers are the same on every CPU. Other codes
//! and few dimensions, where f32 costs little, score all centroids as they are.

use super::block;
use super::bytes::{ByteRows, padded};
use super::coding::{Coding, Encoder};
use super::panels::{LEAST_DIMENSION, ZERO, round};
use super::quantiser::{Shape, Tables};
use super::rotation::Rotation;
use crate::Metric;
use crate::aligned::Aligned;
use crate::exact::sweep::{Panels, ScoreRows, sweep};
use crate::simd::{ByteKeys, Kernels, LANES, ScanQuery};

/// Queries whose lists are estimated together.
pub const ESTIMATED: usize = 4;

/// Centroids as they lie in a codebook, with what codes them.
pub struct Centroids<'c> {
    /// nlist × d.
    pub rows: &'c [f32],
    /// Mean of the keys; zero for inner products.
    pub mean: &'c [f32],
    /// Words of the product quantiser.
    pub words: &'c [f32],
    /// Their shape.
    pub shape: Shape,
    /// Rotation of keys and queries.
    pub rotation: &'c Rotation,
    /// How keys are compared.
    pub metric: Metric,
}

/// Packed centroids.
pub enum Coarse {
    /// Coded, and in 8 bits.
    Coded(Coded),
    /// As they lie in the codebook.
    Floats,
}

/// Centroids, rotated; for L2 less the codebook's mean, for inner products less their own.
pub struct Coded {
    /// Blocks of codes as those of a list.
    blocks: Aligned<u8>,
    /// Numbers in rows of `width`.
    keys: Aligned<u8>,
    width: usize,
    scales: Vec<f32>,
    offsets: Vec<f32>,
    /// Mean that was subtracted for inner products.
    mean: Vec<f32>,
}

impl Coarse {
    /// Packs the centroids of a codebook.
    pub fn new(kernels: &Kernels, centroids: &Centroids) -> Coarse {
        let Centroids { rows, words, shape, rotation, metric, .. } = *centroids;
        let d = centroids.mean.len();
        let nlist = rows.len() / d;
        if d < LEAST_DIMENSION || shape.bits != 4 {
            return Coarse::Floats;
        }
        let mut mean = centroids.mean.to_vec();
        if metric == Metric::Ip {
            let mut sum = vec![0f64; d];
            for row in rows.chunks_exact(d) {
                sum.iter_mut().zip(row).for_each(|(s, c)| *s += f64::from(*c));
            }
            mean = sum.into_iter().map(|s| (s / nlist as f64) as f32).collect();
        }
        let (block_bytes, width) = (Coding::Product(shape).block_bytes(), padded(d));
        let mut blocks = Aligned::zeros(nlist.div_ceil(LANES) * block_bytes);
        let mut keys = Aligned::zeros(nlist * width);
        let (mut scales, mut offsets) = (Vec::with_capacity(nlist), Vec::with_capacity(nlist));
        let coding = Coding::Product(shape);
        let encoder = Encoder { kernels: *kernels, coding, words, d, metric };
        let (mut row, mut word) = (vec![0f32; shape.padded()], vec![0f32; shape.padded()]);
        let (origin, mut codes) = (vec![0f32; shape.padded()], vec![0u8; shape.m]);
        for (list, (key, centroid)) in keys.chunks_exact_mut(width).zip(rows.chunks_exact(d)).enumerate() {
            row.iter_mut().zip(centroid).zip(&mean).for_each(|((x, c), m)| *x = c - m);
            row[d..].fill(0.0);
            rotation.apply(kernels, &mut row[..d]);
            scales.push(round(&row[..d], |t, number| key[t] = number));
            offsets.push(if metric == Metric::L2 { kernels.ip_f32(&row, &row) } else { 0.0 });
            let factors = encoder.encode(&mut row, &origin, &mut codes, &mut word);
            let block = &mut blocks[list / LANES * block_bytes..][..block_bytes];
            block::put(coding, block, list % LANES, &codes, factors);
        }
        if let Some(last) = blocks.len().checked_sub(block_bytes) {
            let padding = nlist % LANES..if nlist.is_multiple_of(LANES) { 0 } else { LANES };
            padding.for_each(|lane| block::put_padding(coding, &mut blocks[last..], lane));
        }
        if metric == Metric::L2 {
            mean.clear();
        } else {
            rotation.apply(kernels, &mut mean);
        }
        Coarse::Coded(Coded { blocks, keys, width, scales, offsets, mean })
    }

    /// What added to the score of a list gives |q − c|² or −⟨q, c⟩; `query` is rotated.
    pub fn shift(&self, kernels: &Kernels, metric: Metric, query: &[f32]) -> f32 {
        match (self, metric) {
            (_, Metric::L2) => kernels.ip_f32(query, query),
            (Coarse::Coded(coded), Metric::Ip) => -kernels.ip_f32(query, &coded.mean),
            (Coarse::Floats, Metric::Ip) => 0.0,
        }
    }
}

impl Coded {
    /// Estimated scores of all lists for up to [`ESTIMATED`] queries, into rows of `stride` ≥ nlist rounded up to blocks.
    pub fn estimate(
        &self,
        kernels: &Kernels,
        tables: &[Tables],
        stride: usize,
        out: &mut [f32],
        scratch: &mut Vec<u32>,
    ) {
        scratch.resize(scratch.len().max(ESTIMATED * stride), 0);
        let mut rows = out.chunks_exact_mut(stride).zip(scratch.chunks_exact_mut(stride));
        if let [a, b, c, d] = tables {
            let queries = [query(a), query(b), query(c), query(d)];
            if let (Some(a), Some(b), Some(c), Some(d)) = (rows.next(), rows.next(), rows.next(), rows.next()) {
                kernels.scan4_group(&self.blocks, &queries, 0, [a, b, c, d]);
            }
            return;
        }
        for (tables, (scores, entries)) in tables.iter().zip(rows) {
            kernels.scan4(&self.blocks, &query(tables), 0, scores, entries);
        }
    }

    /// Scores of the lists `picks` for row `i` of `queries`, into `out`.
    pub fn score(
        &self,
        kernels: &Kernels,
        metric: Metric,
        queries: &ByteRows,
        i: usize,
        picks: &[u32],
        out: &mut [f32],
    ) {
        let (scale, sum) = queries.scale_and_sum(i);
        let sign = if metric == Metric::L2 { -2.0 } else { -1.0 };
        let (row, factor) = (queries.row(i), (sign * scale, ZERO * sum));
        debug_assert_eq!(row.len(), self.width);
        let keys = ByteKeys { numbers: &self.keys, scales: &self.scales, offsets: &self.offsets };
        kernels.score_rows8(row, keys, picks, factor, out);
    }
}

/// A query of all centroids: the padding has +∞, which is not kept.
fn query(tables: &Tables) -> ScanQuery<'_, u8> {
    ScanQuery { table: &tables.bytes[..], scale: tables.scale, bias: tables.bias, base: 0.0, limit: f32::MAX }
}

/// Scores of all centroids for rows of `centred` queries (q × d), into rows of `out` (q × nlist).
pub fn score_floats(kernels: &Kernels, nlist: usize, panels: &Panels, centred: &[f32], out: &mut [f32]) {
    let mut rows = ScoreRows { n: nlist, scores: out };
    sweep(kernels, centred, panels, &mut rows);
}
