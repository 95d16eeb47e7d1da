//! Whole path: train, write lists, search; against brute force and against itself.

use super::answer::planned;
use super::approximate::{Conditions, approximate};
use super::*;
use crate::index::{CodeChoice, Codebook, Lists, Memory, Params, reconstruct, train, write_lists};
use crate::keys::{KeyBlock, KeyRows};
use crate::sections::SectionKind;
use crate::simd::{Isa, Kernels};
use crate::threads::Pool;
use crate::{Error, Metric, Result};
use half::f16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::ops::Range;
use std::sync::atomic::AtomicBool;

pub(crate) fn pool(threads: usize) -> Pool {
    Pool::get(Some(threads)).expect("threads start")
}

/// Keys around `clusters` centres, with a mean far from zero; norms spread as asked.
pub(crate) fn clustered(n: usize, d: usize, clusters: usize, spread: f32, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = move || rng.next_u32() as f32 / 2f32.powi(31) - 1.0;
    let mut centres_rng = ChaCha8Rng::seed_from_u64(99);
    let centres: Vec<f32> = (0..clusters * d).map(|_| centres_rng.next_u32() as f32 / 2f32.powi(30) - 2.0).collect();
    (0..n)
        .flat_map(|_| {
            let c = (uniform().abs() * uniform().abs() * clusters as f32) as usize % clusters;
            let scale = spread.powf(uniform() * 0.5);
            let row: Vec<f32> = (0..d).map(|t| scale * (3.0 + centres[c * d + t] + uniform() + uniform())).collect();
            row
        })
        .collect()
}

pub(super) struct Built {
    pub(super) codebook: Memory,
    pub(super) lists: Vec<(Memory, u64, u64)>,
}

pub(super) fn build(blocks: &[KeyBlock], metric: Metric, params: &Params, threads: usize) -> Built {
    let (mut codebook, mut lists) = (Memory::default(), Memory::default());
    let never = AtomicBool::new(false);
    train(blocks, metric, params, &pool(threads), &|_, _, _| (), &never, &mut codebook).expect("trains");
    let book = Codebook::open(&codebook, blocks[0].d, metric).expect("opens");
    write_lists(&book, blocks, &pool(threads), &|_, _, _| (), &never, &mut lists).expect("writes");
    let span = (blocks[0].first_id, blocks[blocks.len() - 1].ids().end);
    drop(book);
    Built { codebook, lists: vec![(lists, span.0, span.1 - span.0)] }
}

