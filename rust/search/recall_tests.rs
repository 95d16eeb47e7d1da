//! Recall that is asked for is had or refused, and raw keys find what they can.

use super::approximate::{Conditions, approximate};
use super::check::check;
use super::tests::{ask, build, clustered, corpus, pool, recall, run};
use super::*;
use crate::error::Why;
use crate::index::{CodeChoice, Params};
use crate::keys::{KeyBlock, KeyRows};
use crate::{Error, Metric};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::sync::atomic::AtomicBool;

/// The corpus with what is measured of its index.
fn measured<'a>(corpus: Corpus<'a>, calibration: &'a Calibration) -> Corpus<'a> {
    Corpus { measured: Some(Measured { calibration, outgrown: false }), ..corpus }
}

/// Uniform in a cube: no structure that codes could use.
fn cube(n: usize, d: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n * d).map(|_| rng.next_u32() as f32 / 2f32.powi(31) - 1.0).collect()
}

#[test]
fn asked_recall_is_had_or_refused() {
    // Stores that scan every list and stores that do not; codes that tell neighbors apart and codes that cannot.
    let coarse = CodeChoice::Pq { m: 8, bits: 4 };
    let cases = [
        (21_000, 100, Metric::L2, CodeChoice::Auto, true),
        (21_000, 16, Metric::Ip, coarse, false),
        (3_000, 128, Metric::L2, CodeChoice::Small, false),
        (1_000, 100, Metric::Ip, CodeChoice::Auto, true),
        (300, 16, Metric::L2, coarse, true),
        (20, 16, Metric::L2, CodeChoice::Auto, false),
    ];
    for (n, d, metric, code, clusters) in cases {
        let draw = |n, seed| if clusters { clustered(n, d, 300, 1.0, seed) } else { cube(n, d, seed) };
        let (keys, queries) = (draw(n, 31), draw(150, 32));
        let block = KeyBlock { first_id: 0, d, rows: KeyRows::F32(&keys) };
        let built = build(&[block], metric, &Params { code, ..Params::default() }, 2);
        let raw = corpus(&built, &[block], metric);
        let never = AtomicBool::new(false);
        let measure =
            |keys: bool, threads: usize| calibrate(&raw, keys, &pool(threads), &|_, _| (), &never).expect("measures");
        let with = measure(true, 2);
        if n < 20_000 {
            assert_eq!(with, measure(true, 1));
            let without = measure(false, 2);
            assert_eq!((&with.rows, &with.first), (&without.rows, &without.first), "of codes the same");
            assert!(without.keys.is_empty() && !with.keys.is_empty());
        }
        let text = serde_json::to_string(&with).expect("JSON");
        assert_eq!(with, serde_json::from_str(&text).expect("JSON"));
        let corpus = measured(corpus(&built, &[block], metric), &with);
        for k in [1, 8, 64, 1024].into_iter().filter(|&k| 2 * k <= n) {
            let exact = run(&corpus, &queries, &Request { exact: true, ..ask(k) }, 2);
            for rerank in [Rerank::Auto, Rerank::None, Rerank::Keys] {
                let (mut kept, mut refused) = (0, 0);
                for goal in [0.5, 0.7, 0.9, 0.95, 0.97, 0.99, 1.0] {
                    let request = Request { recall: Some(goal), rerank, ..ask(k) };
                    let what = format!("n {n} d {d} {metric:?} {code:?} k {k} {rerank:?} asked {goal}");
                    let found = match search(&corpus, &queries, &request, &pool(2), &never) {
                        Ok(found) => found,
                        Err(error) => {
                            assert!(matches!(&error, Error::Argument(m) if m.contains("at most")), "{what}: {error}");
                            refused += 1;
                            continue;
                        }
                    };
                    for ids in found.ids.chunks(k) {
                        let mut once = ids.to_vec();
                        once.sort_unstable();
                        assert!(
                            once.windows(2).all(|pair| pair[0] < pair[1]),
                            "{what}: an entry twice, or one missing"
                        );
                    }
                    let each = found.ids.chunks(k).zip(exact.ids.chunks(k));
                    let each = each.map(|(f, e)| f.iter().filter(|id| e.contains(id)).count() as f64 / k as f64);
                    let each: Vec<f64> = each.collect();
                    let had = each.iter().sum::<f64>() / each.len() as f64;
                    // Of these queries and of as many again that the setting was measured with.
                    let spread = each.iter().map(|r| (r - had).powi(2)).sum::<f64>() / each.len() as f64;
                    let noise = 2.5 * (2.0 * spread / each.len() as f64).sqrt();
                    assert!(had >= f64::from(goal) - 0.01 - noise, "{what}: had {had}, noise {noise}");
                    assert!(goal < 1.0 || had == 1.0, "{what}: had {had}");
                    kept += 1;
                }
                let all = rerank == Rerank::None || kept > 0 && (n > 20_000 || refused == 0);
                assert!(all, "n {n} d {d} k {k} {rerank:?}: raw keys find all of a small store, {refused} refused");
            }
        }
        let error = search(
            &Corpus { measured: None, ..self::corpus(&built, &[block], metric) },
            &queries,
            &Request { recall: Some(0.5), ..ask(1) },
            &pool(1),
            &never,
        );
        assert!(matches!(error, Err(Error::State { why: Why::NotCalibrated, .. })));
        let grown = Corpus { measured: corpus.measured.map(|m| Measured { outgrown: true, ..m }), ..corpus };
        let error = search(&grown, &queries, &Request { recall: Some(0.5), ..ask(1) }, &pool(1), &never);
        assert!(matches!(error, Err(Error::State { why: Why::Outgrown, .. })));
    }
}

