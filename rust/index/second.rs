//! Second-level code: 4 bits a coordinate for what the first level leaves of a residual, for scoring candidates again.
//!
//! With r the rotated residual and s·û its first-level approximation, e = r − s·û is nearly Gaussian in every coordinate
//! after a random rotation. Each coordinate takes the nearest of 16 levels (Lloyd 1982, Max 1960) of a Gaussian with the
//! entry's own spread; l are the levels and t = ⟨e, l⟩ / ⟨l, l⟩ their length. A query's score of the first level then gets
//! better by adding A' + B'·⟨Rq, l⟩, L2: A' = 2t⟨Rc, l⟩ − 2⟨r, f⟩ with f = e − t·l, B' = −2t; inner product: A' = 0, B' = −t.
//! (⟨r, f⟩ is the part of the remaining error that every near query shares.)
//!
//! A record is a run of units of 64 bytes, 128 coordinates each (byte b: low nibble = coordinate b, high nibble = 64 + b),
//! then A' and B' as f32. Coordinates from d on have no meaning: the query is zero there.

use super::levels;
use crate::Metric;
use crate::simd::{Kernels, float_at};

/// Coordinates of a unit of codes.
pub const UNIT: usize = 128;
/// Bytes of a record for keys of dimension `d`.
pub fn record_bytes(d: usize) -> usize {
    d.div_ceil(UNIT) * (UNIT / 2) + 8
}

/// Writes the record of an entry: `e` = r − s·û, `residual` = r, `centroid` = Rc (d each); e is overwritten.
pub fn encode(kernels: &Kernels, metric: Metric, e: &mut [f32], residual: &[f32], centroid: &[f32], record: &mut [u8]) {
    let d = e.len();
    let spread = (kernels.ip_f32(e, e) / d as f32).sqrt();
    let (units, factors) = record.split_at_mut(record_bytes(d) - 8);
    let mut codes = vec![0u8; d];
    levels::encode(kernels, e, spread, &mut codes);
    let levels: Vec<f32> = codes.iter().map(|&code| levels::level(code)).collect();
    for (codes, unit) in codes.chunks(UNIT).zip(units.chunks_exact_mut(UNIT / 2)) {
        let (low, high) = codes.split_at(codes.len().min(UNIT / 2));
        unit.iter_mut().zip(low).for_each(|(byte, code)| *byte |= code);
        unit.iter_mut().zip(high).for_each(|(byte, code)| *byte |= code << 4);
    }
    let t = kernels.ip_f32(e, &levels) / kernels.ip_f32(&levels, &levels);
    let t = if spread > 0.0 && t.is_finite() { t } else { 0.0 };
    let a = match metric {
        Metric::L2 => {
            e.iter_mut().zip(&levels).for_each(|(e, l)| *e -= t * l);
            2.0 * t * kernels.ip_f32(centroid, &levels) - 2.0 * kernels.ip_f32(residual, e)
        }
        Metric::Ip => 0.0,
    };
    let b = if metric == Metric::L2 { -2.0 * t } else { -t };
    factors[..4].copy_from_slice(&a.to_le_bytes());
    factors[4..].copy_from_slice(&b.to_le_bytes());
}

/// Adds t·l to the decoded, rotated residual `out` (d); `metric` tells t from B'.
pub fn decode(metric: Metric, record: &[u8], out: &mut [f32]) {
    let (units, factors) = record.split_at(record.len() - 8);
    let b = float_at(factors, 1);
    let t = if metric == Metric::L2 { -b / 2.0 } else { -b };
    for (i, x) in out.iter_mut().enumerate() {
        let (unit, at) = (i / UNIT, i % UNIT);
        let code = units[unit * UNIT / 2 + at % 64] >> (at / 64 * 4) & 15;
        *x += t * levels::level(code);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::bytes::ByteRows;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    #[test]
    fn corrections_make_scores_close_to_exact() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut normal = move || (0..12).map(|_| rng.next_u32() as f32 / 4_294_967_296.0).sum::<f32>() - 6.0;
        let kernels = Kernels::best();
        for d in [100, 384] {
            for metric in [Metric::L2, Metric::Ip] {
                let (mut before, mut after) = (0f32, 0f32);
                for _ in 0..200 {
                    let mut make = |scale: f32| (0..d).map(|_| scale * normal()).collect::<Vec<f32>>();
                    let (centroid, r, noise, delta) = (make(1.0), make(1.0), make(0.6), make(1.0));
                    // A first level that is off by `noise`.
                    let first: Vec<f32> = r.iter().zip(&noise).map(|(r, n)| r - n).collect();
                    let q: Vec<f32> = (0..d).map(|i| centroid[i] + r[i] + delta[i]).collect();
                    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
                    let local: Vec<f32> = q.iter().zip(&centroid).map(|(q, c)| q - c).collect();
                    let (estimate, exact) = match metric {
                        Metric::L2 => {
                            (dot(&local, &local) + dot(&r, &r) - 2.0 * dot(&local, &first), dot(&delta, &delta))
                        }
                        Metric::Ip => (-dot(&q, &first), -dot(&q, &r)),
                    };
                    let mut record = vec![0u8; record_bytes(d)];
                    encode(&kernels, metric, &mut noise.clone(), &r, &centroid, &mut record);
                    let query = ByteRows::of(&kernels, d, &q);
                    let mut better = [estimate];
                    assert!(kernels.add_corrections(&record, record.len(), &[5], 5, &query.query(0), &mut better));
                    let better = better[0];
                    before += (estimate - exact).powi(2);
                    after += (better - exact).powi(2);
                    let mut decoded = first.clone();
                    decode(metric, &record, &mut decoded);
                    let error: f32 = decoded.iter().zip(&r).map(|(a, b)| (a - b) * (a - b)).sum();
                    assert!(error < 0.04 * dot(&noise, &noise)); // .0095 on average
                }
                assert!(after < 0.04 * before, "d={d} {metric:?}: squared error {after} of {before}");
            }
        }
    }
}
