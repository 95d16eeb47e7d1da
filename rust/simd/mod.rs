//! Kernels per instruction set: an [`Isa`] is chosen once, and owning its [`Kernels`] is the proof that they may run.
//!
//! | kernel | what it does | bit-equal on all instruction sets |
//! |---|---|---|
//! | [`Kernels::score_tile`] | scores of ≤ 12 rows against 32 packed keys, with a limit per row | no (FMA) |
//! | [`Kernels::l2_f32`] … [`Kernels::ip_f16`] | one direct distance or inner product | yes |
//! | [`Kernels::score_tile8`] | the same of integers: coarse step | yes |
//! | [`Kernels::dot4`], [`Kernels::add_corrections`] | product of second-level codes with a query | yes |
//! | [`Kernels::scan_levels`], [`Kernels::scan4`], [`Kernels::scan8`], and of groups | scan of coded blocks, keeping what a limit lets pass | yes |
//! | `portable` | transform, encoding, tables, counting, packing | yes |
//!
//! `scalar.rs` defines every answer; `parity.rs` compares.

// Index loops here name registers.
#![allow(clippy::needless_range_loop, clippy::too_many_arguments)]

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512vnni;
mod isa;
#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code)]
mod neon;
#[cfg(test)]
mod parity;
mod portable;
#[allow(unsafe_code)]
mod prefetch;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
#[doc(hidden)]
pub mod roofline;
pub mod scalar;

use half::f16;
pub use isa::Isa;
pub use prefetch::{prefetch, prefetch_far};

/// Keys of a panel and entries of a block.
pub const LANES: usize = 16;
/// Keys of a tile: two panels.
pub const TILE_LANES: usize = 2 * LANES;
/// Most rows of a tile.
pub const TILE_ROWS: usize = 12;
/// Queries that a kernel serves at once, at most.
pub const GROUP: usize = 6;
/// Second-level records that are asked for ahead of their turn.
const RECORDS_AHEAD: usize = 16;
/// Scores of up to 12 rows against 32 keys.
pub type Scores = [[f32; TILE_LANES]; TILE_ROWS];
/// Bytes of the factors after the codes of a block: 16 × A, 16 × B, f32.
pub const FACTOR_BYTES: usize = 2 * 4 * LANES;

/// Result of [`Kernels::score_tile`].
#[derive(Clone, Debug)]
pub struct Tile {
    /// Score of each row against each key.
    pub scores: [[f32; TILE_LANES]; TILE_ROWS],
    /// Bit j of row i: the score is at most the row's limit.
    pub hits: [u32; TILE_ROWS],
}

impl Default for Tile {
    fn default() -> Tile {
        Tile { scores: [[0.0; TILE_LANES]; TILE_ROWS], hits: [0; TILE_ROWS] }
    }
}

/// What a scan of codes needs of a query and a list. Score of an entry = `(base + A) + B * sum`.
#[derive(Clone, Copy, Debug)]
pub struct ScanQuery<'q, T> {
    /// 4-bit: m × 16 entries from 0 to 127. 8-bit: m × 256 floats.
    pub table: &'q [T],
    /// 4-bit only: sum = `scale * Σ entries + bias`.
    pub scale: f32,
    /// See `scale`.
    pub bias: f32,
    /// Added to every score of the list.
    pub base: f32,
    /// Scores above it are dropped.
    pub limit: f32,
}

/// What a scan of scalar codes needs of a query and a list. Score of an entry = `(base + A) + B * (scale * (Σ − bias))`,
/// Σ = Σ levels · numbers.
#[derive(Clone, Copy, Debug)]
pub struct LevelQuery<'q> {
    /// The query in 8 bits, −127 to 127, whole units of 128.
    pub numbers: &'q [i8],
    /// Length of a step.
    pub scale: f32,
    /// See above.
    pub bias: i32,
    /// Added to every score of the list.
    pub base: f32,
    /// Scores above it are dropped.
    pub limit: f32,
}

/// What scoring second-level records needs of a query. A score gains `A + B * (scale * (Σ levels · numbers − bias))`.
#[derive(Clone, Copy, Debug)]
pub struct RecordQuery<'q> {
    /// The query in 8 bits, whole units of 128.
    pub numbers: &'q [i8],
    /// What the codes stand for.
    pub levels: &'q [u8; 16],
    /// Length of a step.
    pub scale: f32,
    /// See above.
    pub bias: i32,
}