pub(super) fn corpus<'a>(built: &'a Built, keys: &[KeyBlock<'a>], metric: Metric) -> Corpus<'a> {
    let d = keys[0].d;
    let book = Codebook::open(&built.codebook, d, metric).expect("opens");
    let lists = built.lists.iter().map(|(m, first, n)| Lists::open(m, &book, *first, *n).expect("opens")).collect();
    Corpus {
        d,
        metric,
        keys: keys.to_vec(),
        index: Some((book, lists)),
        unindexed: vec![],
        deleted: &[],
        measured: None,
        advise: None,
    }
}

pub(super) fn ask<'r>(k: usize) -> Request<'r> {
    Request { k, ..Request::default() }
}

pub(super) fn run(corpus: &Corpus, queries: &[f32], request: &Request, threads: usize) -> Hits {
    search(corpus, queries, request, &pool(threads), &AtomicBool::new(false)).expect("searches")
}

pub(super) fn recall(found: &Hits, exact: &Hits, k: usize) -> f64 {
    let per_query = found.ids.chunks(k).zip(exact.ids.chunks(k));
    let hits: usize = per_query.map(|(f, e)| f.iter().filter(|&id| *id >= 0 && e.contains(id)).count()).sum();
    hits as f64 / exact.ids.iter().filter(|&&id| id >= 0).count() as f64
}

#[test]
fn lists_that_were_not_told_return_nothing_deleted() {
    for (d, code) in [(24, CodeChoice::Auto), (100, CodeChoice::Flat), (16, CodeChoice::Pq { m: 4, bits: 8 })] {
        let (n, k) = (3000, 40);
        let keys = clustered(n, d, 20, 1.5, 3);
        let blocks = [KeyBlock { first_id: 0, d, rows: KeyRows::F32(&keys) }];
        let built = build(&blocks, Metric::L2, &Params { nlist: Some(30), code, ..Params::default() }, 2);
        let gone = [10u64..700, 1500..1501, 2000..2999];
        let of = |deleted| Corpus {
            deleted,
            ..corpus(&built, &[KeyBlock { first_id: 0, d, rows: KeyRows::F32(&[]) }], Metric::L2)
        };
        for request in
            [Request { nprobe: Some(5), ..ask(k) }, Request { nprobe: Some(30), rerank: Rerank::None, ..ask(k) }]
        {
            let all = run(&of(&[]), &keys[..d * 800], &request, 2);
            let left = run(&of(&gone), &keys[..d * 800], &request, 2);
            let is_gone = |id: &&i64| gone.iter().any(|span| span.contains(&(**id as u64)));
            assert!(all.ids.iter().filter(is_gone).count() > 1000);
            assert_eq!(left.ids.iter().filter(is_gone).count(), 0);
        }
    }
}

#[test]
fn recall_is_good_for_every_code_dimension_and_metric() {
    for (d, code, least) in [
        (8, CodeChoice::Auto, 0.75),
        (24, CodeChoice::Auto, 0.85),
        (100, CodeChoice::Auto, 0.85),
        (100, CodeChoice::Small, 0.55),
        (100, CodeChoice::Flat, 0.85),
        (96, CodeChoice::Pq { m: 24, bits: 8 }, 0.7),
        (384, CodeChoice::Auto, 0.75),
    ] {
        for metric in [Metric::L2, Metric::Ip] {
            let n = 6000;
            let keys = clustered(n, d, 50, if metric == Metric::Ip { 10.0 } else { 1.0 }, 1);
            let block = KeyBlock { first_id: 0, d, rows: KeyRows::F32(&keys) };
            let built = build(&[block], metric, &Params { code, ..Params::default() }, 2);
            let corpus = corpus(&built, &[block], metric);
            let queries = clustered(40, d, 50, 1.0, 2);
            let exact = run(&corpus, &queries, &Request { exact: true, ..ask(100) }, 2);
            let found = run(&corpus, &queries, &ask(100), 2);
            let r = recall(&found, &exact, 100);
            assert!(r >= least, "d={d} {code:?} {metric:?}: recall {r}");
            let reranked = run(&corpus, &queries, &Request { rerank: Rerank::Keys, ..ask(100) }, 2);
            let better = recall(&reranked, &exact, 100);
            assert!(better >= r && better > 0.8, "d={d} {code:?} {metric:?}: re-ranked recall {better}");
            for (query, (ids, distances)) in reranked.ids.chunks(100).zip(reranked.distances.chunks(100)).enumerate() {
                let key = &keys[ids[0] as usize * d..][..d];
                let q = &queries[query * d..][..d];
                let terms = q.iter().zip(key).map(|(&q, &x)| (f64::from(q), f64::from(x)));
                let want: f64 = match metric {
                    Metric::L2 => terms.map(|(q, x)| (q - x).powi(2)).sum(),
                    Metric::Ip => terms.map(|(q, x)| q * x).sum(),
                };
                assert!((f64::from(distances[0]) - want).abs() <= 1e-4 * want.abs());
            }
        }
    }
}

#[test]
fn answer_is_independent_of_batch_threads_and_instruction_set() {
    let (n, d, k) = (30_000, 40, 50);
    for metric in [Metric::L2, Metric::Ip] {
        let keys = clustered(n, d, 200, 1.0, 3);
        let block = KeyBlock { first_id: 10, d, rows: KeyRows::F32(&keys) };
        let built = build(&[block], metric, &Params::default(), 2);
        let corpus = corpus(&built, &[block], metric);
        let queries = clustered(30, d, 200, 1.0, 4);
        let exclude: Vec<Range<u64>> = (0..30).map(|i| i * 100..i * 100 + 3000).collect();
        for rerank in [Rerank::None, Rerank::Keys] {
            let request = Request { rerank, exclude: Some(&exclude), ..ask(k) };
            let whole = run(&corpus, &queries, &request, 1);
            for threads in [2, 3] {
                assert_eq!(whole, run(&corpus, &queries, &request, threads));
            }
            for (i, query) in queries.chunks(d).enumerate() {
                for threads in [1, 3] {
                    let request = Request { exclude: Some(&exclude[i..=i]), ..request.clone() };
                    let one = run(&corpus, query, &request, threads);
                    assert_eq!(one.ids, whole.ids[i * k..(i + 1) * k], "query {i}");
                    assert_eq!(one.distances, whole.distances[i * k..(i + 1) * k]);
                    assert!(one.ids.iter().all(|&id| id >= 0 && !exclude[i].contains(&(id as u64))));
                }
            }
            // Threads that share every query, however small.
            let kernels = Kernels::best();
            let always = Conditions { nanoseconds: 0.0, entries: 0.0, cold: false };
            let never = AtomicBool::new(false);
            for threads in [2, 3, 7] {
                let shared = |queries: &[f32], request: &Request| {
                    let pool = pool(threads);
                    let (mut distances, mut ids) = (vec![0.0; k], vec![0; k]);
                    let mut out = HitsMut { distances: &mut distances, ids: &mut ids };
                    let plan = planned(&corpus, request)?;
                    approximate(&corpus, queries, request, &plan, &kernels, &pool, &never, &mut out, always)
                        .map(|_| ids)
                };
                for (i, query) in queries.chunks(d).enumerate().take(5) {
                    let request = Request { exclude: Some(&exclude[i..=i]), ..request.clone() };
                    let found = shared(query, &request).expect("searches");
                    assert_eq!(found, whole.ids[i * k..(i + 1) * k], "query {i}, {threads} threads");
                }
            }
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let all = Request { nprobe: Some(usize::MAX), isa: Some(isa), ..request.clone() };
                let other = run(&corpus, &queries, &all, 2);
                let best = run(&corpus, &queries, &Request { isa: None, ..all }, 2);
                assert!(recall(&other, &best, k) > 0.999, "{isa:?}");
            }
        }
    }
}

