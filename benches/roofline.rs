//! How near do the scans come to what bounds them? Prints rows as JSON; the bound of a scan is the lower of two rates
//! measured on the same bytes: reading alone, and the table look-ups alone.
//!
//! `cargo bench --bench roofline -- [FILE]` also writes the rows to a file; `python benches/kernels.py` makes the record of them.
//! Every figure is the best of many rounds in turn, since other work on the machine only ever makes a round slower.

fn main() {
    #[cfg(target_arch = "x86_64")]
    x86::main();
    #[cfg(not(target_arch = "x86_64"))]
    println!("only on x86-64: the loops that bound a scan are written for its instruction sets");
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use knnlm::simd::{ByteQuery, FACTOR_BYTES, GROUP, Isa, Kernels, LANES, LevelQuery, ScanQuery, roofline};
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};
    use std::hint::black_box;
    use std::time::Instant;

    /// Dimensions of a key.
    const D: usize = 384;
    /// Blocks of a call, as in a list.
    const CALL: usize = 16;
    /// Bytes that a round goes through at least.
    const WORK: usize = 64 << 20;
    const LEVELS: [u8; 16] = [1, 16, 27, 35, 42, 49, 55, 61, 67, 73, 79, 86, 93, 101, 112, 127];

    /// A line of the cache: codes and tables lie on whole ones, as in a store.
    #[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
    #[repr(C, align(64))]
    struct Line([u8; 64]);

    /// The two codes: `small` (a 4-bit code for four dimensions, tables) and `flat` (4 bits a dimension, products).
    #[derive(Clone, Copy, PartialEq)]
    enum Code {
        Small,
        Flat,
    }

    impl Code {
        fn bytes(self) -> usize {
            if self == Code::Small { D / 8 } else { D / 2 }
        }
    }

    /// Queries of both kinds and room for what passes.
    struct Queries {
        tables: [[Line; D / 4 * 16 / 64]; GROUP],
        numbers: [[i8; D]; GROUP],
        /// Scores that about one entry in a hundred stays under.
        limits: [[f32; GROUP]; 2],
        rooms: Vec<(Vec<f32>, Vec<u32>)>,
    }

    impl Queries {
        fn table(&self, i: usize) -> &[u8] {
            bytemuck::cast_slice(&self.tables[i])
        }

        /// Scans all blocks for N queries, call by call; the number of entries kept of the first.
        fn scan<const N: usize>(&mut self, k: &Kernels, code: Code, data: &[u8]) -> usize {
            let mut found = 0;
            let mut rooms = std::mem::take(&mut self.rooms);
            for blocks in data.chunks(CALL * (code.bytes() * LANES + FACTOR_BYTES)) {
                let mut out = rooms.iter_mut().map(|(s, e)| (&mut s[..], &mut e[..]));
                let out: [_; N] = std::array::from_fn(|_| out.next().expect("room"));
                found += match code {
                    Code::Small => {
                        let query = |i| ScanQuery {
                            table: self.table(i),
                            scale: 1.0,
                            bias: 0.0,
                            base: 0.0,
                            limit: self.limits[0][i],
                        };
                        k.scan4_group::<N>(blocks, &std::array::from_fn(query), 0, out)[0]
                    }
                    Code::Flat => {
                        let query = |i: usize| LevelQuery {
                            bytes: ByteQuery { numbers: &self.numbers[i], levels: &LEVELS, scale: 1.0, bias: 0 },
                            base: 0.0,
                            limit: self.limits[1][i],
                        };
                        k.scan_levels_group::<N>(blocks, &std::array::from_fn(query), 0, out)[0]
                    }
                };
            }
            self.rooms = rooms;
            found
        }

        fn lookups<const N: usize>(&self, k: &Kernels, code: Code, data: &[u8]) -> u64 {
            match code {
                Code::Small => roofline::lookups::<N>(k, data, std::array::from_fn(|i| self.table(i))),
                Code::Flat => roofline::levels::<0>(k, data, D, &LEVELS),
            }
        }

        /// Sets the limits so that one entry in a hundred passes.
        fn aim(&mut self, code: Code, data: &[u8]) {
            let k = Kernels::best();
            let some = &data[..CALL * (code.bytes() * LANES + FACTOR_BYTES)];
            for i in 0..GROUP {
                self.limits[code as usize] = [f32::INFINITY; GROUP];
                self.tables.swap(0, i);
                self.numbers.swap(0, i);
                let found = self.scan::<1>(&k, code, some);
                let mut scores = self.rooms[0].0[..found].to_vec();
                scores.sort_unstable_by(f32::total_cmp);
                self.tables.swap(0, i);
                self.numbers.swap(0, i);
                self.rooms[GROUP].0[i] = scores[found / 100];
            }
            self.limits[code as usize] = std::array::from_fn(|i| self.rooms[GROUP].0[i]);
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

    /// Seconds of reading, look-ups, look-ups with products, scan.
    fn seconds<const N: usize>(
        k: &Kernels,
        code: Code,
        data: &[u8],
        times: usize,
        rounds: usize,
        queries: &mut Queries,
    ) -> Vec<f64> {
        let shared = std::cell::RefCell::new(queries);
        fastest(
            rounds,
            &mut [
                &mut || (0..times).for_each(|_| _ = black_box(roofline::read(k, data))),
                &mut || (0..times).for_each(|_| _ = black_box(shared.borrow().lookups::<N>(k, code, data))),
                &mut || {
                    if code == Code::Flat {
                        (0..times).for_each(|_| _ = black_box(roofline::levels::<N>(k, data, D, &LEVELS)));
                    }
                },
                &mut || (0..times).for_each(|_| _ = black_box(shared.borrow_mut().scan::<N>(k, code, data))),
            ],
        )
    }

    pub fn main() {
        // `cargo bench` says so; a test of everything, with a filter or not, is a trial and writes nothing.
        let (bench, given): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|a| a == "--bench");
        let trial = bench.is_empty() || given.iter().any(|a| a == "--test") || cfg!(debug_assertions);
        let (rounds, work) = if trial { (1, 1 << 10) } else { (40, WORK) };
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut queries = Queries {
            tables: [[Line([0; 64]); D / 4 * 16 / 64]; GROUP],
            numbers: [[0; D]; GROUP],
            limits: [[0.0; GROUP]; 2],
            rooms: vec![(vec![0f32; CALL * LANES], vec![0u32; CALL * LANES]); GROUP + 1],
        };
        let tables = queries.tables.as_flattened_mut().iter_mut().flat_map(|line| &mut line.0);
        tables.for_each(|x| *x = (rng.next_u32() % 128) as u8);
        queries.numbers.as_flattened_mut().iter_mut().for_each(|x| *x = (rng.next_u32() % 255) as i8);
        let mut rows = Vec::new();
        for code in [Code::Small, Code::Flat] {
            let block = code.bytes() * LANES + FACTOR_BYTES;
            let places = [("L2", 256 << 10), ("L3", 8 << 20), ("memory", 256 << 20)];
            for (place, bytes) in if trial { &places[..1] } else { &places[..] } {
                let mut lines = vec![Line([0; 64]); bytes / block * block / 64];
                let data: &mut [u8] = bytemuck::cast_slice_mut(&mut lines);
                for block in data.chunks_exact_mut(block) {
                    let (codes, factors) = block.split_at_mut(code.bytes() * LANES);
                    codes.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&rng.next_u32().to_le_bytes()));
                    factors.copy_from_slice(bytemuck::cast_slice(&[1f32; 2 * LANES]));
                }
                let data: &[u8] = data;
                queries.aim(code, data);
                let times = work.div_ceil(data.len());
                let rounds = if *place == "memory" { rounds / 4 + 1 } else { rounds };
                for k in [Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni].into_iter().filter_map(Kernels::of) {
                    for n in [1, GROUP] {
                        let taken = if n == 1 {
                            seconds::<1>(&k, code, data, times, rounds, &mut queries)
                        } else {
                            seconds::<GROUP>(&k, code, data, times, rounds, &mut queries)
                        };
                        let rate = |s: f64| (data.len() * times) as f64 / s / 1e9;
                        let codes = (data.len() / block * LANES * times * n) as f64 / taken[3];
                        let small = code == Code::Small;
                        let products = if small { "null".to_owned() } else { format!("{:.1}", rate(taken[2])) };
                        rows.push(format!(
                            "{{\"code\": \"{}\", \"place\": \"{place}\", \"isa\": \"{}\", \"queries\": {n}, \"read\": {:.1}, \
                             \"lookups\": {:.1}, \"products\": {products}, \"scan\": {:.1}, \"codes\": {codes:.0}, \
                             \"share\": {:.3}}}",
                            if small { "small, 48 bytes" } else { "flat, 192 bytes" },
                            k.isa().name(),
                            rate(taken[0]),
                            rate(taken[1]),
                            rate(taken[3]),
                            taken[0].max(taken[1]) / taken[3],
                        ));
                    }
                }
            }
        }
        let text = format!("[\n{}\n]\n", rows.join(",\n"));
        println!("{text}");
        if let (false, Some(file)) = (trial, given.iter().find(|a| !a.starts_with('-'))) {
            std::fs::write(file, text).expect("the file can be written");
        }
    }
}
