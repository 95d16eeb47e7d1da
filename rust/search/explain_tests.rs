//! What is explained is what a search does: of every entry, in every kind of store, whatever is asked.

use super::explain::{Explanation, InLists, Reason, explain};
use super::tests::{ask, build, clustered, corpus, pool, run};
use super::*;
use crate::ids::{IdSet, id_set};
use crate::index::{CodeChoice, Params};
use crate::keys::{KeyBlock, KeyRows};
use crate::{Error, Metric};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// What a test asks for beside the query.
#[derive(Clone, Debug, Default)]
struct Asked {
    exclude: Option<Range<u64>>,
    allow: Option<IdSet>,
    deny: Option<IdSet>,
}

/// Checks what is told of an entry against what came back, and returns it.
fn check(corpus: &Corpus, query: &[f32], request: &Request, asked: &Asked, hits: &Hits, id: u64) -> Explanation {
    let why = explain(corpus, query, request, id, &pool(2), &AtomicBool::new(false)).expect("explains");
    let ip = corpus.metric == Metric::Ip;
    let nearer = |a: f32, b: f32| if ip { a > b } else { a < b };
    let rank = hits.ids.iter().position(|&found| found >= 0 && found as u64 == id);
    assert_eq!(why.rank, rank, "{why:?}");
    assert_eq!(why.reason == Reason::Returned, rank.is_some(), "{why:?}");
    assert_eq!(why.lists.is_some(), !why.scanned_exactly && !request.exact && why.reason != Reason::Unknown, "{why:?}");
    if let Some(rank) = rank {
        let from = match &why.lists {
            None => why.exact_distance,
            Some(lists) if lists.rerank == Rerank::Keys => why.exact_distance,
            Some(InLists { rerank: Rerank::Code, second_score, .. }) => *second_score,
            Some(lists) => lists.first_score,
        };
        let least = if ip { f32::NEG_INFINITY } else { 0.0 };
        assert_eq!(Some(hits.distances[rank]), why.distance);
        assert_eq!(why.distance, from.map(|score| score.max(least)), "{why:?}");
        assert!(why.lists.iter().all(|lists| lists.probed && lists.candidate), "{why:?}");
        return why;
    }
    let is_in = |set: &Option<IdSet>| set.as_ref().is_some_and(|set| set.iter().any(|range| range.contains(&id)));
    let lists = why.lists.as_ref();
    // Whether a list is in reach, give or take.
    let within = |l: &InLists, slack: f32| {
        let slack = if ip { -slack } else { slack };
        l.reach.is_none_or(|reach| !nearer(reach + slack * reach.abs(), l.list_distance))
    };
    match why.reason {
        Reason::Returned => unreachable!("has a rank"),
        Reason::Unknown => assert!(why.exact_distance.is_none()),
        Reason::Deleted => assert!(corpus.deleted.iter().any(|range| range.contains(&id))),
        Reason::Excluded => assert!(asked.exclude.as_ref().is_some_and(|range| range.contains(&id))),
        Reason::NotAllowed => assert!(asked.allow.is_some() && !is_in(&asked.allow)),
        Reason::Denied => assert!(is_in(&asked.deny)),
        Reason::ListNotProbed => assert!(lists.is_some_and(|l| !l.probed && l.list_rank >= l.nprobe), "{why:?}"),
        Reason::ListOutOfReach => {
            assert!(lists.is_some_and(|l| !l.probed && l.list_rank < l.nprobe && !within(l, -1e-5)), "{why:?}");
        }
        Reason::ListLeftOutByEstimate => {
            assert!(corpus.d > 96 && lists.is_some_and(|l| l.nlist > 192 + l.nprobe.min(l.nlist / 32)), "{why:?}");
            assert!(lists.is_some_and(|l| !l.probed && l.list_rank < l.nprobe && within(l, 1e-5)), "{why:?}");
        }
        Reason::ScoreBeyondLimit => assert!(
            lists.is_some_and(|l| l.probed
                && !l.candidate
                && l.first_score.zip(l.last_limit).is_some_and(|(score, limit)| !nearer(score, limit))),
            "{why:?}"
        ),
        Reason::CutAtRescoring => {
            assert!(lists.is_some_and(|l| l.candidate && l.rerank != Rerank::None), "{why:?}");
        }
        Reason::BeyondK => assert!(
            why.kth_distance.is_some() && (request.exact || why.lists.is_none() || lists.is_some_and(|l| l.candidate)),
            "{why:?}"
        ),
    }
    why
}

