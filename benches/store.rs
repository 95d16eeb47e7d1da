//! How fast are entries added, and does opening stay the same while a store grows a hundredfold?
//!
//! `cargo bench --bench store`; `cargo test` runs each once over smaller stores.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use knnlm::Metric;
use knnlm::keys::KeyRows;
use knnlm::store::{Datastore, KeyType, Options, ValueRows, ValueType, Values};
use std::hint::black_box;
use std::path::Path;

fn options(dim: usize, keep_keys: Option<KeyType>) -> Options {
    Options {
        dim,
        metric: Metric::L2,
        keep_keys,
        values: ValueType::Uint32,
        max_value: None,
        attributes: None,
        overwrite: false,
    }
}

fn keys(n: usize, dim: usize) -> Vec<f32> {
    (0..n * dim).map(|i| (i % 977) as f32 / 64.0).collect()
}

fn store(path: &Path, n: usize, dim: usize) -> Datastore {
    let store = Datastore::create(path, &options(dim, Some(KeyType::Float16))).expect("create");
    let keys = keys(1000, dim);
    for i in 0..n / 1000 {
        let values: Vec<u32> = (i as u32 * 1000..).take(1000).collect();
        store.add(KeyRows::F32(&keys), ValueRows::U32(&values), Some(&format!("document {i}")), None).expect("add");
    }
    store.commit().expect("commit");
    store
}

fn adding(c: &mut Criterion) {
    let dim = 512;
    let (keys, values) = (keys(4096, dim), vec![7u32; 4096]);
    let mut group = c.benchmark_group("add 4096 keys of d = 512");
    group.throughput(Throughput::Elements(4096)).sample_size(10);
    for keep in [KeyType::Float16, KeyType::Float32] {
        group.bench_function(format!("{keep:?}"), |b| {
            let folder = tempfile::tempdir().expect("folder");
            let store = Datastore::create(folder.path(), &options(dim, Some(keep))).expect("create");
            b.iter(|| store.add(KeyRows::F32(&keys), ValueRows::U32(&values), None, None).expect("add"));
        });
    }
}

fn reading(c: &mut Criterion) {
    // `cargo test` passes no `--bench`: Criterion then runs everything once, and so small stores will do.
    let quick = !std::env::args().any(|a| a == "--bench");
    let mut group = c.benchmark_group("stores of two sizes");
    for n in if quick { [1_000, 100_000] } else { [20_000, 2_000_000] } {
        let folder = tempfile::tempdir().expect("folder");
        let built = store(folder.path(), n, 8);
        assert_eq!(Datastore::open(folder.path()).expect("open").len(), n as u64);
        let ids: Vec<i64> = (0..1024).map(|i| (i * 7919 % n) as i64).collect();
        assert_eq!(built.get(&ids).expect("get").values, Values::U32(ids.iter().map(|&id| id as u32).collect()));
        group.bench_with_input(BenchmarkId::new("open", n), &n, |b, _| {
            b.iter(|| Datastore::open(black_box(folder.path())))
        });
        group.bench_with_input(BenchmarkId::new("get 1024", n), &n, |b, _| b.iter(|| built.get(black_box(&ids))));
    }
}

criterion_group!(benches, adding, reading);
criterion_main!(benches);