#[test]
fn same_bytes_for_any_number_of_threads() {
    let (n, d) = (25_000, 20);
    let keys: Vec<f16> = clustered(n, d, 100, 1.0, 5).iter().map(|&x| f16::from_f32(x)).collect();
    let block = KeyBlock { first_id: 0, d, rows: KeyRows::F16(&keys) };
    let (one, three) =
        (build(&[block], Metric::L2, &Params::default(), 1), build(&[block], Metric::L2, &Params::default(), 3));
    use crate::sections::SectionSource;
    for kind in [SectionKind::Parameters, SectionKind::Centroids, SectionKind::Words, SectionKind::Derived] {
        assert!(one.codebook.section(kind).expect("there") == three.codebook.section(kind).expect("there"), "{kind:?}");
    }
    for kind in [SectionKind::ListOffsets, SectionKind::ListIds, SectionKind::Codes] {
        assert!(
            one.lists[0].0.section(kind).expect("there") == three.lists[0].0.section(kind).expect("there"),
            "{kind:?}"
        );
    }
}

#[test]
fn appended_segments_and_unindexed_entries_are_found() {
    let (n, d, k) = (6000, 16, 20);
    let keys = clustered(n, d, 30, 1.0, 6);
    let block =
        |from: usize, to: usize| KeyBlock { first_id: from as u64, d, rows: KeyRows::F32(&keys[from * d..to * d]) };
    let mut built = build(&[block(0, 1000), block(1000, 4000)], Metric::L2, &Params::default(), 2);
    let book = Codebook::open(&built.codebook, d, Metric::L2).expect("opens");
    let mut more = Memory::default();
    write_lists(&book, &[block(4000, 5500)], &pool(2), &|_, _, _| (), &AtomicBool::new(false), &mut more)
        .expect("writes");
    drop(book);
    built.lists.push((more, 4000, 1500));
    let mut corpus = corpus(&built, &[block(0, 6000)], Metric::L2);
    corpus.unindexed = vec![block(5500, 6000)];
    let queries = clustered(50, d, 30, 1.0, 7);
    let exact = run(&corpus, &queries, &Request { exact: true, ..ask(k) }, 2);
    let request = Request { nprobe: Some(usize::MAX), rerank: Rerank::Keys, ..ask(k) };
    let found = run(&corpus, &queries, &request, 2);
    assert!(recall(&found, &exact, k) > 0.97, "recall {}", recall(&found, &exact, k));
    // A stored key finds itself in whatever part it lies.
    for id in [0, 3999, 4000, 5499, 5500, 5999] {
        let hits = run(&corpus, &keys[id * d..(id + 1) * d], &request, 2);
        assert_eq!((hits.ids[0], hits.distances[0]), (id as i64, 0.0));
    }
    let (book, lists) = corpus.index.as_ref().expect("built");
    let decoded = reconstruct(book, lists, &[4000, 17, 4000]).expect("found");
    for (row, id) in decoded.chunks(d).zip([4000, 17, 4000]) {
        let key = &keys[id * d..(id + 1) * d];
        let error: f32 = row.iter().zip(key).map(|(a, b)| (a - b) * (a - b)).sum();
        let norm: f32 = key.iter().map(|b| (b - 3.0) * (b - 3.0)).sum();
        assert!(error < 0.02 * norm, "decoded key is off by {error} of {norm}");
    }
    assert!(matches!(reconstruct(book, lists, &[5600]), Err(Error::Argument(_))));
}