fn ranges(rng: &mut ChaCha8Rng, n: u64) -> Vec<Range<u64>> {
    let mut draw = || u64::from(rng.next_u32()) % n;
    (0..3).map(|_| draw()).map(|start| start..(start + n / 9).min(n)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn what_is_explained_is_what_a_search_does(
        seed in any::<u64>(), n in 40usize..700, nlist in 1usize..30, wide in any::<bool>(), ip in any::<bool>(), waiting in 0usize..40
    ) {
        let (d, metric) = (if wide { 100 } else { 16 }, if ip { Metric::Ip } else { Metric::L2 });
        let keys = clustered(n + waiting, d, 12, 1.3, seed);
        let block = |span: Range<usize>| {
            KeyBlock { first_id: span.start as u64, d, rows: KeyRows::F32(&keys[span.start * d..span.end * d]) }
        };
        let (indexed, all) = (block(0..n), block(0..n + waiting));
        let built = build(&[indexed], metric, &Params { nlist: Some(nlist.min(n)), ..Params::default() }, 1);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let deleted = id_set(ranges(&mut rng, n as u64));
        let deleted = if seed % 3 == 0 { &deleted[..] } else { &[] };
        let mut corpus = corpus(&built, &[indexed], metric);
        corpus.keys = vec![all];
        corpus.unindexed = if waiting > 0 { vec![block(n..n + waiting)] } else { vec![] };
        corpus.deleted = deleted;
        corpus.index = corpus.index.map(|(book, lists)| (book, lists.into_iter().map(|l| l.without(deleted)).collect()));
        let query = clustered(1, d, 12, 1.3, seed ^ 7);
        for turn in 0..6u32 {
            let mut draw = |n: u32| rng.next_u32() % n;
            let (k, reranks) = (1 + draw(30) as usize, [Rerank::Auto, Rerank::None, Rerank::Keys]);
            let (nprobe, rerank) = (Some(1 + draw(nlist as u32) as usize).filter(|_| turn > 0), reranks[draw(3) as usize]);
            let (depth, exact) = (Some(1 + draw(80) as usize).filter(|_| turn % 2 == 0), draw(6) == 0);
            let (filters, total) = (draw(4), (n + waiting) as u64);
            let asked = Asked {
                exclude: (filters == 1).then(|| ranges(&mut rng, total)[0].clone()),
                allow: (filters == 2).then(|| id_set(ranges(&mut rng, total))),
                deny: (filters == 3).then(|| id_set(ranges(&mut rng, total))),
            };
            let request = Request {
                nprobe,
                depth,
                rerank,
                exact,
                exclude: asked.exclude.as_ref().map(std::slice::from_ref),
                allow: asked.allow.as_ref().map(std::slice::from_ref),
                deny: asked.deny.as_ref().map(std::slice::from_ref),
                ..ask(k)
            };
            let hits = run(&corpus, &query, &request, 1);
            for id in (0..total + 3).step_by(1 + draw_step(total)).chain([u64::MAX]) {
                let why = check(&corpus, &query, &request, &asked, &hits, id);
                prop_assert_eq!(why.reason == Reason::Unknown, id >= total);
            }
        }
    }
}

fn draw_step(total: u64) -> usize {
    (total / 60) as usize
}

/// Stores that stop by distance, which small ones never do; every reason that a store of codes can have is seen.
#[test]
fn lists_out_of_reach_are_told_from_those_that_are_not_probed() {
    let d = 16;
    for metric in [Metric::L2, Metric::Ip] {
        let keys = clustered(21_000, d, 300, 1.0, 3);
        let block = KeyBlock { first_id: 0, d, rows: KeyRows::F32(&keys) };
        let params = Params { code: CodeChoice::Pq { m: 8, bits: 4 }, ..Params::default() };
        let built = build(&[block], metric, &params, 2);
        let setting = Setting { k: 5, stop: 0.9, depth: 2.0, recall: 0.98, scanned: 1.0 };
        let calibration =
            Calibration { queries: 1, rows: vec![setting], keys: vec![setting], ..Calibration::default() };
        let corpus = Corpus {
            measured: Some(Measured { calibration: &calibration, outgrown: false }),
            ..corpus(&built, &[block], metric)
        };
        let query = clustered(1, d, 300, 1.0, 5);
        let mut seen = Vec::new();
        for request in [ask(5), Request { rerank: Rerank::Keys, ..ask(5) }, Request { nprobe: Some(3), ..ask(5) }] {
            let hits = run(&corpus, &query, &request, 2);
            let some = (0..21_000).step_by(997).chain(hits.ids.iter().map(|&id| id as u64));
            seen.extend(some.map(|id| check(&corpus, &query, &request, &Asked::default(), &hits, id).reason));
        }
        for reason in [Reason::Returned, Reason::ListOutOfReach, Reason::ListNotProbed] {
            assert!(seen.contains(&reason), "{metric:?} {reason:?}: {seen:?}");
        }
    }
}

/// Keys without clusters, ten dimensions a code: some lists are misjudged by more ranks than are kept beyond `nprobe`.
#[test]
fn a_list_that_its_estimate_left_out_is_told_from_those_that_are_too_far() {
    let (d, n, nlist, nprobe) = (100, 8000, 1000, 400);
    for metric in [Metric::L2, Metric::Ip] {
        let keys = clustered(n, d, n, 1.0, 3);
        let block = KeyBlock { first_id: 0, d, rows: KeyRows::F32(&keys) };
        let code = CodeChoice::Pq { m: 10, bits: 4 };
        let built = build(&[block], metric, &Params { nlist: Some(nlist), code, ..Params::default() }, 2);
        let corpus = corpus(&built, &[block], metric);
        let lists = &corpus.index.as_ref().expect("built").1[0];
        let one_of_each: BTreeMap<usize, u64> =
            (lists.relative_ids().iter().enumerate()).map(|(at, &id)| (lists.block_of(at).0, u64::from(id))).collect();
        // With room for all of them, what comes back is what the scanned lists hold.
        let request = Request { nprobe: Some(nprobe), rerank: Rerank::None, ..ask(n) };
        let mut left_out = 0;
        for query in clustered(6, d, 6, 1.0, 5).chunks_exact(d) {
            let hits = run(&corpus, query, &request, 2);
            let (mut missed, mut instead) = (0, 0);
            for &id in one_of_each.values() {
                let why = check(&corpus, query, &request, &Asked::default(), &hits, id);
                let list = why.lists.expect("it is in a list");
                assert_eq!(list.probed, hits.ids.contains(&(id as i64)), "{list:?}");
                missed += usize::from(why.reason == Reason::ListLeftOutByEstimate);
                instead += usize::from(list.probed && list.list_rank >= nprobe);
            }
            assert_eq!(missed, instead, "for each list that is left out one more is scanned");
            left_out += missed;
            if left_out > 0 {
                break;
            }
        }
        assert!(left_out > 0, "{metric:?}: no list was misjudged");
    }
}

#[test]
fn a_cancel_ends_it() {
    let (d, n) = (16, 900);
    let keys = clustered(n, d, 12, 1.3, 3);
    let block = |span: Range<usize>| KeyBlock {
        first_id: span.start as u64,
        d,
        rows: KeyRows::F32(&keys[span.start * d..span.end * d]),
    };
    let built = build(&[block(0..n - 50)], Metric::L2, &Params { nlist: Some(9), ..Params::default() }, 1);
    let mut corpus = corpus(&built, &[block(0..n - 50)], Metric::L2);
    (corpus.keys, corpus.unindexed) = (vec![block(0..n)], vec![block(n - 50..n)]);
    for request in [ask(5), Request { nprobe: Some(2), ..ask(5) }, Request { exact: true, ..ask(5) }] {
        for id in [3, n as u64 - 1] {
            let told = |cancel: bool| explain(&corpus, &keys[..d], &request, id, &pool(2), &AtomicBool::new(cancel));
            assert!(matches!(told(true), Err(Error::Interrupted)), "{request:?}");
            assert!(told(false).is_ok());
        }
    }
}
