//! Coarse step: scores of queries against all centroids, in 8 bits where the dimension allows it.
//!
//! Sums of integers are the same on every CPU. Their error is far below that of the codes, except in few dimensions, where
//! f32 costs little.

use super::Codebook;
use super::panels::{BytePanels, LEAST_DIMENSION};
use super::second::QueryBytes;
use crate::Metric;
use crate::search::sweep::{Matrix, sweep};
use crate::simd::Kernels;

/// Packed centroids.
pub enum Coarse {
    /// Rotated; for inner products less their mean, which is kept (rotated).
    Bytes(BytePanels, Vec<f32>),
    /// As they lie in the codebook.
    Floats,
}

/// One query of the coarse step.
pub struct CoarseQuery<'q> {
    /// Less the codebook's mean.
    pub centred: &'q [f32],
    /// The same, rotated.
    pub rotated: &'q [f32],
    /// The same in 8 bits.
    pub bytes: QueryBytes,
}

impl Coarse {
    /// Packs the centroids of a codebook.
    pub fn new(kernels: &Kernels, codebook: &Codebook) -> Coarse {
        let (d, nlist) = (codebook.d(), codebook.nlist());
        if d < LEAST_DIMENSION {
            return Coarse::Floats;
        }
        let mut mean = codebook.mean.to_vec();
        if codebook.metric() == Metric::Ip {
            let mut sum = vec![0f64; d];
            for list in 0..nlist {
                sum.iter_mut().zip(codebook.centroid(list)).for_each(|(s, c)| *s += f64::from(*c));
            }
            mean = sum.into_iter().map(|s| (s / nlist as f64) as f32).collect();
        }
        let panels = BytePanels::pack(nlist, d, |list, row| {
            row.iter_mut().zip(codebook.centroid(list)).zip(&mean).for_each(|((x, c), m)| *x = c - m);
            codebook.rotation.apply(kernels, row);
            if codebook.metric() == Metric::L2 { kernels.ip_f32(row, row) } else { 0.0 }
        });
        if codebook.metric() == Metric::L2 {
            mean.clear();
        } else {
            codebook.rotation.apply(kernels, &mut mean);
        }
        Coarse::Bytes(panels, mean)
    }

    /// Scores of some queries (queries × nlist into `out`), and for each query what added to a score gives |q − c|² or −⟨q, c⟩.
    pub fn scores(
        &self,
        kernels: &Kernels,
        codebook: &Codebook,
        queries: &[CoarseQuery],
        out: &mut Vec<f32>,
    ) -> Vec<f32> {
        let (nlist, l2) = (codebook.nlist(), codebook.metric() == Metric::L2);
        out.clear();
        out.resize(queries.len() * nlist, f32::INFINITY);
        match self {
            Coarse::Bytes(panels, mean) => {
                let bytes: Vec<QueryBytes> = queries.iter().map(|q| q.bytes.clone()).collect();
                panels.sweep(kernels, &bytes, if l2 { -2.0 } else { -1.0 }, |row, first, scores| {
                    let n = scores.len().min(nlist - first.min(nlist));
                    out[row * nlist + first..][..n].copy_from_slice(&scores[..n]);
                });
                let shift = |q: &CoarseQuery| {
                    if l2 { kernels.ip_f32(q.rotated, q.rotated) } else { -kernels.ip_f32(q.rotated, mean) }
                };
                queries.iter().map(shift).collect()
            }
            Coarse::Floats => {
                let rows: Vec<f32> = queries.iter().flat_map(|q| q.centred).copied().collect();
                let mut matrix = Matrix { n: nlist, scores: std::mem::take(out) };
                sweep(kernels, &rows, &codebook.float_panels(), &mut matrix);
                *out = matrix.scores;
                queries.iter().map(|q| if l2 { kernels.ip_f32(q.centred, q.centred) } else { 0.0 }).collect()
            }
        }
    }
}
