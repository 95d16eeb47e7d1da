//! A search from the request to the answer: by the lists, with the entries that are in none, or exact.

use super::approximate::{Conditions, approximate};
use super::check::check;
use super::corpus::Corpus;
use super::finish::write;
use super::plan::{Plan, plan};
use super::probes::Reach;
use super::request::{Hits, HitsMut, Request, Rerank};
use super::widen::widen;
use crate::exact::{Found, Rows, best, scan};
use crate::index::Lists;
use crate::keys::KeyBlock;
use crate::threads::Pool;
use crate::{Error, Metric, Result};
use std::sync::atomic::AtomicBool;

/// Finds the `k` nearest entries of every query (`queries`: q × d, row-major, finite).
///
/// # Errors
/// `Argument` for k, nprobe or lengths that do not fit; `State` for `exact` or `rerank` without the raw keys;
/// `Format` for ids outside their segment; `Interrupted` once `cancel` is set.
pub fn search(corpus: &Corpus, queries: &[f32], request: &Request, pool: &Pool, cancel: &AtomicBool) -> Result<Hits> {
    check(corpus, queries, request)?;
    let n = queries.len() / corpus.d * request.k;
    let mut hits = Hits { distances: vec![0.0; n], ids: vec![0; n] };
    let out = HitsMut { distances: &mut hits.distances, ids: &mut hits.ids };
    search_into(corpus, queries, request, pool, cancel, out)?;
    Ok(hits)
}

/// [`search`] into memory of the caller.
///
/// # Errors
/// As [`search`]; `Argument` if the memory is not for `q * k` neighbors.
pub fn search_into(
    corpus: &Corpus,
    queries: &[f32],
    request: &Request,
    pool: &Pool,
    cancel: &AtomicBool,
    mut out: HitsMut,
) -> Result<()> {
    let kernels = check(corpus, queries, request)?;
    let (k, d, q) = (request.k, corpus.d, queries.len() / corpus.d);
    if out.distances.len() != q * k || out.ids.len() != q * k {
        let found = out.distances.len().min(out.ids.len());
        return Err(Error::Argument(format!("expected room for {q} × {k} neighbors, found room for {found}")));
    }
    let exact = |blocks: &[KeyBlock]| {
        let rows = Rows::new(blocks);
        scan(&kernels, corpus.metric, &rows, d, queries, k, request.filter(corpus.deleted), pool, cancel)
    };
    if request.exact {
        let rows = out.distances.chunks_exact_mut(k).zip(out.ids.chunks_exact_mut(k));
        exact(&corpus.keys)?.iter().zip(rows).for_each(|(found, (scores, ids))| write(found, scores, ids));
    } else {
        let plan = planned(corpus, request)?;
        approximate(corpus, queries, request, &plan, &kernels, pool, cancel, &mut out, Conditions::now())?;
        widen(corpus, queries, request, &plan, &kernels, pool, cancel, &mut out)?;
        if !corpus.unindexed.is_empty() {
            let rows = out.distances.chunks_exact_mut(k).zip(out.ids.chunks_exact_mut(k));
            exact(&corpus.unindexed)?.into_iter().zip(rows).for_each(|(more, (scores, ids))| join(more, scores, ids));
        }
    }
    match corpus.metric {
        Metric::Ip => out.distances.iter_mut().for_each(|score| *score = -*score),
        Metric::L2 => {
            let rows = out.distances.chunks_exact_mut(k).zip(out.ids.chunks_exact_mut(k));
            rows.for_each(|(scores, ids)| clamp(scores, ids));
        }
    }
    Ok(())
}

/// Makes distances of sorted estimates: none is below 0. That comes last: of estimates below 0 the lowest are still the likeliest
/// neighbors.
fn clamp(scores: &mut [f32], ids: &mut [i64]) {
    let n = scores.iter().take_while(|&&score| score <= 0.0).count();
    scores[..n].fill(0.0);
    ids[..n].sort_unstable();
}

/// How the lists of a corpus are searched for a request; anything for one without lists.
pub fn planned(corpus: &Corpus, request: &Request) -> Result<Plan> {
    let Some((codebook, lists)) = &corpus.index else {
        let reach = Reach { nprobe: 1, stop: None };
        return Ok(Plan { reach, candidates: request.k, rerank: Rerank::None });
    };
    let raw = corpus.keys.iter().map(KeyBlock::n).sum::<usize>();
    plan(codebook, corpus.measured, raw >= lists.iter().map(Lists::len).sum::<usize>(), request)
}

/// Puts further neighbors among sorted ones.
fn join(mut more: Found, scores: &mut [f32], ids: &mut [i64]) {
    let there = ids.iter().zip(&*scores).take_while(|&(&id, _)| id >= 0);
    more.extend(there.map(|(&id, &score)| (score, id as u64)));
    best(&mut more, scores.len());
    write(&more, scores, ids);
}

/// Number of entries that an approximate search looks at, for each query: those of its lists, and those in no list.
///
/// # Errors
/// As [`search`].
pub fn entries_scanned(corpus: &Corpus, queries: &[f32], request: &Request) -> Result<Vec<u64>> {
    let kernels = check(corpus, queries, request)?;
    let waiting = corpus.unindexed.iter().map(|b| b.n() as u64).sum::<u64>();
    let n = queries.len() / corpus.d * request.k;
    let (mut distances, mut ids) = (vec![0.0; n], vec![0; n]);
    let mut out = HitsMut { distances: &mut distances, ids: &mut ids };
    let never = AtomicBool::new(false);
    let (plan, pool) = (planned(corpus, request)?, Pool::get(Some(1))?);
    let scanned = approximate(corpus, queries, request, &plan, &kernels, &pool, &never, &mut out, Conditions::now())?;
    Ok(scanned.into_iter().map(|n| n + waiting).collect())
}