#[test]
fn raw_keys_find_what_they_can_whatever_the_codes() {
    let coarse = CodeChoice::Pq { m: 16, bits: 8 };
    for (d, code, clusters) in [(64, CodeChoice::Small, false), (128, CodeChoice::Auto, true), (64, coarse, true)] {
        let (n, k) = (21_000, 10);
        let draw = |n, seed| if clusters { clustered(n, d, 60, 1.0, seed) } else { cube(n, d, seed) };
        let (keys, queries) = (draw(n, 41), draw(100, 42));
        let block = KeyBlock { first_id: 0, d, rows: KeyRows::F32(&keys) };
        let built = build(&[block], Metric::L2, &Params { code, ..Params::default() }, 2);
        let raw = corpus(&built, &[block], Metric::L2);
        let never = AtomicBool::new(false);
        let calibration = calibrate(&raw, true, &pool(2), &|_, _| (), &never).expect("measures");
        let nprobe = raw.index.as_ref().map(|(book, _)| book.default_nprobe());
        let corpus = measured(raw, &calibration);
        let exact = run(&corpus, &queries, &Request { exact: true, ..ask(k) }, 2);
        let by_codes = recall(&run(&corpus, &queries, &ask(k), 2), &exact, k);
        let by_keys = Request { rerank: Rerank::Keys, ..ask(k) };
        for (request, least) in [(by_keys.clone(), 0.955), (Request { nprobe, ..by_keys }, by_codes + 0.02)] {
            let had = recall(&run(&corpus, &queries, &request, 2), &exact, k);
            assert!(had > least, "d {d} {code:?}: by codes {by_codes}, by keys {had}, {:?}", request.nprobe);
        }
        assert!(by_codes < 0.98, "a code that leaves nothing to find shows nothing: {by_codes}");
    }
}

/// Keys of which twenty times twelve are nearly one, scattered, and the first of each as queries: what a query's own code adds
/// to all of them is of either sign, so that many estimates of distances are below 0.
fn nearly_one(n: usize, d: usize) -> (Vec<f32>, Vec<f32>) {
    let mut keys = clustered(n, d, 20, 1.0, 51);
    let near = |group: usize, i: usize| (group * 12 + i) * 37 % n;
    for (group, i) in (0..240).map(|at| (at / 12, at % 12)) {
        let (first, noise) = (keys[near(group, 0) * d..][..d].to_vec(), cube(1, d, i as u64));
        let moved: Vec<f32> = first.iter().zip(noise).map(|(x, noise)| x + 1e-3 * i as f32 * noise).collect();
        keys[near(group, i) * d..][..d].copy_from_slice(&moved);
    }
    let queries = (0..20).flat_map(|group| keys[near(group, 0) * d..][..d].to_vec()).collect();
    (keys, queries)
}

#[test]
fn the_first_of_all_candidates_are_those_of_a_search_for_fewer() {
    let (d, candidates, few) = (112, 60, 6);
    let (keys, queries) = nearly_one(2_000, d);
    let block = KeyBlock { first_id: 0, d, rows: KeyRows::F32(&keys) };
    for code in [CodeChoice::Auto, CodeChoice::Small, CodeChoice::Flat] {
        let built = build(&[block], Metric::L2, &Params { code, ..Params::default() }, 2);
        let corpus = corpus(&built, &[block], Metric::L2);
        let codebook = &corpus.index.as_ref().expect("built").0;
        let reach = probes::Reach { nprobe: codebook.nlist(), stop: None };
        let rerank = if codebook.second_bits() > 0 { Rerank::Code } else { Rerank::None };
        let plan = plan::Plan { reach, candidates, rerank };
        let find = |k: usize| {
            let q = queries.len() / d;
            let (mut distances, mut ids) = (vec![0.0; q * k], vec![0; q * k]);
            let mut out = HitsMut { distances: &mut distances, ids: &mut ids };
            let kernels = check(&corpus, &queries, &ask(k)).expect("right");
            let (now, never) = (Conditions::now(), AtomicBool::new(false));
            approximate(&corpus, &queries, &ask(k), &plan, &kernels, &pool(1), &never, &mut out, now).expect("finds");
            ids
        };
        // Calibration counts on it.
        for (few, all) in find(few).chunks(few).zip(find(candidates).chunks(candidates)) {
            assert_eq!(few, &all[..few.len()], "{code:?}");
        }
    }
}

#[test]
fn equal_distances_come_by_id_where_estimates_fall_below_zero() {
    let (n, d, k) = (2_000, 112, 30);
    let (keys, queries) = nearly_one(n, d);
    let last = vec![50.0f32; d];
    let block = KeyBlock { first_id: 0, d, rows: KeyRows::F32(&keys) };
    let waiting = KeyBlock { first_id: n as u64, d, rows: KeyRows::F32(&last) };
    for code in [CodeChoice::Auto, CodeChoice::Small, CodeChoice::Flat] {
        let built = build(&[block], Metric::L2, &Params { code, ..Params::default() }, 2);
        let corpus = corpus(&built, &[block], Metric::L2);
        let alone = run(&corpus, &queries, &ask(k), 1);
        let pairs: Vec<(f32, i64)> = alone.distances.iter().copied().zip(alone.ids.iter().copied()).collect();
        let zeros = pairs.chunks(k).filter(|found| found[1].0 == 0.0).count();
        assert!(zeros > 0, "{code:?}: several estimates of a query below zero");
        for found in pairs.chunks(k) {
            assert!(found.is_sorted_by(|a, b| (a.0, a.1) < (b.0, b.1)), "{code:?}: {found:?}");
        }
        // Something else that waits for its index does not change the order.
        let grown = Corpus { unindexed: vec![waiting], keys: vec![block, waiting], ..corpus };
        assert_eq!(run(&grown, &queries, &ask(k), 1), alone, "{code:?}");
    }
}