/// The kernels of one instruction set.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    isa: Isa,
}

/// Calls a kernel of the instruction set.
macro_rules! dispatch {
    ($self:ident, $name:ident $(::<$c:ident>)?, $($arg:expr),*) => {
        match $self.isa {
            // SAFETY: `Kernels` with this value are only made where the CPU has the features.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::$name$(::<$c>)?($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::$name$(::<$c>)?($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => unsafe { avx512vnni::$name$(::<$c>)?($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => unsafe { neon::$name$(::<$c>)?($($arg),*) },
            _ => scalar::$name$(::<$c>)?($($arg),*),
        }
    };
}

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
        pub fn score_rows8(
            row: &[i8],
            keys: &[u8],
            picks: &[u32],
            scales: &[f32],
            offsets: &[f32],
            factor: (f32, i32),
            out: &mut [f32],
        ) {
            $portable::score_rows8(row, keys, picks, scales, offsets, factor, out)
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
            levels: &[u8; 16],
            query: &LevelQuery,
            first: u32,
            scores: &mut [f32],
            entries: &mut [u32],
        ) -> usize {
            $portable::scan_levels(blocks, levels, query, first, scores, entries)
        }
        #[target_feature(enable = $features)]
        pub fn dot4(codes: &[u8], query: &[i8], levels: &[u8; 16]) -> i32 {
            $portable::dot4(codes, query, levels)
        }
        #[target_feature(enable = $features)]
        pub fn score_tile8(
            rows: &[i8],
            width: usize,
            panels: &[u8],
            scales: &[f32],
            offsets: &[f32],
            factors: &[(f32, i32)],
            tile: &mut Scores,
        ) {
            $portable::score_tile8(rows, width, panels, scales, offsets, factors, tile)
        }
    };
}
#[cfg(target_arch = "aarch64")]
pub(crate) use portable_integers;

/// Most entries that a scan of scalar codes can keep.
fn level_room(blocks: &[u8], query: &LevelQuery) -> usize {
    assert!(!query.numbers.is_empty() && query.numbers.len().is_multiple_of(128));
    blocks.len() / (query.numbers.len() * 8 + FACTOR_BYTES) * LANES
}

#[allow(unsafe_code)]
impl Kernels {
    /// Kernels of `isa`, if this CPU can run them.
    pub fn of(isa: Isa) -> Option<Kernels> {
        isa.is_available().then_some(Kernels { isa })
    }

    /// Kernels of the best instruction set of this CPU.
    pub fn best() -> Kernels {
        Kernels { isa: Isa::best() }
    }

    /// Their instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Scores `rows` (q × d, q ≤ 12) against 32 keys: `offsets[j] + scale * ⟨row_i, key_j⟩`, marks those ≤ `limits[i]`.
    ///
    /// `panels` are two panels of d × 16, `offsets` 32, `limits` q. A product adds in the order of the dimensions
    /// whatever q is: a row's score does not depend on its neighbours in the batch.
    #[allow(clippy::too_many_arguments)]
    pub fn score_tile(
        &self,
        rows: &[f32],
        d: usize,
        panels: &[f32],
        offsets: &[f32],
        scale: f32,
        limits: &[f32],
        tile: &mut Tile,
    ) {
        assert!(panels.len() == d * TILE_LANES && offsets.len() == TILE_LANES && limits.len() * d == rows.len());
        dispatch!(self, score_tile, rows, d, panels, offsets, scale, limits, tile)
    }

    /// Squared L2 distance.
    pub fn l2_f32(&self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        dispatch!(self, l2_f32, a, b)
    }

    /// Squared L2 distance to an f16 key.
    pub fn l2_f16(&self, a: &[f32], b: &[f16]) -> f32 {
        assert_eq!(a.len(), b.len());
        dispatch!(self, l2_f16, a, b)
    }

    /// Inner product.
    pub fn ip_f32(&self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        dispatch!(self, ip_f32, a, b)
    }

    /// Inner product with an f16 key.
    pub fn ip_f16(&self, a: &[f32], b: &[f16]) -> f32 {
        assert_eq!(a.len(), b.len());
        dispatch!(self, ip_f16, a, b)
    }

