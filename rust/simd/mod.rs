//! Kernels per instruction set: an [`Isa`] is chosen once, and owning its [`Kernels`] is the proof that they may run.
//!
//! | kernel | what it does | bit-equal on all instruction sets |
//! |---|---|---|
//! | [`Kernels::score_tile`] | scores of ≤ 12 rows against 32 packed keys, with a limit per row | no (FMA) |
//! | [`Kernels::l2_f32`] … [`Kernels::ip_f16`] | one direct distance or inner product | yes |
//! | [`Kernels::scan4`], [`Kernels::scan8`] | scan of coded blocks, keeping what a limit lets pass | yes |
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
mod isa;
#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code)]
mod neon;
#[cfg(test)]
mod parity;
mod portable;
#[allow(unsafe_code)]
mod prefetch;
pub mod scalar;

use half::f16;
pub use isa::Isa;
pub use prefetch::prefetch;

/// Keys of a panel and entries of a block.
pub const LANES: usize = 16;
/// Keys of a tile: two panels.
pub const TILE_LANES: usize = 2 * LANES;
/// Most rows of a tile.
pub const TILE_ROWS: usize = 12;
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
        pub fn hadamard(x: &mut [f32]) {
            $portable::hadamard(x)
        }
        #[target_feature(enable = $features)]
        pub fn count_at_most(values: &[f32], limit: f32) -> usize {
            $portable::count_at_most(values, limit)
        }
        #[target_feature(enable = $features)]
        pub fn word_products(part: &[f32], words: &[f32], out: &mut [f32]) {
            $portable::word_products(part, words, out)
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

    /// Fast Walsh–Hadamard transform in place, not normalised; the length must be a power of two.
    pub fn hadamard(&self, x: &mut [f32]) {
        assert!(x.len().is_power_of_two());
        dispatch!(self, hadamard, x)
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

    /// Codes of `x` (m × dsub): the nearest of the C words of each sub-quantiser (`words`: m × dsub × C).
    pub fn encode<const C: usize>(&self, x: &[f32], dsub: usize, words: &[f32], codes: &mut [u8]) {
        assert!(x.len() == codes.len() * dsub && words.len() == x.len() * C);
        dispatch!(self, encode::<C>, x, dsub, words, codes)
    }

    /// Packs 16 rows of length `d` into a panel (d × 16).
    pub fn pack_panel(&self, rows: &[f32], d: usize, panel: &mut [f32]) {
        assert!(rows.len() == LANES * d && panel.len() == rows.len());
        dispatch!(self, pack_panel, rows, d, panel)
    }
}