#[test]
fn cancel_stops_every_stage() {
    let (n, d) = (30_000, 16);
    let keys = clustered(n, d, 50, 1.0, 13);
    let block = KeyBlock { first_id: 0, d, rows: KeyRows::F32(&keys) };
    for stage in ["sample", "lists", "words", "calibrate"] {
        let cancel = AtomicBool::new(false);
        let progress = |now: &str, _: u64, _: u64| cancel.store(now == stage, std::sync::atomic::Ordering::Relaxed);
        let result =
            train(&[block], Metric::L2, &Params::default(), &pool(2), &progress, &cancel, &mut Memory::default());
        assert!(matches!(result, Err(Error::Interrupted)), "{stage}");
    }
    let built = build(&[block], Metric::L2, &Params::default(), 2);
    let book = Codebook::open(&built.codebook, d, Metric::L2).expect("opens");
    let cancel = AtomicBool::new(true);
    let result = write_lists(&book, &[block], &pool(2), &|_, _, _| (), &cancel, &mut Memory::default());
    assert!(matches!(result, Err(Error::Interrupted)));
    let corpus = corpus(&built, &[block], Metric::L2);
    assert!(matches!(search(&corpus, &keys[..d], &ask(5), &pool(1), &cancel), Err(Error::Interrupted)));
}

#[test]
fn tiny_and_identical_stores_work() {
    for n in [1, 2, 15, 16, 17, 100, 3000] {
        for distinct in [1, n] {
            let d = 8;
            let base = clustered(distinct, d, 3, 1.0, 8);
            let keys: Vec<f32> = (0..n).flat_map(|i| base[i % distinct * d..][..d].to_vec()).collect();
            let block = KeyBlock { first_id: 0, d, rows: KeyRows::F32(&keys) };
            let built = build(&[block], Metric::L2, &Params::default(), 2);
            let corpus = corpus(&built, &[block], Metric::L2);
            let hits = run(&corpus, &keys[..d], &ask(20), 1);
            assert_eq!(hits.ids.iter().filter(|&&id| id >= 0).count(), n.min(20), "n={n}");
            assert!(hits.ids[n.min(20)..].iter().all(|&id| id == -1));
            assert!(hits.distances[n.min(20)..].iter().all(|&x| x == f32::INFINITY));
            if distinct == 1 {
                assert_eq!(hits.ids[..n.min(20)], (0..n.min(20) as i64).collect::<Vec<_>>(), "ties go by id");
            }
        }
    }
}

