//! What kernels take: queries and keys as they lie in memory.

/// Keys of a panel and entries of a block.
pub const LANES: usize = 16;
/// Keys of a tile: two panels.
pub const TILE_LANES: usize = 2 * LANES;
/// Most rows of a tile.
pub const TILE_ROWS: usize = 12;
/// Queries that a kernel serves at once, at most.
pub const GROUP: usize = 6;
/// Second-level records that are prefetched ahead of their turn.
pub(super) const RECORDS_AHEAD: usize = 16;

/// Scores of up to 12 rows against 32 keys.
pub type Scores = [[f32; TILE_LANES]; TILE_ROWS];
/// Bytes of the factors after the codes of a block: 16 × A, 16 × B, f32.
pub const FACTOR_BYTES: usize = 2 * 4 * LANES;

/// Number `i` of floats as they are stored.
#[inline(always)]
pub fn float_at(bytes: &[u8], i: usize) -> f32 {
    f32::from_le_bytes(std::array::from_fn(|byte| bytes[4 * i + byte]))
}

/// Result of [`super::Kernels::score_tile`].
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

/// A query in 8 bits, with what 4-bit codes stand for. Product = `scale * (Σ levels · numbers − bias)`.
#[derive(Clone, Copy, Debug)]
pub struct ByteQuery<'q> {
    /// −127 to 127, whole units of 128.
    pub numbers: &'q [i8],
    /// 0 to 127.
    pub levels: &'q [u8; 16],
    /// Length of a step.
    pub scale: f32,
    /// See above.
    pub bias: i32,
}

/// What a scan of scalar codes needs of a query and a list. Score of an entry = `(base + A) + B * product`.
#[derive(Clone, Copy, Debug)]
pub struct LevelQuery<'q> {
    /// The query.
    pub bytes: ByteQuery<'q>,
    /// Added to every score of the list.
    pub base: f32,
    /// Scores above it are dropped.
    pub limit: f32,
}

/// Keys in 8 bits. Score of a row = `offset + (factor · scale) · (Σ row · key − bias)`, (factor, bias) being the row's.
#[derive(Clone, Copy, Debug)]
pub struct ByteKeys<'k> {
    /// 0 to 127, packed as the kernel says.
    pub numbers: &'k [u8],
    /// One for each key.
    pub scales: &'k [f32],
    /// One for each key.
    pub offsets: &'k [f32],
}

#[cfg(target_arch = "x86_64")]
/// Where the entries go that N queries keep of `blocks` blocks: room for all of them is checked here, once.
#[inline]
pub fn targets<const N: usize>(out: &mut [(&mut [f32], &mut [u32]); N], blocks: usize) -> [(*mut f32, *mut u32); N] {
    assert!(out.iter().all(|(scores, entries)| scores.len().min(entries.len()) >= blocks * LANES));
    out.each_mut().map(|(scores, entries)| (scores.as_mut_ptr(), entries.as_mut_ptr()))
}