    /// Scans blocks of 16 entries in 4-bit codes; entries within the limit go to `scores` and `entries` in order, as
    /// `first` + position. Returns their number.
    ///
    /// Block: m/8 units of 64 bytes, then the factors (16 × A, 16 × B). Byte v of lane j (16 bytes) of unit g holds
    /// the codes of entry v: low nibble sub-quantiser 8g + j, high nibble 8g + 4 + j.
    pub fn scan4(
        &self,
        blocks: &[u8],
        query: &ScanQuery<u8>,
        first: u32,
        scores: &mut [f32],
        entries: &mut [u32],
    ) -> usize {
        assert!(!query.table.is_empty() && query.table.len().is_multiple_of(128));
        let room = blocks.len() / (query.table.len() / 2 + FACTOR_BYTES) * LANES;
        assert!(scores.len() >= room && entries.len() >= room, "room for {room} scores, found {}", scores.len());
        dispatch!(self, scan4, blocks, query, first, scores, entries)
    }

    /// Scans blocks of 16 entries in scalar codes; entries within the limit go to `scores` and `entries` in order, as
    /// `first` + position. Returns their number.
    ///
    /// Block: width/8 units of 64 bytes, then the factors (16 × A, 16 × B). Byte 4v + j of unit g holds two codes of
    /// entry v: low nibble coordinate 8g + j, high nibble 8g + 4 + j. `levels` are what codes stand for, at most 127.
    pub fn scan_levels(
        &self,
        blocks: &[u8],
        levels: &[u8; 16],
        query: &LevelQuery,
        first: u32,
        scores: &mut [f32],
        entries: &mut [u32],
    ) -> usize {
        let room = level_room(blocks, query);
        assert!(scores.len() >= room && entries.len() >= room, "room for {room} scores, found {}", scores.len());
        dispatch!(self, scan_levels, blocks, levels, query, first, scores, entries)
    }

    /// [`Self::scan_levels`] of the same blocks for up to [`GROUP`] queries; gives their numbers of entries kept.
    pub fn scan_levels_group<const N: usize>(
        &self,
        blocks: &[u8],
        levels: &[u8; 16],
        queries: &[LevelQuery; N],
        first: u32,
        out: [(&mut [f32], &mut [u32]); N],
    ) -> [usize; N] {
        const { assert!(0 < N && N <= GROUP) };
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Avx512Vnni {
            let room = level_room(blocks, &queries[0]);
            assert!(queries.iter().all(|q| q.numbers.len() == queries[0].numbers.len()));
            assert!(out.iter().all(|(s, e)| s.len() >= room && e.len() >= room), "room for {room} scores");
            // SAFETY: `Kernels` with this value are only made where the CPU has the features.
            return unsafe { avx512vnni::scan_levels_group(blocks, levels, queries, first, out) };
        }
        let mut found = [0; N];
        for (((scores, entries), query), found) in out.into_iter().zip(queries).zip(&mut found) {
            *found = self.scan_levels(blocks, levels, query, first, scores, entries);
        }
        found
    }

    /// [`Self::scan4`] of the same blocks for up to [`GROUP`] queries; gives their numbers of entries kept.
    pub fn scan4_group<const N: usize>(
        &self,
        blocks: &[u8],
        queries: &[ScanQuery<u8>; N],
        first: u32,
        out: [(&mut [f32], &mut [u32]); N],
    ) -> [usize; N] {
        const { assert!(0 < N && N <= GROUP) };
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Avx512Vnni {
            let length = queries[0].table.len();
            assert!(length > 0 && length.is_multiple_of(128) && queries.iter().all(|q| q.table.len() == length));
            let room = blocks.len() / (length / 2 + FACTOR_BYTES) * LANES;
            assert!(out.iter().all(|(s, e)| s.len() >= room && e.len() >= room), "room for {room} scores");
            // SAFETY: `Kernels` with this value are only made where the CPU has the features.
            return unsafe { avx512vnni::scan4_group(blocks, queries, first, out) };
        }
        let mut found = [0; N];
        for (((scores, entries), query), found) in out.into_iter().zip(queries).zip(&mut found) {
            *found = self.scan4(blocks, query, first, scores, entries);
        }
        found
    }

