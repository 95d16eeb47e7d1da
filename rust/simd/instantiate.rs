//! Bodies of `portable.rs`, compiled for an instruction set: each macro makes a group of kernels that it has no better for.

/// Compiles the bodies of `portable.rs` for an instruction set.
macro_rules! portable_kernels {
    ($features:literal, $portable:ident) => {
        #[target_feature(enable = $features)]
        pub fn count_at_most(values: &[f32], limit: f32) -> usize {
            $portable::count_at_most(values, limit)
        }
        #[target_feature(enable = $features)]
        pub fn greatest_at_most(values: &[f32], limit: f32) -> f32 {
            $portable::greatest_at_most(values, limit)
        }
        #[target_feature(enable = $features)]
        pub fn least(values: &[f32]) -> f32 {
            $portable::least(values)
        }
        #[target_feature(enable = $features)]
        pub fn word_products(part: &[f32], words: &[f32], out: &mut [f32]) {
            $portable::word_products(part, words, out)
        }
        #[target_feature(enable = $features)]
        pub fn round_bytes(x: &[f32], out: &mut [i8]) -> (f32, i32) {
            $portable::round_bytes(x, out)
        }
        #[target_feature(enable = $features)]
        pub fn count_borders(x: &[f32], factor: f32, borders: &[f32; 15], codes: &mut [u8]) {
            $portable::count_borders(x, factor, borders, codes)
        }
        #[target_feature(enable = $features)]
        pub fn multiply(x: &mut [f32], factors: &[f32]) {
            $portable::multiply(x, factors)
        }
        #[target_feature(enable = $features)]
        pub fn least_of_classes(values: &[f32], out: &mut [f32]) {
            $portable::least_of_classes(values, out)
        }
        #[target_feature(enable = $features)]
        pub fn greatest_distance(entries: &[u32], first: u32) -> u32 {
            $portable::greatest_distance(entries, first)
        }
        #[target_feature(enable = $features)]
        pub fn encode<const C: usize>(x: &[f32], dsub: usize, words: &[f32], codes: &mut [u8]) {
            $portable::encode::<C>(x, dsub, words, codes)
        }
        #[target_feature(enable = $features)]
        pub fn pack_panel(rows: &[f32], d: usize, panel: &mut [f32]) {
            $portable::pack_panel(rows, d, panel)
        }
    };
}
pub(crate) use portable_kernels;

/// Transform and tables, which the compiler does not vectorise as well as we do with 16 lanes.
macro_rules! portable_queries {
    ($features:literal, $portable:ident) => {
        #[target_feature(enable = $features)]
        pub fn hadamard(x: &mut [f32], scale: f32) {
            $portable::hadamard(x, scale)
        }
        #[target_feature(enable = $features)]
        pub fn tables4(query: &[f32], words: &[f32], products: &mut [f32], table: &mut [u8]) -> (f32, f32) {
            $portable::tables4(query, words, products, table)
        }
    };
}
pub(crate) use portable_queries;

/// Integer products of single rows, where there is no instruction that adds four at a time.
macro_rules! portable_rows {
    ($features:literal, $portable:ident) => {
        #[target_feature(enable = $features)]
        pub fn score_rows8(row: &[i8], keys: ByteKeys, picks: &[u32], factor: (f32, i32), out: &mut [f32]) {
            $portable::score_rows8(row, keys, picks, factor, out)
        }
    };
}
pub(crate) use portable_rows;

/// Those that choose, where there is no instruction that compresses.
macro_rules! portable_choices {
    ($features:literal, $portable:ident) => {
        #[target_feature(enable = $features)]
        pub fn keep_at_most(scores: &mut [f32], entries: &mut [u32], limit: f32) -> usize {
            $portable::keep_at_most(scores, entries, limit)
        }
        #[target_feature(enable = $features)]
        pub fn find_at_most(values: &[f32], limit: f32, out: &mut [u32]) -> usize {
            $portable::find_at_most(values, limit, out)
        }
    };
}
pub(crate) use portable_choices;

/// Integer products, where the compiler vectorises them as well as we could.
#[cfg(target_arch = "aarch64")]
macro_rules! portable_integers {
    ($features:literal, $portable:ident) => {
        #[target_feature(enable = $features)]
        pub fn scan_levels(
            blocks: &[u8],
            query: &LevelQuery,
            first: u32,
            scores: &mut [f32],
            entries: &mut [u32],
        ) -> usize {
            $portable::scan_levels(blocks, query, first, scores, entries)
        }
        #[target_feature(enable = $features)]
        pub fn dot4(codes: &[u8], query: &[i8], levels: &[u8; 16]) -> i32 {
            $portable::dot4(codes, query, levels)
        }
        #[target_feature(enable = $features)]
        pub fn score_tile8(rows: &[i8], width: usize, keys: ByteKeys, factors: &[(f32, i32)], tile: &mut Scores) {
            $portable::score_tile8(rows, width, keys, factors, tile)
        }
    };
}
#[cfg(target_arch = "aarch64")]
pub(crate) use portable_integers;
