//! What is explained is what a search does: of every entry, in every kind of store, whatever is asked.

use super::explain::{Explanation, InLists, Reason, explain};
use super::tests::{ask, build, clustered, corpus, run};
use super::*;
use crate::Metric;
use crate::ids::{IdSet, id_set};
use crate::index::{CodeChoice, Params};
use crate::keys::{KeyBlock, KeyRows};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::ops::Range;

/// What a test asks for beside the query.
#[derive(Clone, Debug, Default)]
struct Asked {
    exclude: Option<Range<u64>>,
    allow: Option<IdSet>,
    deny: Option<IdSet>,
}

/// Checks what is told of an entry against what came back, and returns it.
fn check(corpus: &Corpus, query: &[f32], request: &Request, asked: &Asked, hits: &Hits, id: u64) -> Explanation {
    let why = explain(corpus, query, request, id).expect("explains");
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
    let within = |set: &Option<IdSet>| set.as_ref().is_some_and(|set| set.iter().any(|range| range.contains(&id)));
    let lists = why.lists.as_ref();
    match why.reason {
        Reason::Returned => unreachable!("has a rank"),
        Reason::Unknown => assert!(why.exact_distance.is_none()),
        Reason::Deleted => assert!(corpus.deleted.iter().any(|range| range.contains(&id))),
        Reason::Excluded => assert!(asked.exclude.as_ref().is_some_and(|range| range.contains(&id))),
        Reason::NotAllowed => assert!(asked.allow.is_some() && !within(&asked.allow)),
        Reason::Denied => assert!(within(&asked.deny)),
        Reason::ListNotProbed => assert!(lists.is_some_and(|l| !l.probed && l.list_rank >= l.nprobe), "{why:?}"),
        Reason::ListOutOfReach => {
            let beyond =
                |l: &InLists| l.reach.is_some_and(|reach| !nearer(l.list_distance, reach - reach.abs() * 1e-5));
            assert!(lists.is_some_and(|l| !l.probed && l.list_rank < l.nprobe && (ip || beyond(l))), "{why:?}");
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