    /// `Σ levels[code] · query` over the coordinates of a second-level code: units of 64 bytes, byte b with coordinate b
    /// of 128 in its low and 64 + b in its high nibble. Levels are at most 127.
    pub fn dot4(&self, codes: &[u8], query: &[i8], levels: &[u8; 16]) -> i32 {
        assert!(codes.len() * 2 == query.len() && codes.len().is_multiple_of(64));
        debug_assert!(levels.iter().all(|&l| l < 128));
        dispatch!(self, dot4, codes, query, levels)
    }

    /// Adds to the scores of `entries` what their second-level records know: entry e has record e − `first`, of `stride`
    /// bytes: units of codes as for [`Self::dot4`], then A and B. False, and nothing added, if a record is missing.
    #[must_use]
    pub fn add_corrections(
        &self,
        records: &[u8],
        stride: usize,
        entries: &[u32],
        first: u32,
        query: &RecordQuery,
        scores: &mut [f32],
    ) -> bool {
        assert!(stride == query.numbers.len() / 2 + 8 && query.numbers.len().is_multiple_of(128));
        assert_eq!(entries.len(), scores.len());
        if entries.is_empty() {
            return true;
        }
        // Entries before `first` wrap to large numbers.
        let furthest = dispatch!(self, greatest_distance, entries, first);
        if furthest as usize >= records.len() / stride {
            return false;
        }
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Avx512Vnni {
            // SAFETY: `Kernels` with this value are only made where the CPU has the features.
            unsafe { avx512vnni::add_corrections(records, stride, entries, first, query, scores) };
            return true;
        }
        for (i, (&entry, score)) in entries.iter().zip(scores).enumerate() {
            if let Some(&next) = entries.get(i + RECORDS_AHEAD) {
                prefetch(&records[(next - first) as usize * stride..][..stride]);
            }
            let (codes, factors) = records[(entry - first) as usize * stride..][..stride].split_at(stride - 8);
            let float = |at: usize| f32::from_le_bytes(std::array::from_fn(|i| factors[at + i]));
            let dot = self.dot4(codes, query.numbers, query.levels) - query.bias;
            *score += float(0) + float(4) * (query.scale * dot as f32);
        }
        true
    }

    /// Scores up to 12 rows of integers (q × width, a multiple of 4) against 32 keys of numbers up to 127: offset +
    /// (factor · scale) · (Σ row · key − bias), with scales and offsets per key and (factor, bias) per row.
    ///
    /// `rows` has for every four dimensions four numbers of each row, `panels` are two panels: for every four dimensions
    /// four numbers of each of 16 keys.
    #[allow(clippy::too_many_arguments)]
    pub fn score_tile8(
        &self,
        rows: &[i8],
        width: usize,
        panels: &[u8],
        scales: &[f32],
        offsets: &[f32],
        factors: &[(f32, i32)],
        tile: &mut Scores,
    ) {
        assert!(width.is_multiple_of(4) && panels.len() == width * TILE_LANES && factors.len() <= TILE_ROWS);
        assert!(rows.len() == factors.len() * width && scales.len() == TILE_LANES && offsets.len() == TILE_LANES);
        dispatch!(self, score_tile8, rows, width, panels, scales, offsets, factors, tile)
    }

    /// Scores one row of integers against the keys `picks` of `keys` (n × width, numbers up to 127), as
    /// [`Self::score_tile8`] does, into `out`.
    #[allow(clippy::too_many_arguments)]
    pub fn score_rows8(
        &self,
        row: &[i8],
        keys: &[u8],
        picks: &[u32],
        scales: &[f32],
        offsets: &[f32],
        factor: (f32, i32),
        out: &mut [f32],
    ) {
        assert!(!row.is_empty() && row.len().is_multiple_of(128) && out.len() == picks.len());
        dispatch!(self, score_rows8, row, keys, picks, scales, offsets, factor, out)
    }

    /// Keeps scores at most `limit`, and their entries, in order and in place; returns their number.
    pub fn keep_at_most(&self, scores: &mut [f32], entries: &mut [u32], limit: f32) -> usize {
        dispatch!(self, keep_at_most, scores, entries, limit)
    }

    /// Writes the positions of values at most `limit` to `out` (16 longer than `values`) in order; returns their number.
    pub fn find_at_most(&self, values: &[f32], limit: f32, out: &mut [u32]) -> usize {
        assert!(out.len() >= values.len() + LANES);
        dispatch!(self, find_at_most, values, limit, out)
    }

