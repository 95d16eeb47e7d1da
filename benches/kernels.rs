//! How fast is each kernel on each instruction set of this CPU? Every answer is compared with the scalar one first.
//!
//! `cargo bench --bench kernels`; `-- --test` runs each once. Sizes are those of a store of 384-dimensional keys.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use knnlm::simd::{ByteKeys, FACTOR_BYTES, GROUP, Isa, Kernels, LANES, ScanQuery, TILE_LANES, TILE_ROWS, Tile};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::hint::black_box;

const D: usize = 384;
const M: usize = 128;
const BLOCKS: usize = 64;

fn kernels() -> Vec<Kernels> {
    Isa::ALL.into_iter().filter_map(Kernels::of).collect()
}

fn scalar() -> Kernels {
    Kernels::of(Isa::Scalar).expect("plain Rust runs everywhere")
}

fn reals(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.next_u32() as f32 / 2f32.powi(31) - 1.0).collect()
}

/// Runs `work` for every instruction set; `same` tells whether its result equals the scalar one.
fn compare<T>(
    c: &mut Criterion,
    name: &str,
    each: Throughput,
    work: impl Fn(Kernels) -> T,
    same: impl Fn(&T, &T) -> bool,
) {
    let want = work(scalar());
    let mut group = c.benchmark_group(name);
    group.throughput(each);
    for k in kernels() {
        assert!(same(&work(k), &want), "{name}: {:?} differs from scalar", k.isa());
        group.bench_function(BenchmarkId::from_parameter(k.isa().name()), |b| b.iter(|| black_box(work(k))));
    }
    group.finish();
}

/// Elements: multiply-adds.
fn product(c: &mut Criterion) {
    let (rows, panels, offsets) = (reals(1, TILE_ROWS * D), reals(2, TILE_LANES * D), reals(3, TILE_LANES));
    let work = |k: Kernels| {
        let mut tile = Tile::default();
        k.score_tile(&rows, D, &panels, &offsets, -2.0, &[0.0; TILE_ROWS], &mut tile);
        tile.scores[3][5]
    };
    compare(c, "score_tile", Throughput::Elements((TILE_ROWS * TILE_LANES * D) as u64), work, |a, b| {
        (a - b).abs() < 1e-2
    });
}

/// Elements: keys.
fn direct(c: &mut Criterion) {
    let (a, b) = (reals(4, D), reals(5, D));
    let half: Vec<f16> = b.iter().map(|&x| f16::from_f32(x)).collect();
    compare(c, "l2_f16", Throughput::Elements(1), |k| k.l2_f16(&a, &half), |a, b| a == b);
    compare(c, "ip_f32", Throughput::Elements(1), |k| k.ip_f32(&a, &b), |a, b| a == b);
}

/// Elements: keys. The limit lets one in a hundred or so pass, as in a search.
fn scans(c: &mut Criterion) {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let table: Vec<u8> = (0..M * 16).map(|_| (rng.next_u32() % 128) as u8).collect();
    let floats = reals(7, 64 * 256);
    for (name, code_bytes) in [("scan4 64 bytes", M / 2), ("scan8 64 bytes", 64)] {
        let mut blocks = Vec::new();
        for _ in 0..BLOCKS {
            blocks.extend((0..code_bytes * LANES).map(|_| rng.next_u32() as u8));
            blocks.extend_from_slice(bytemuck::cast_slice(&[1f32; 2 * LANES]));
        }
        assert_eq!(blocks.len(), BLOCKS * (code_bytes * LANES + FACTOR_BYTES));
        let work = |k: Kernels| {
            let (mut scores, mut entries) = ([0f32; BLOCKS * LANES], [0u32; BLOCKS * LANES]);
            let found = if name.starts_with("scan4") {
                let query = ScanQuery { table: &table[..], scale: 1.0, bias: 0.0, base: 0.0, limit: 7200.0 };
                k.scan4(&blocks, &query, 0, &mut scores, &mut entries)
            } else {
                let query = ScanQuery { table: &floats[..], scale: 1.0, bias: 0.0, base: 0.0, limit: -10.0 };
                k.scan8(&blocks, &query, 0, &mut scores, &mut entries)
            };
            (found, entries[0], scores[0])
        };
        compare(c, name, Throughput::Elements((BLOCKS * LANES) as u64), work, |a, b| a == b);
    }
}

