//! Refuses what cannot be searched, before anything is.

use super::corpus::Corpus;
use super::request::{Request, Rerank};
use crate::error::Why;
use crate::index::FINE;
use crate::keys::KeyBlock;
use crate::simd::Kernels;
use crate::{Error, Result};

/// Refuses what cannot be searched; gives the kernels.
pub fn check(corpus: &Corpus, queries: &[f32], request: &Request) -> Result<Kernels> {
    let argument = |message: String| Err(Error::Argument(message));
    let (d, q) = (corpus.d, queries.len() / corpus.d.max(1));
    if d == 0 || !queries.len().is_multiple_of(d) {
        return argument(format!("queries: expected rows of {d} numbers, found {} numbers", queries.len()));
    }
    let largest = crate::keys::largest_coordinate(d);
    if let Some(i) = queries.iter().position(|x| x.is_nan() || x.abs() > largest) {
        return argument(format!(
            "queries must be finite and at most {largest:.1e} in size, found {} in query {}, dimension {}",
            queries[i],
            i / d,
            i % d
        ));
    }
    if request.k < 1 || q.checked_mul(request.k).is_none_or(|n| n > isize::MAX as usize / 8) {
        return argument(format!("k must be at least 1 and {q} × k must fit memory, found k = {}", request.k));
    }
    if request.nprobe == Some(0) || request.depth == Some(0) {
        return argument("nprobe and depth must be at least 1, found 0".into());
    }
    if let Some(found) = request.recall.filter(|r| !(*r > 0.0 && *r <= 1.0)) {
        return argument(format!("recall must be above 0 and at most 1, found {found}"));
    }
    if request.recall.is_some() && request.nprobe.is_some() {
        return argument("recall and nprobe: expected one of them, found both".into());
    }
    if request.recall.is_some() && request.depth.is_some() {
        return argument(
            "recall and depth: expected one of them, found both: recall chooses the depth that has it".into(),
        );
    }
    if request.rerank == Rerank::Code && !corpus.has_second() {
        return Err(Error::state(
            Why::NoSecondLevel,
            format!(
                "rerank by codes: expected codes of a second level, found a store of one level; leave rerank out, or retrain with the default code, which has two levels above dimension {FINE}, this store's is {d}"
            ),
        ));
    }
    let given = [
        ("exclude", request.exclude.map(<[_]>::len)),
        ("allow", request.allow.map(<[_]>::len)),
        ("deny", request.deny.map(<[_]>::len)),
    ];
    if let Some((name, Some(found))) = given.into_iter().find(|(_, n)| n.is_some_and(|n| n != q)) {
        return argument(format!("{name}: expected ids for each of {q} queries, found {found}"));
    }
    let blocks = corpus.keys.iter().chain(&corpus.unindexed);
    if let Some(block) = blocks.into_iter().find(|b| b.d != d || b.rows.len() % d != 0) {
        return argument(format!("keys: expected dimension {d}, found {}", block.d));
    }
    let indexed = corpus.index.iter().flat_map(|(_, lists)| lists).map(|l| l.len()).sum::<usize>();
    let waiting = corpus.unindexed.iter().map(KeyBlock::n).sum::<usize>();
    let raw = corpus.keys.iter().map(KeyBlock::n).sum::<usize>();
    if (request.exact && raw < indexed + waiting) || (request.rerank == Rerank::Keys && raw < indexed) {
        let what = if request.exact { "exact search" } else { "rerank by keys" };
        return Err(Error::state(
            Why::KeysNotKept,
            format!("{what}: expected raw keys of all {} entries, found {raw}", indexed + waiting),
        ));
    }
    match request.isa.map_or(Some(Kernels::best()), Kernels::of) {
        Some(kernels) => Ok(kernels),
        None => argument(format!("this CPU does not have {:?}", request.isa)),
    }
}
