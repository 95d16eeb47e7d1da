//! Decoded approximations of entries.

use super::codebook::Codebook;
use super::coding::decode;
use super::lists::Lists;
use super::{block, second};
use crate::simd::Kernels;
use crate::{Error, Metric, Result};
use std::collections::HashMap;

/// Decoded approximations of entries, `ids.len() × d`. Reads the ids section once: for many ids at a time.
///
/// # Errors
/// `Argument` names the first id that is in none of the lists; `Format` for damaged lists.
pub fn reconstruct(codebook: &Codebook, lists: &[Lists], ids: &[u64]) -> Result<Vec<f32>> {
    let d = codebook.d();
    let mut out = vec![0f32; ids.len() * d];
    let mut wanted: HashMap<u64, Vec<usize>> = HashMap::new();
    ids.iter().enumerate().for_each(|(i, &id)| wanted.entry(id).or_default().push(i));
    let kernels = Kernels::best();
    for lists in lists {
        let span = lists.ids();
        if !wanted.keys().any(|id| span.contains(id)) {
            continue;
        }
        lists.check_ids()?;
        for (position, &relative) in lists.relative_ids().iter().enumerate() {
            if let Some(rows) = wanted.remove(&(span.start + u64::from(relative))) {
                lists.check(lists.block_of(position).1)?;
                lists.check(lists.record(position as u32))?;
                let key = entry(&kernels, codebook, lists, position);
                rows.into_iter().for_each(|i| out[i * d..(i + 1) * d].copy_from_slice(&key));
            }
        }
    }
    match wanted.keys().min() {
        Some(id) => Err(Error::Argument(format!("id {id} is in none of the {} list segments", lists.len()))),
        None => Ok(out),
    }
}

/// c + t·R⁻¹û: with inner products t = s, so that ⟨q, decoded⟩ is the estimate that a search returns; with L2 t = |r|² / (s|û|²),
/// the multiple of û nearest to the residual. With a second level: c + R⁻¹(s·û + t·l).
fn entry(kernels: &Kernels, codebook: &Codebook, lists: &Lists, position: usize) -> Vec<f32> {
    let (d, coding) = (codebook.d(), codebook.coding());
    let (list, bytes, lane) = lists.block_of(position);
    let (mut codes, mut word) = (vec![0u8; coding.codes()], vec![0f32; coding.padded()]);
    let (a, b) = block::get(coding, bytes, lane, &mut codes);
    decode(coding, d, codebook.words, &codes, &mut word);
    let centroid = codebook.centroid(list);
    let record = lists.record(position as u32);
    let length = match codebook.metric() {
        Metric::Ip => -b,
        Metric::L2 if !record.is_empty() => -b / 2.0,
        Metric::L2 => {
            let s = -b / 2.0;
            let mut rotated: Vec<f32> = centroid.iter().zip(codebook.mean).map(|(c, m)| c - m).collect();
            codebook.rotation.apply(kernels, &mut rotated);
            rotated.resize(coding.padded(), 0.0);
            let norm2 = a - 2.0 * s * kernels.ip_f32(&rotated, &word);
            let t = norm2.max(0.0) / (s * kernels.ip_f32(&word, &word));
            if t.is_finite() { t } else { 0.0 }
        }
    };
    word.truncate(d);
    word.iter_mut().for_each(|x| *x *= length);
    if !record.is_empty() {
        second::decode(codebook.metric(), record, &mut word);
    }
    codebook.rotation.undo(kernels, &mut word);
    word.iter_mut().zip(centroid).for_each(|(x, c)| *x += c);
    word
}