/// Elements: pairs of a code and a query. One query and a group at once, codes of 48 bytes; `roofline` has their bounds.
fn groups(c: &mut Criterion) {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let tables: Vec<u8> = (0..GROUP * 96 * 16).map(|_| (rng.next_u32() % 128) as u8).collect();
    let mut blocks = Vec::new();
    for _ in 0..BLOCKS {
        blocks.extend((0..48 * LANES).map(|_| rng.next_u32() as u8));
        blocks.extend_from_slice(bytemuck::cast_slice(&[1f32; 2 * LANES]));
    }
    let query = |i: usize| ScanQuery {
        table: &tables[i * 96 * 16..(i + 1) * 96 * 16],
        scale: 1.0,
        bias: 0.0,
        base: 0.0,
        limit: 5260.0, // one in a hundred or so
    };
    let one = |k: Kernels| {
        let (mut scores, mut entries) = (vec![0f32; BLOCKS * LANES], vec![0u32; BLOCKS * LANES]);
        let found = k.scan4(&blocks, &query(0), 0, &mut scores, &mut entries);
        (found, scores[..found].to_vec(), entries[..found].to_vec())
    };
    compare(c, "scan4 48 bytes", Throughput::Elements((BLOCKS * LANES) as u64), one, |a, b| a == b);
    let group = |k: Kernels| {
        let mut rooms = vec![(vec![0f32; BLOCKS * LANES], vec![0u32; BLOCKS * LANES]); GROUP];
        let mut out = rooms.iter_mut().map(|(s, e)| (&mut s[..], &mut e[..]));
        let out: [_; GROUP] = std::array::from_fn(|_| out.next().expect("one each"));
        let found = k.scan4_group(&blocks, &std::array::from_fn(query), 0, out);
        (found, rooms)
    };
    compare(c, "scan4_group 48 bytes", Throughput::Elements((GROUP * BLOCKS * LANES) as u64), group, |a, b| a == b);
}

/// Elements: multiply-adds (coarse step), records (second level).
fn integers(c: &mut Criterion) {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let rows: Vec<i8> = (0..TILE_ROWS * D).map(|_| rng.next_u32() as i8).collect();
    let panels: Vec<u8> = (0..TILE_LANES * D).map(|_| (rng.next_u32() % 128) as u8).collect();
    let (scales, offsets) = (reals(13, TILE_LANES), reals(14, TILE_LANES));
    let tile = |k: Kernels| {
        let mut tile = [[0f32; TILE_LANES]; TILE_ROWS];
        let keys = ByteKeys { numbers: &panels, scales: &scales, offsets: &offsets };
        k.score_tile8(&rows, D, keys, &[(0.1, 5); TILE_ROWS], &mut tile);
        tile
    };
    let products = Throughput::Elements((TILE_ROWS * TILE_LANES * D) as u64);
    compare(c, "score_tile8", products, tile, |a, b| a == b);
    let codes: Vec<u8> = (0..D / 2).map(|_| rng.next_u32() as u8).collect();
    let levels: [u8; 16] = std::array::from_fn(|i| 8 * i as u8);
    compare(c, "dot4 384", Throughput::Elements(1), |k| k.dot4(&codes, &rows[..D], &levels), |a, b| a == b);
    let values = reals(15, 4096);
    let keep = |k: Kernels| {
        let (mut scores, mut entries) = (values.clone(), vec![7u32; 4096]);
        k.keep_at_most(&mut scores, &mut entries, 0.0)
    };
    compare(c, "keep_at_most 4096", Throughput::Elements(4096), keep, |a, b| a == b);
}

/// Elements: vectors of 256 (transform), vectors of 384 (encoding, tables).
fn portable(c: &mut Criterion) {
    let (x, words) = (reals(8, D), reals(9, D * 16));
    let transform = |k: Kernels| {
        let mut x = x[..256].to_vec();
        k.hadamard(&mut x, 0.0625);
        x
    };
    compare(c, "hadamard 256", Throughput::Elements(1), transform, |a, b| a == b);
    let encode = |k: Kernels| {
        let mut codes = vec![0u8; M];
        k.encode::<16>(&x, D / M, &words, &mut codes);
        codes
    };
    compare(c, "encode 4 bits", Throughput::Elements(1), encode, |a, b| a == b);
    let values = reals(10, 4096);
    compare(c, "count_at_most 4096", Throughput::Elements(4096), |k| k.count_at_most(&values, 0.1), |a, b| a == b);
}

criterion_group!(benches, product, direct, scans, groups, integers, portable);
criterion_main!(benches);