#[test]
fn wide_keys_and_large_k_work() {
    for (n, d, k) in [(200, 8192, 10), (9000, 8, 4096), (300, 1, 5), (300, 3, 300)] {
        let keys = clustered(n, d, 10, 1.0, 11);
        let block = KeyBlock { first_id: 0, d, rows: KeyRows::F32(&keys) };
        let built = build(&[block], Metric::L2, &Params::default(), 2);
        let corpus = corpus(&built, &[block], Metric::L2);
        let queries = clustered(6, d, 10, 1.0, 12);
        let exact = run(&corpus, &queries, &Request { exact: true, ..ask(k) }, 2);
        let found = run(&corpus, &queries, &Request { rerank: Rerank::Keys, ..ask(k) }, 2);
        assert!(recall(&found, &exact, k) > 0.9, "n={n} d={d} k={k}: {}", recall(&found, &exact, k));
        let all = entries_scanned(&corpus, &queries, &Request { nprobe: Some(usize::MAX), ..ask(5) }).expect("counts");
        assert!(all.iter().all(|&s| s == n as u64));
    }
}

#[test]
fn empty_store_answers_all_missing() {
    let corpus = Corpus {
        d: 4,
        metric: Metric::Ip,
        keys: vec![],
        index: None,
        unindexed: vec![],
        deleted: &[],
        measured: None,
        advise: None,
    };
    let hits = run(&corpus, &[0.0; 8], &ask(3), 2);
    assert_eq!(hits, Hits { distances: vec![f32::NEG_INFINITY; 6], ids: vec![-1; 6] });
}

#[test]
fn bad_requests_are_errors() {
    let keys = vec![0.5f32; 40];
    let block = KeyBlock { first_id: 0, d: 4, rows: KeyRows::F32(&keys) };
    let corpus = Corpus {
        d: 4,
        metric: Metric::L2,
        keys: vec![],
        index: None,
        unindexed: vec![block],
        deleted: &[],
        measured: None,
        advise: None,
    };
    let fails = |queries: &[f32], request: &Request| {
        search(&corpus, queries, request, &pool(1), &AtomicBool::new(false)).expect_err("must fail").to_string()
    };
    assert!(fails(&[0.0; 4], &ask(0)).contains("k must be at least 1"));
    assert!(fails(&[0.0; 5], &ask(1)).contains("rows of 4"));
    assert!(fails(&[0.0, f32::NAN, 0.0, 0.0], &ask(1)).contains("finite"));
    assert!(fails(&[0.0; 4], &Request { nprobe: Some(0), ..ask(1) }).contains("nprobe"));
    assert!(fails(&[0.0; 4], &Request { exclude: Some(&[]), ..ask(1) }).contains("exclude"));
    assert!(
        fails(&[0.0; 4], &Request { exact: true, ..ask(1) }).contains("expected raw keys of all 10 entries, found 0")
    );
}

