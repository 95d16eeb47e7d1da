//! [`Kernels`]: checks what a kernel is given, once, and calls that of the instruction set.

#[cfg(target_arch = "x86_64")]
use super::avx2;
#[cfg(target_arch = "x86_64")]
use super::avx512;
#[cfg(target_arch = "x86_64")]
use super::avx512vnni;
use super::isa::Isa;
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::operands::{
    ByteKeys, ByteQuery, FACTOR_BYTES, GROUP, LANES, LevelQuery, RECORDS_AHEAD, ScanQuery, Scores, TILE_LANES,
    TILE_ROWS, Tile, float_at,
};
use super::prefetch::prefetch;
use super::scalar;
use half::f16;

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

/// Most entries that a scan of scalar codes can keep.
fn level_room(blocks: &[u8], query: &LevelQuery) -> usize {
    let width = query.bytes.numbers.len();
    assert!(width > 0 && width.is_multiple_of(128));
    blocks.len() / (width * 8 + FACTOR_BYTES) * LANES
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
    /// whatever q is: a row's score does not depend on its neighbors in the batch.
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
        self.scan4_group(blocks, &[*query], first, [(scores, entries)])[0]
    }

    /// Scans blocks of 16 entries in scalar codes; entries within the limit go to `scores` and `entries` in order, as
    /// `first` + position. Returns their number.
    ///
    /// Block: width/8 units of 64 bytes, then the factors (16 × A, 16 × B). Byte 4v + j of unit g holds two codes of
    /// entry v: low nibble coordinate 8g + j, high nibble 8g + 4 + j.
    pub fn scan_levels(
        &self,
        blocks: &[u8],
        query: &LevelQuery,
        first: u32,
        scores: &mut [f32],
        entries: &mut [u32],
    ) -> usize {
        self.scan_levels_group(blocks, &[*query], first, [(scores, entries)])[0]
    }

    /// [`Self::scan_levels`] of the same blocks for up to [`GROUP`] queries; gives their numbers of entries kept.
    pub fn scan_levels_group<const N: usize>(
        &self,
        blocks: &[u8],
        queries: &[LevelQuery; N],
        first: u32,
        out: [(&mut [f32], &mut [u32]); N],
    ) -> [usize; N] {
        const { assert!(0 < N && N <= GROUP) };
        let room = level_room(blocks, &queries[0]);
        assert!(queries.iter().all(|q| q.bytes.numbers.len() == queries[0].bytes.numbers.len()));
        assert!(out.iter().all(|(s, e)| s.len() >= room && e.len() >= room), "room for {room} scores");
        #[cfg(target_arch = "x86_64")]
        match self.isa {
            // SAFETY: `Kernels` with this value are only made where the CPU has the features.
            Isa::Avx2 => return unsafe { avx2::scan_levels_group(blocks, queries, first, out) },
            // SAFETY: as above.
            Isa::Avx512 => return unsafe { avx512::scan_levels_group(blocks, queries, first, out) },
            // SAFETY: as above.
            Isa::Avx512Vnni => return unsafe { avx512vnni::scan_levels_group(blocks, queries, first, out) },
            _ => {}
        }
        let mut found = [0; N];
        for (((scores, entries), query), found) in out.into_iter().zip(queries).zip(&mut found) {
            *found = match self.isa {
                // SAFETY: as above.
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => unsafe { neon::scan_levels(blocks, query, first, scores, entries) },
                _ => scalar::scan_levels(blocks, query, first, scores, entries),
            };
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
        let length = queries[0].table.len();
        assert!(length > 0 && length.is_multiple_of(128) && queries.iter().all(|q| q.table.len() == length));
        let room = blocks.len() / (length / 2 + FACTOR_BYTES) * LANES;
        assert!(out.iter().all(|(s, e)| s.len() >= room && e.len() >= room), "room for {room} scores");
        #[cfg(target_arch = "x86_64")]
        match self.isa {
            // SAFETY: `Kernels` with this value are only made where the CPU has the features.
            Isa::Avx2 => return unsafe { avx2::scan4_group(blocks, queries, first, out) },
            // SAFETY: as above.
            Isa::Avx512 => return unsafe { avx512::scan4_group(blocks, queries, first, out) },
            // SAFETY: as above.
            Isa::Avx512Vnni => return unsafe { avx512vnni::scan4_group(blocks, queries, first, out) },
            _ => {}
        }
        let mut found = [0; N];
        for (((scores, entries), query), found) in out.into_iter().zip(queries).zip(&mut found) {
            *found = match self.isa {
                // SAFETY: as above.
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => unsafe { neon::scan4(blocks, query, first, scores, entries) },
                _ => scalar::scan4(blocks, query, first, scores, entries),
            };
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
        query: &ByteQuery,
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
            let dot = self.dot4(codes, query.numbers, query.levels) - query.bias;
            *score += float_at(factors, 0) + float_at(factors, 1) * (query.scale * dot as f32);
        }
        true
    }

    /// Scores up to 12 rows of integers (q × width, a multiple of 4) against 32 keys, with a (factor, bias) for each row.
    ///
    /// `rows` has for every four dimensions four numbers of each row, the keys are two panels: for every four dimensions
    /// four numbers of each of 16 keys.
    pub fn score_tile8(&self, rows: &[i8], width: usize, keys: ByteKeys, factors: &[(f32, i32)], tile: &mut Scores) {
        assert!(width.is_multiple_of(4) && keys.numbers.len() == width * TILE_LANES && factors.len() <= TILE_ROWS);
        assert!(keys.scales.len() == TILE_LANES && keys.offsets.len() == TILE_LANES);
        assert!(rows.len() == factors.len() * width);
        dispatch!(self, score_tile8, rows, width, keys, factors, tile)
    }

    /// Scores one row of integers (width, whole units of 128) against the keys `picks` (rows of width), as
    /// [`Self::score_tile8`] does, into `out`.
    pub fn score_rows8(&self, row: &[i8], keys: ByteKeys, picks: &[u32], factor: (f32, i32), out: &mut [f32]) {
        assert!(!row.is_empty() && row.len().is_multiple_of(128) && out.len() == picks.len());
        dispatch!(self, score_rows8, row, keys, picks, factor, out)
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
