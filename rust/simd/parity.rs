//! Every kernel of every instruction set against the scalar one: all lengths up to a few registers, odd alignments.
//!
//! Bit-equal where the kernel promises it and on integer-valued floats everywhere (fused or not, they are exact).
//! `KNNLM_REQUIRE_ISA=avx512` (or avx2, neon) turns a skipped instruction set into a failure.

use super::*;
use half::f16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

fn others() -> Vec<Kernels> {
    if let Ok(required) = std::env::var("KNNLM_REQUIRE_ISA") {
        for name in required.split(',') {
            let isa = Isa::ALL.into_iter().find(|isa| isa.name() == name);
            assert!(isa.is_some_and(Isa::is_available), "KNNLM_REQUIRE_ISA asks for {name}, this CPU lacks it");
        }
    }
    Isa::ALL.into_iter().filter(|&isa| isa != Isa::Scalar).filter_map(Kernels::of).collect()
}

fn scalar() -> Kernels {
    Kernels::of(Isa::Scalar).expect("plain Rust runs everywhere")
}

fn integers(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| (rng.next_u32() % 17) as f32 - 8.0).collect()
}

fn reals(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.next_u32() as f32 / 2f32.powi(31) - 1.0).collect()
}

#[test]
fn direct_distances_are_bit_equal() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for d in (0..=200).chain([384, 1000, 8192]) {
        for start in [0, 1, 3] {
            let (a, b) = (reals(&mut rng, d + start), reals(&mut rng, d + start));
            let h: Vec<f16> = b.iter().map(|&x| f16::from_f32(x)).collect();
            let (a, b, h) = (&a[start..], &b[start..], &h[start..]);
            let s = scalar();
            for k in others() {
                assert_eq!(s.l2_f32(a, b).to_bits(), k.l2_f32(a, b).to_bits(), "{k:?} d={d}");
                assert_eq!(s.l2_f16(a, h).to_bits(), k.l2_f16(a, h).to_bits(), "{k:?} d={d}");
                assert_eq!(s.ip_f32(a, b).to_bits(), k.ip_f32(a, b).to_bits(), "{k:?} d={d}");
                assert_eq!(s.ip_f16(a, h).to_bits(), k.ip_f16(a, h).to_bits(), "{k:?} d={d}");
            }
            let exact: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
            assert!((f64::from(s.l2_f32(a, b)) - exact).abs() <= 1e-5 * exact);
        }
    }
}

