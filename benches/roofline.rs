//! How near do the scans come to what bounds them? Prints a table; the bound of a scan is the lower of two rates measured
//! on the same bytes: reading alone, and the table look-ups alone.
//!
//! `cargo bench --bench roofline -- [FILE]` also writes the table to a Markdown file. Every figure is the best of many rounds in
//! turn, since other work on the machine only ever makes a round slower.

fn main() {
    #[cfg(target_arch = "x86_64")]
    x86::main();
    #[cfg(not(target_arch = "x86_64"))]
    println!("only on x86-64: the loops that bound a scan are written for its instruction sets");
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use knnlm::simd::{FACTOR_BYTES, GROUP, Isa, Kernels, LANES, ScanQuery, roofline};
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};
    use std::fmt::Write;
    use std::hint::black_box;
    use std::time::Instant;

    /// Bytes of a code: one 4-bit code for every four of 384 dimensions.
    const CODE: usize = 48;
    /// Blocks of a call, as in a list.
    const CALL: usize = 32;
    /// Bytes that a round goes through at least.
    const WORK: usize = 64 << 20;

    /// A line of the cache: codes and tables lie on whole ones, as in a store.
    #[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
    #[repr(C, align(64))]
    struct Line([u8; 64]);

    /// One query alone or four at once; each fills its own room.
    struct Scan<'t> {
        queries: [ScanQuery<'t, u8>; GROUP],
        rooms: Vec<(Vec<f32>, Vec<u32>)>,
    }

    impl Scan<'_> {
        fn run(&mut self, k: &Kernels, data: &[u8], four: bool) -> usize {
            let mut found = 0;
            for blocks in data.chunks(CALL * (CODE * LANES + FACTOR_BYTES)) {
                let mut out = self.rooms.iter_mut().map(|(s, e)| (&mut s[..], &mut e[..]));
                if four {
                    let out = std::array::from_fn(|_| out.next().expect("four"));
                    found += k.scan4_group(blocks, &self.queries, 0, out)[0];
                } else {
                    let (scores, entries) = out.next().expect("one");
                    found += k.scan4(blocks, &self.queries[0], 0, scores, entries);
                }
            }
            found
        }
    }

    /// Seconds of the fastest of some rounds of each loop in turn.
    fn fastest(rounds: usize, loops: &mut [&mut dyn FnMut()]) -> Vec<f64> {
        let mut best = vec![f64::INFINITY; loops.len()];
        for _ in 0..rounds {
            for (best, work) in best.iter_mut().zip(loops.iter_mut()) {
                let started = Instant::now();
                work();
                *best = best.min(started.elapsed().as_secs_f64());
            }
        }
        best
    }

    pub fn main() {
        let given: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
        let trial = given.iter().any(|a| a == "--test") || cfg!(debug_assertions);
        let (rounds, work) = if trial { (1, 1 << 10) } else { (60, WORK) };
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut tables = [Line([0; 64]); GROUP * 2 * CODE * 16 / 64];
        tables.iter_mut().flat_map(|line| &mut line.0).for_each(|x| *x = (rng.next_u32() % 128) as u8);
        let tables: &[u8] = bytemuck::cast_slice(&tables);
        let tables: [&[u8]; GROUP] = std::array::from_fn(|i| &tables[i * 2 * CODE * 16..(i + 1) * 2 * CODE * 16]);
        let mut text = String::from(
            "| working set | instruction set | queries at once | read alone, GB/s | look-ups alone, GB/s | scan, GB/s | \
             million codes/s | share of the bound |\n|---|---|---:|---:|---:|---:|---:|---:|\n",
        );
        let block = CODE * LANES + FACTOR_BYTES;
        let places = [("L2", 256 << 10), ("L3", 8 << 20), ("memory", 256 << 20)];
        for (place, bytes) in if trial { &places[..1] } else { &places[..] } {
            let mut lines = vec![Line([0; 64]); bytes / block * block / 64];
            let data: &mut [u8] = bytemuck::cast_slice_mut(&mut lines);
            for block in data.chunks_exact_mut(block) {
                block[..CODE * LANES]
                    .chunks_exact_mut(4)
                    .for_each(|b| b.copy_from_slice(&rng.next_u32().to_le_bytes()));
                block[CODE * LANES..].copy_from_slice(bytemuck::cast_slice(&[1f32; 2 * LANES]));
            }
            let data: &[u8] = data;
            let times = work.div_ceil(data.len());
            let codes = (data.len() / block * LANES * times) as f64;
            let bytes = (data.len() * times) as f64;
            for k in [Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni].into_iter().filter_map(Kernels::of) {
                for four in [false, true] {
                    let mut scan = Scan {
                        // One in a hundred or so passes.
                        queries: tables.map(|table| ScanQuery {
                            table,
                            scale: 1.0,
                            bias: 0.0,
                            base: 0.0,
                            limit: 5260.0,
                        }),
                        rooms: vec![(vec![0f32; CALL * LANES], vec![0u32; CALL * LANES]); GROUP],
                    };
                    let rounds = if *place == "memory" { rounds / 4 + 1 } else { rounds };
                    let seconds = fastest(
                        rounds,
                        &mut [
                            &mut || (0..times).for_each(|_| _ = black_box(roofline::read(&k, data))),
                            &mut || {
                                for _ in 0..times {
                                    black_box(if four {
                                        roofline::lookups(&k, data, tables)
                                    } else {
                                        roofline::lookups(&k, data, [tables[0]])
                                    });
                                }
                            },
                            &mut || (0..times).for_each(|_| _ = black_box(scan.run(&k, data, four))),
                        ],
                    );
                    let share = seconds[0].max(seconds[1]) / seconds[2];
                    let rate =
                        seconds.iter().map(|s| format!("{:.1}", bytes / s / 1e9)).collect::<Vec<_>>().join(" | ");
                    let queries = if four { GROUP } else { 1 };
                    let pairs = codes * queries as f64 / seconds[2] / 1e6;
                    let name = k.isa().name();
                    writeln!(text, "| {place} | {name} | {queries} | {rate} | {pairs:.0} | {:.0} % |", 100.0 * share)
                        .expect("a string");
                }
            }
        }
        println!("{text}");
        if let Some(file) = given.iter().find(|a| !a.starts_with('-')) {
            let head = "# Scans of 4-bit codes and what bounds them\n\n\
                `cargo bench --bench roofline -- benches/record/kernels.md`: codes of 48 bytes in blocks of 16 with their factors, \
                one thread. The bound is the lower of two rates measured on the same bytes in the same rounds: reading alone, and \
                the table look-ups alone (every byte of code an index, results folded by xor). With four queries at once the bytes \
                are read once for all of them.\n\n";
            std::fs::write(file, format!("{head}{text}")).expect("the file can be written");
        }
    }
}