    /// The greatest value at most `limit`; −∞ if there is none.
    pub fn greatest_at_most(&self, values: &[f32], limit: f32) -> f32 {
        dispatch!(self, greatest_at_most, values, limit)
    }

    /// The least value (no NaN); +∞ if there is none.
    pub fn least(&self, values: &[f32]) -> f32 {
        dispatch!(self, least, values)
    }

    /// Scans blocks of 16 entries in 8-bit codes. Block: m × 16 bytes (byte v of row j = code j of entry v), factors.
    pub fn scan8(
        &self,
        blocks: &[u8],
        query: &ScanQuery<f32>,
        first: u32,
        scores: &mut [f32],
        entries: &mut [u32],
    ) -> usize {
        assert!(!query.table.is_empty() && query.table.len().is_multiple_of(256));
        let room = blocks.len() / (query.table.len() / 16 + FACTOR_BYTES) * LANES;
        assert!(scores.len() >= room && entries.len() >= room, "room for {room} scores, found {}", scores.len());
        dispatch!(self, scan8, blocks, query, first, scores, entries)
    }

    /// Fast Walsh–Hadamard transform in place, times `scale`; the length must be a power of two.
    pub fn hadamard(&self, x: &mut [f32], scale: f32) {
        assert!(x.len().is_power_of_two());
        dispatch!(self, hadamard, x, scale)
    }

    /// Number of values at most `limit`.
    pub fn count_at_most(&self, values: &[f32], limit: f32) -> usize {
        dispatch!(self, count_at_most, values, limit)
    }

    /// Inner products of `part` (dsub) with each of c words (`words`: dsub × c), into `out` (c).
    pub fn word_products(&self, part: &[f32], words: &[f32], out: &mut [f32]) {
        assert_eq!(part.len() * out.len(), words.len());
        dispatch!(self, word_products, part, words, out)
    }

    /// Look-up table of a rotated, padded query for 4-bit codes, m × 16 numbers of 7 bits, from `words` (m × dsub × 16);
    /// `products` (m × 16) is scratch. Returns (scale, bias): product = scale · Σ numbers + bias.
    ///
    /// One step for all sub-quantisers: two numbers add up within a byte, and after a random rotation all spans are alike.
    pub fn tables4(&self, query: &[f32], words: &[f32], products: &mut [f32], table: &mut [u8]) -> (f32, f32) {
        assert!(!products.is_empty() && products.len().is_multiple_of(16) && products.len() == table.len());
        assert_eq!(query.len() * 16, words.len());
        dispatch!(self, tables4, query, words, products, table)
    }

    /// Rounds to 255 steps: x ≈ scale · numbers; returns the scale and the sum of the numbers.
    pub fn round_bytes(&self, x: &[f32], out: &mut [i8]) -> (f32, i32) {
        assert_eq!(x.len(), out.len());
        dispatch!(self, round_bytes, x, out)
    }

    /// Multiplies in place, number by number.
    pub fn multiply(&self, x: &mut [f32], factors: &[f32]) {
        assert_eq!(x.len(), factors.len());
        dispatch!(self, multiply, x, factors)
    }

    /// The least of every c-th value, for each of the c places where counting can begin (no NaN); c = `out.len()`.
    pub fn least_of_classes(&self, values: &[f32], out: &mut [f32]) {
        assert!(!out.is_empty());
        dispatch!(self, least_of_classes, values, out)
    }

    /// Codes of `x` (m × dsub): the nearest of the C words of each sub-quantiser (`words`: m × dsub × C).
    pub fn encode<const C: usize>(&self, x: &[f32], dsub: usize, words: &[f32], codes: &mut [u8]) {
        assert!(x.len() == codes.len() * dsub && words.len() == x.len() * C);
        dispatch!(self, encode::<C>, x, dsub, words, codes)
    }

    /// For each x the number of `borders` that x · `factor` is above, into `codes`.
    pub fn count_borders(&self, x: &[f32], factor: f32, borders: &[f32; 15], codes: &mut [u8]) {
        assert!(codes.len() >= x.len());
        dispatch!(self, count_borders, x, factor, borders, codes)
    }

    /// Packs 16 rows of length `d` into a panel (d × 16).
    pub fn pack_panel(&self, rows: &[f32], d: usize, panel: &mut [f32]) {
        assert!(rows.len() == LANES * d && panel.len() == rows.len());
        dispatch!(self, pack_panel, rows, d, panel)
    }
}