#[test]
fn damaged_sections_are_errors() {
    let (n, d) = (3000, 8);
    let keys = clustered(n, d, 5, 1.0, 9);
    let block = KeyBlock { first_id: 0, d, rows: KeyRows::F32(&keys) };
    let fresh = || build(&[block], Metric::L2, &Params::default(), 2);
    let open = |built: &Built| -> Result<()> {
        let book = Codebook::open(&built.codebook, d, Metric::L2)?;
        let lists = Lists::open(&built.lists[0].0, &book, 0, n as u64)?;
        lists.verify()?;
        let corpus = Corpus {
            d,
            metric: Metric::L2,
            keys: vec![],
            index: Some((book, vec![lists])),
            unindexed: vec![],
            deleted: &[],
            measured: None,
            advise: None,
        };
        search(&corpus, &keys[..d], &ask(n), &pool(1), &AtomicBool::new(false)).map(|_| ())
    };
    open(&fresh()).expect("sound");
    for kind in [SectionKind::Parameters, SectionKind::Centroids, SectionKind::Words, SectionKind::Derived] {
        for bytes in [&b""[..], b"{}", &[0u8; 64]] {
            let mut built = fresh();
            built.codebook.insert(kind, bytes);
            assert!(matches!(open(&built), Err(Error::Format { .. })), "{kind:?}");
        }
    }
    for kind in [SectionKind::ListOffsets, SectionKind::ListIds, SectionKind::Codes] {
        for bytes in [&b""[..], b"abc", &[255u8; 64], &[255u8; 12_000]] {
            let mut built = fresh();
            built.lists[0].0.insert(kind, bytes);
            assert!(matches!(open(&built), Err(Error::Format { .. })), "{kind:?} {}", bytes.len());
        }
    }
}

#[test]
fn second_level_codes_make_distances_exact_enough() {
    let (n, d, k) = (25_000, 128, 100);
    for metric in [Metric::L2, Metric::Ip] {
        let keys = clustered(n, d, 100, 1.0, 21);
        let block = KeyBlock { first_id: 0, d, rows: KeyRows::F32(&keys) };
        let params = Params::default();
        let built = build(&[block], metric, &params, 2);
        let corpus = corpus(&built, &[block], metric);
        let queries = clustered(50, d, 100, 1.0, 22);
        let exact = run(&corpus, &queries, &Request { exact: true, ..ask(k) }, 2);
        let nprobe = Some(usize::MAX);
        let none = run(&corpus, &queries, &Request { nprobe, rerank: Rerank::None, ..ask(k) }, 2);
        let code = run(&corpus, &queries, &Request { nprobe, rerank: Rerank::Code, ..ask(k) }, 2);
        assert_eq!(code, run(&corpus, &queries, &Request { nprobe, ..ask(k) }, 1), "it is the default");
        let (before, after) = (recall(&none, &exact, k), recall(&code, &exact, k));
        assert!(after > before && after > 0.93, "{metric:?}: {before} {after}");
        let error = |hits: &Hits| {
            let pairs = hits.ids.iter().zip(&hits.distances).enumerate().map(|(i, (&id, &found))| {
                let pairs = queries[i / k * d..][..d].iter().zip(&keys[id as usize * d..][..d]);
                let want: f32 = match metric {
                    Metric::L2 => pairs.map(|(q, x)| (q - x) * (q - x)).sum(),
                    Metric::Ip => pairs.map(|(q, x)| q * x).sum(),
                };
                f64::from(found - want).powi(2)
            });
            pairs.sum::<f64>()
        };
        assert!(error(&code) < 0.1 * error(&none), "{metric:?}: {} {}", error(&code), error(&none));
        // 4 bits a dimension in one level are as good.
        let flat = Params { code: CodeChoice::Flat, ..Params::default() };
        let single = build(&[block], metric, &flat, 2);
        let single = self::corpus(&single, &[block], metric);
        let found = run(&single, &queries, &Request { nprobe, ..ask(k) }, 2);
        assert!(recall(&found, &exact, k) > 0.93, "{metric:?}: {}", recall(&found, &exact, k));
        assert!(error(&found) < 0.1 * error(&none), "{metric:?}: {} {}", error(&found), error(&none));
        // Decoded keys are close, too.
        for corpus in [&corpus, &single] {
            let (book, lists) = corpus.index.as_ref().expect("built");
            let decoded = reconstruct(book, lists, &[5, 24_999]).expect("there");
            for (row, id) in decoded.chunks(d).zip([5, 24_999]) {
                let key = &keys[id * d..(id + 1) * d];
                let error: f32 = row.iter().zip(key).map(|(a, b)| (a - b) * (a - b)).sum();
                assert!(error < 0.02 * d as f32, "{error}");
            }
        }
    }
}