#[test]
fn tiles_agree() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for d in [1, 2, 7, 8, 31, 64, 100] {
        for q in 1..=TILE_ROWS {
            for integer in [true, false] {
                let make = if integer { integers } else { reals };
                let rows = make(&mut rng, q * d + 1);
                let (panels, offsets) = (make(&mut rng, d * TILE_LANES + 1), make(&mut rng, TILE_LANES + 1));
                let limits = make(&mut rng, q);
                let (mut want, mut got) = (Tile::default(), Tile::default());
                scalar().score_tile(&rows[1..], d, &panels[1..], &offsets[1..], -2.0, &limits, &mut want);
                for k in others() {
                    k.score_tile(&rows[1..], d, &panels[1..], &offsets[1..], -2.0, &limits, &mut got);
                    for i in 0..q {
                        for j in 0..TILE_LANES {
                            let (w, g) = (want.scores[i][j], got.scores[i][j]);
                            assert!(
                                if integer { w == g } else { (w - g).abs() <= 1e-5 * d as f32 },
                                "{k:?} d={d} q={q}"
                            );
                            assert_eq!(got.hits[i] >> j & 1 == 1, g <= limits[i], "{k:?}: hits follow the scores");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn scans_are_bit_equal() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for m in [8, 16, 24, 64, 128, 520, 2048] {
        for blocks in [1, 2, 7] {
            for start in [0, 1] {
                let four: Vec<u8> = (0..m * 16).map(|_| (rng.next_u32() % 128) as u8).collect();
                let eight = reals(&mut rng, if m <= 64 { m * 256 } else { 256 });
                for (bytes, is4) in [(m * 8, true), (eight.len() / 16, false)] {
                    let mut data = vec![0u8; start];
                    for _ in 0..blocks {
                        data.extend((0..bytes).map(|_| rng.next_u32() as u8));
                        for x in reals(&mut rng, 2 * LANES) {
                            data.extend_from_slice(&x.to_le_bytes());
                        }
                    }
                    for limit in [f32::MAX, 0.5, -1e9] {
                        let room = blocks * LANES;
                        let scan = |k: Kernels| {
                            let (mut scores, mut entries) = (vec![0f32; room], vec![0u32; room]);
                            let found = if is4 {
                                let q = ScanQuery { table: &four[..], scale: 0.01, bias: -3.0, base: 0.25, limit };
                                k.scan4(&data[start..], &q, 100, &mut scores, &mut entries)
                            } else {
                                let q = ScanQuery { table: &eight[..], scale: 1.0, bias: 0.0, base: 0.25, limit };
                                k.scan8(&data[start..], &q, 100, &mut scores, &mut entries)
                            };
                            let bits: Vec<u32> = scores[..found].iter().map(|x| x.to_bits()).collect();
                            (bits, entries[..found].to_vec())
                        };
                        let want = scan(scalar());
                        assert!(limit != f32::MAX || want.1.len() == room);
                        for k in others() {
                            assert_eq!(want, scan(k), "{k:?} m={m} blocks={blocks} 4-bit={is4}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn portable_kernels_are_bit_equal() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for d in [8, 16, 32, 256, 1024] {
        let x = reals(&mut rng, d);
        let words = reals(&mut rng, d * 256);
        let rows = reals(&mut rng, d * LANES);
        let run = |k: Kernels| {
            let mut h = x.clone();
            k.hadamard(&mut h, 0.25);
            let (mut c4, mut c8) = (vec![0u8; d / 4], vec![0u8; d / 4]);
            k.encode::<16>(&x, 4, &words[..d * 16], &mut c4);
            k.encode::<256>(&x, 4, &words, &mut c8);
            let (mut products, mut counts) = (vec![0f32; 256], vec![0u8; d]);
            let borders: [f32; 15] = std::array::from_fn(|i| i as f32 / 8.0 - 0.9);
            k.count_borders(&x, 1.5, &borders, &mut counts);
            k.word_products(&x, &words, &mut products);
            let mut panel = vec![0f32; d * LANES];
            k.pack_panel(&rows, d, &mut panel);
            (h, c4, c8, products, panel, k.count_at_most(&words, 0.25), counts)
        };
        let want = run(scalar());
        assert_eq!(want.5, words.iter().filter(|&&w| w <= 0.25).count());
        assert_eq!(want.4[16 + 3], rows[3 * d + 1]);
        for k in others() {
            assert!(want == run(k), "{k:?} d={d}");
        }
    }
}

#[test]
fn integer_kernels_are_equal() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let levels: [u8; 16] = std::array::from_fn(|i| (i * 127 / 15) as u8);
    for units in [0, 1, 2, 3, 8] {
        for start in [0, 1, 5] {
            let codes: Vec<u8> = (0..units * 64 + start).map(|_| rng.next_u32() as u8).collect();
            // The most extreme numbers, too: no sum of products may wrap on the way.
            let query: Vec<i8> = (0..units * 128)
                .map(|i| if start == 5 { i8::MIN } else { (rng.next_u32() + i as u32) as i8 })
                .collect();
            let want = scalar().dot4(&codes[start..], &query, &levels);
            for k in others() {
                assert_eq!(want, k.dot4(&codes[start..], &query, &levels), "{k:?} units={units}");
            }
        }
    }
    for width in [4, 8, 20, 384] {
        for q in 1..=TILE_ROWS {
            let extreme = q == 7;
            let rows: Vec<i8> = (0..q * width).map(|_| if extreme { i8::MIN } else { rng.next_u32() as i8 }).collect();
            let panels: Vec<u8> =
                (0..width * TILE_LANES).map(|_| if extreme { 127 } else { (rng.next_u32() % 128) as u8 }).collect();
            let (scales, offsets) = (reals(&mut rng, TILE_LANES), reals(&mut rng, TILE_LANES));
            let factors: Vec<(f32, i32)> = reals(&mut rng, q).into_iter().map(|f| (f, 1000)).collect();
            let run = |k: Kernels| {
                let mut tile = [[0f32; TILE_LANES]; TILE_ROWS];
                let keys = ByteKeys { numbers: &panels, scales: &scales, offsets: &offsets };
                k.score_tile8(&rows, width, keys, &factors, &mut tile);
                tile.map(|row| row.map(f32::to_bits))
            };
            let want = run(scalar());
            for k in others() {
                assert!(want == run(k), "{k:?} width={width} q={q}");
            }
        }
    }
}

#[test]
fn query_kernels_are_bit_equal() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for (m, dsub) in [(8, 1), (24, 2), (96, 4), (16, 7)] {
        let (query, words) = (reals(&mut rng, m * dsub), reals(&mut rng, m * dsub * 16));
        let run = |k: Kernels| {
            let (mut products, mut table, mut numbers) =
                (vec![0f32; m * 16], vec![0u8; m * 16], vec![0i8; query.len()]);
            let (scale, bias) = k.tables4(&query, &words, &mut products, &mut table);
            let (step, sum) = k.round_bytes(&query, &mut numbers);
            let mut product = query.clone();
            k.multiply(&mut product, &words[..query.len()]);
            let mut least = vec![0f32; 5 * dsub];
            k.least_of_classes(&words, &mut least);
            (table, numbers, product, least, [scale, bias, step], sum)
        };
        let want = run(scalar());
        assert!(want.0.contains(&127) && want.0.iter().all(|&x| x < 128));
        assert_eq!(want.5, want.1.iter().map(|&x| i32::from(x)).sum::<i32>());
        let first = words.iter().step_by(5 * dsub).copied().fold(f32::INFINITY, f32::min);
        assert_eq!(want.3[0], first);
        for k in others() {
            assert!(want == run(k), "{k:?} m={m} dsub={dsub}");
        }
    }
}

#[test]
fn second_level_and_row_scores_are_bit_equal() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let levels: [u8; 16] = std::array::from_fn(|i| (i * 127 / 15) as u8);
    for units in [1, 3, 8] {
        let (width, n) = (units * 128, 40);
        let numbers: Vec<i8> = (0..width).map(|_| rng.next_u32() as i8).collect();
        let stride = units * 64 + 8;
        let mut records: Vec<u8> = (0..n * stride).map(|_| rng.next_u32() as u8).collect();
        for record in records.chunks_exact_mut(stride) {
            for (x, at) in reals(&mut rng, 2).iter().zip([stride - 8, stride - 4]) {
                record[at..at + 4].copy_from_slice(&x.to_le_bytes());
            }
        }
        let keys: Vec<u8> = (0..n * width).map(|_| (rng.next_u32() % 128) as u8).collect();
        let (scales, offsets) = (reals(&mut rng, n), reals(&mut rng, n));
        for count in [0, 1, 3, 4, 5, 17, 39] {
            let picks: Vec<u32> = (0..count).map(|i| (i * 7 % n) as u32).collect();
            let entries: Vec<u32> = picks.iter().map(|p| p + 1000).collect();
            let start = reals(&mut rng, count);
            let run = |k: Kernels| {
                let (mut scores, mut rows) = (start.clone(), vec![0f32; count]);
                let query = ByteQuery { numbers: &numbers, levels: &levels, scale: 0.01, bias: -55 };
                assert!(k.add_corrections(&records, stride, &entries, 1000, &query, &mut scores));
                let keys = ByteKeys { numbers: &keys, scales: &scales, offsets: &offsets };
                k.score_rows8(&numbers, keys, &picks, (0.3, 77), &mut rows);
                (scores, rows)
            };
            let want = run(scalar());
            for k in others() {
                assert_eq!(want, run(k), "{k:?} units={units} count={count}");
            }
        }
        for missing in [999, 1000 + n as u32] {
            let query = ByteQuery { numbers: &numbers, levels: &levels, scale: 0.01, bias: 0 };
            let mut scores = [1.0];
            assert!(!Kernels::best().add_corrections(&records, stride, &[missing], 1000, &query, &mut scores));
            assert_eq!(scores, [1.0]);
        }
    }
}

#[test]
fn level_scans_are_bit_equal_and_groups_as_good_as_one_by_one() {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    let levels: [u8; 16] = std::array::from_fn(|i| (i * 127 / 15) as u8);
    for (units, blocks) in [(16, 1), (48, 7), (96, 2)] {
        for extreme in [false, true] {
            let numbers: Vec<Vec<i8>> = (0..GROUP)
                .map(|_| (0..8 * units).map(|_| if extreme { -127 } else { (rng.next_u32() % 255) as i8 }).collect())
                .collect();
            let mut data = Vec::new();
            for _ in 0..blocks {
                data.extend((0..units * 64).map(|_| if extreme { 255 } else { rng.next_u32() as u8 }));
                reals(&mut rng, 2 * LANES).iter().for_each(|x| data.extend_from_slice(&x.to_le_bytes()));
            }
            let query = |i: usize| LevelQuery {
                bytes: ByteQuery { numbers: &numbers[i], levels: &levels, scale: 1e-4, bias: 9 * i as i32 },
                base: i as f32,
                limit: [f32::MAX, 2.0, 0.0, -1e9, 1.0, 4.0][i],
            };
            let room = blocks * LANES;
            let alone = |k: Kernels, i: usize| {
                let (mut scores, mut entries) = (vec![0f32; room], vec![0u32; room]);
                let found = k.scan_levels(&data, &query(i), 7, &mut scores, &mut entries);
                scores.truncate(found);
                entries.truncate(found);
                (scores, entries)
            };
            for k in others().into_iter().chain([scalar()]) {
                for i in 0..GROUP {
                    assert_eq!(alone(scalar(), i), alone(k, i), "{k:?} units={units} query {i}");
                }
                let mut scores = vec![vec![0f32; room]; GROUP];
                let mut entries = vec![vec![0u32; room]; GROUP];
                let mut pairs = scores.iter_mut().zip(&mut entries).map(|(s, e)| (&mut s[..], &mut e[..]));
                let out: [_; GROUP] = std::array::from_fn(|_| pairs.next().expect("as many"));
                let found = k.scan_levels_group(&data, &std::array::from_fn(query), 7, out);
                for i in 0..GROUP {
                    let (s, e) = alone(scalar(), i);
                    assert_eq!((&scores[i][..found[i]], &entries[i][..found[i]]), (&s[..], &e[..]), "{k:?} {i}");
                }
            }
        }
    }
}

#[test]
fn choosing_kernels_are_equal() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for n in [0, 1, 15, 16, 17, 31, 32, 33, 100, 1000] {
        for limit in [-2.0, -0.3, 0.0, 0.9, 2.0] {
            let values = reals(&mut rng, n);
            let run = |k: Kernels| {
                let (mut scores, mut entries) = (values.clone(), (0..n as u32).collect::<Vec<u32>>());
                let kept = k.keep_at_most(&mut scores, &mut entries, limit);
                let mut found = vec![0u32; n + LANES];
                let count = k.find_at_most(&values, limit, &mut found);
                let ends = (k.least(&values).to_bits(), k.greatest_at_most(&values, limit).to_bits());
                scores.truncate(kept);
                entries.truncate(kept);
                found.truncate(count);
                (scores, entries, found, ends)
            };
            let want = run(scalar());
            let right: Vec<u32> = (0..n as u32).filter(|&i| values[i as usize] <= limit).collect();
            assert_eq!((&want.1, &want.2), (&right, &right));
            for k in others() {
                assert_eq!(want, run(k), "{k:?} n={n} limit={limit}");
            }
        }
    }
}

/// Scans for the first N queries of a group, and each of them alone with the plain kernel.
fn group_and_alone<const N: usize>(k: &Kernels, data: &[u8], queries: &[ScanQuery<u8>; GROUP], m: usize) {
    let room = data.len() / (m * 8 + FACTOR_BYTES) * LANES;
    let mut scores = vec![vec![0f32; room]; N];
    let mut entries = vec![vec![0u32; room]; N];
    let mut pairs = scores.iter_mut().zip(&mut entries).map(|(s, e)| (&mut s[..], &mut e[..]));
    let out = std::array::from_fn(|_| pairs.next().expect("a pair for each"));
    let some: [ScanQuery<u8>; N] = std::array::from_fn(|i| queries[i]);
    let found = k.scan4_group(data, &some, 7, out);
    for i in 0..N {
        let (mut s, mut e) = (vec![0f32; room], vec![0u32; room]);
        let alone = scalar().scan4(data, &queries[i], 7, &mut s, &mut e);
        assert_eq!((alone, &e[..alone]), (found[i], &entries[i][..alone]), "{k:?} m={m} N={N}");
        assert!(s[..alone].iter().zip(&scores[i]).all(|(a, b)| a.to_bits() == b.to_bits()), "{k:?} m={m} N={N}");
    }
}

#[test]
fn a_group_of_queries_is_as_good_as_one_by_one() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    // Sums of 16 bits end at 512 sub-quantisers of the greatest entries.
    for (m, blocks, most) in
        [(8, 1, false), (96, 3, false), (128, 5, false), (512, 2, true), (520, 2, true), (2048, 1, true)]
    {
        let mut entry = || if most { 127 } else { (rng.next_u32() % 128) as u8 };
        let tables: Vec<Vec<u8>> = (0..GROUP).map(|_| (0..m * 16).map(|_| entry()).collect()).collect();
        let mut data = Vec::new();
        for _ in 0..blocks {
            data.extend((0..m * 8).map(|_| rng.next_u32() as u8));
            reals(&mut rng, 2 * LANES).iter().for_each(|x| data.extend_from_slice(&x.to_le_bytes()));
        }
        let queries: [ScanQuery<u8>; GROUP] = std::array::from_fn(|i| ScanQuery {
            table: &tables[i],
            scale: 0.01,
            bias: -3.0,
            base: i as f32,
            limit: [f32::MAX, 2.0, 0.0, -1e9, 1.0, 4.0][i],
        });
        for k in others().into_iter().chain([scalar()]) {
            group_and_alone::<1>(&k, &data, &queries, m);
            group_and_alone::<2>(&k, &data, &queries, m);
            group_and_alone::<3>(&k, &data, &queries, m);
            group_and_alone::<4>(&k, &data, &queries, m);
            group_and_alone::<5>(&k, &data, &queries, m);
            group_and_alone::<GROUP>(&k, &data, &queries, m);
        }
    }
}
