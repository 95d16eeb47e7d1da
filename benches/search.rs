//! How many queries a second, and at which recall, over clustered keys? One thread; recall is asserted before timing.
//!
//! `cargo bench --bench search`; `-- --test` runs each once over a small store. Keys: a mixture of clusters of Zipf-like sizes
//! around a mean far from zero, 128 dimensions. For real keys see the Python comparisons beside this file.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use knnlm::Metric;
use knnlm::index::{Codebook, Lists, Memory, Params, train, write_lists};
use knnlm::keys::{KeyBlock, KeyRows};
use knnlm::search::{Corpus, Hits, Request, Rerank, search};
use knnlm::threads::Pool;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::sync::atomic::AtomicBool;

const D: usize = 128;
const K: usize = 256;
const QUERIES: usize = 64;

fn keys(n: usize, seed: u64) -> Vec<f32> {
    let clusters = 500;
    let mut fixed = ChaCha8Rng::seed_from_u64(0);
    let centres: Vec<f32> = (0..clusters * D).map(|_| fixed.next_u32() as f32 / 2f32.powi(30) - 2.0).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = move || rng.next_u32() as f32 / 2f32.powi(32);
    let mut keys = Vec::with_capacity(n * D);
    for _ in 0..n {
        let c = (uniform() * uniform() * uniform() * clusters as f32) as usize;
        keys.extend((0..D).map(|t| 5.0 + centres[c * D + t] + 3.0 * (uniform() - 0.5) / (1.0 + t as f32 / 32.0)));
    }
    keys
}

fn recall(found: &Hits, exact: &Hits) -> f64 {
    let pairs = found.ids.chunks(K).zip(exact.ids.chunks(K));
    let hits: usize = pairs.map(|(f, e)| f.iter().filter(|id| e.contains(id)).count()).sum();
    hits as f64 / exact.ids.len() as f64
}

fn searches(c: &mut Criterion) {
    // `cargo test` passes no `--bench`: Criterion then runs everything once, and so a small store will do.
    let quick = std::env::args().any(|a| a == "--test") || !std::env::args().any(|a| a == "--bench");
    let n = if quick { 30_000 } else { 200_000 };
    let (keys, queries) = (keys(n, 1), keys(QUERIES, 2));
    let block = KeyBlock { first_id: 0, d: D, rows: KeyRows::F32(&keys) };
    let pool = Pool::get(None).expect("threads start");
    let alone = Pool::get(Some(1)).expect("the caller's thread");
    let never = AtomicBool::new(false);
    let (mut codebook, mut lists) = (Memory::default(), Memory::default());
    train(&[block], Metric::L2, &Params::default(), &pool, &|_, _, _| (), &never, &mut codebook).expect("trains");
    let book = Codebook::open(&codebook, D, Metric::L2).expect("opens");
    write_lists(&book, &[block], &pool, &|_, _, _| (), &never, &mut lists).expect("writes");
    let lists = Lists::open(&lists, &book, 0, n as u64).expect("opens");
    let corpus = Corpus {
        d: D,
        metric: Metric::L2,
        keys: vec![block],
        index: Some((book, vec![lists])),
        unindexed: vec![],
        deleted: &[],
        measured: None,
        advise: None,
    };
    let run = |queries: &[f32], request: &Request| search(&corpus, queries, request, &alone, &never).expect("searches");

    let base = Request { k: K, ..Request::default() };
    let exact = Request { exact: true, ..base.clone() };
    let reranked = Request { rerank: Rerank::Keys, ..base.clone() };
    let truth = run(&queries, &exact);
    let mut group = c.benchmark_group(format!("{n} keys, k = {K}"));
    group.sample_size(10);
    for (name, request, least) in [("exact", &exact, 1.0), ("lists", &base, 0.7), ("lists, re-ranked", &reranked, 0.85)]
    {
        let reached = recall(&run(&queries, request), &truth);
        assert!(reached >= least, "{name}: recall {reached} is below {least}");
        println!("{name}: recall@{K} {reached:.3}");
        group.throughput(Throughput::Elements(QUERIES as u64));
        group.bench_function(format!("{name}, batch of {QUERIES}"), |b| b.iter(|| run(&queries, request)));
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("{name}, single"), |b| b.iter(|| run(&queries[..D], request)));
    }
    group.finish();
}

criterion_group!(benches, searches);
criterion_main!(benches);
