//! Queries whose own filter leaves too little in their lists look into more lists until k come back.

use super::approximate::{Conditions, approximate};
use super::corpus::Corpus;
use super::plan::Plan;
use super::probes::Reach;
use super::request::{HitsMut, Request};
use crate::Result;
use crate::ids::{IdSet, size};
use crate::index::Lists;
use crate::simd::Kernels;
use crate::threads::Pool;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// Scans four times as many lists, again and again, for each query that found fewer than `k` though it may find more.
/// Only filters of a query itself count: what is deleted must not change how far anybody looks. Returns how
/// those were searched that looked furthest.
#[allow(clippy::too_many_arguments)]
pub fn widen(
    corpus: &Corpus,
    queries: &[f32],
    request: &Request,
    plan: &Plan,
    kernels: &Kernels,
    pool: &Pool,
    cancel: &AtomicBool,
    found: &mut HitsMut,
) -> Result<Plan> {
    let Some((codebook, lists)) = corpus.index.as_ref() else { return Ok(*plan) };
    if request.exclude.is_none() && request.allow.is_none() && request.deny.is_none() {
        return Ok(*plan);
    }
    let (d, k) = (corpus.d, request.k);
    let (q, entries) = (queries.len() / d, lists.iter().map(Lists::len).sum::<usize>());
    let wanted = |query: usize| {
        let allowed = request.allow.map_or(u64::MAX, |sets| size(&sets[query]));
        request.k.min(entries).min(usize::try_from(allowed).unwrap_or(usize::MAX))
    };
    let mut last = *plan;
    let mut nprobe = request.nprobe.unwrap_or(codebook.default_nprobe());
    while nprobe < codebook.nlist() {
        nprobe = nprobe.saturating_mul(4).min(codebook.nlist());
        let there = |ids: &[i64]| ids.iter().take_while(|&&id| id >= 0).count();
        let short: Vec<usize> = (0..q).filter(|&i| there(&found.ids[i * k..(i + 1) * k]) < wanted(i)).collect();
        if short.is_empty() {
            break;
        }
        let rows: Vec<f32> = short.iter().flat_map(|&i| &queries[i * d..(i + 1) * d]).copied().collect();
        let exclude: Option<Vec<Range<u64>>> =
            request.exclude.map(|all| short.iter().map(|&i| all[i].clone()).collect());
        let sets = |all: &[IdSet]| short.iter().map(|&i| all[i].clone()).collect::<Vec<_>>();
        let (allow, deny) = (request.allow.map(sets), request.deny.map(sets));
        let again =
            Request { exclude: exclude.as_deref(), allow: allow.as_deref(), deny: deny.as_deref(), ..request.clone() };
        let wider = Plan { reach: Reach { nprobe, stop: None }, ..*plan };
        let (mut distances, mut ids) = (vec![0.0; short.len() * k], vec![0; short.len() * k]);
        let mut more = HitsMut { distances: &mut distances, ids: &mut ids };
        last = wider;
        approximate(corpus, &rows, &again, &wider, kernels, pool, cancel, &mut more, Conditions::now())?;
        for (i, (scores, ids)) in short.into_iter().zip(distances.chunks_exact(k).zip(ids.chunks_exact(k))) {
            found.distances[i * k..(i + 1) * k].copy_from_slice(scores);
            found.ids[i * k..(i + 1) * k].copy_from_slice(ids);
        }
    }
    Ok(last)
}
