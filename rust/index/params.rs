//! What the caller may choose about an index.

/// What the caller may choose about an index.
#[derive(Clone, Debug, Default)]
pub struct Params {
    /// Number of lists; `None` = from the number of entries.
    pub nlist: Option<usize>,
    /// How keys are coded.
    pub code: CodeChoice,
    /// Seed of every random choice; `None` = 0 for a new codebook, that of the codebook if there is one.
    pub seed: Option<u64>,
    /// Number of entries that the lists are for, if the keys are a sample of them.
    pub expected: Option<usize>,
}

/// Size of the code of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CodeChoice {
    /// 4-bit words over up to 4 dimensions each (48 bytes at d = 384) and, for d > 96, a second level of 4 bits a dimension
    /// for scoring candidates again.
    #[default]
    Auto,
    /// 4-bit words over at least 4 dimensions each, at most 48 bytes.
    Small,
    /// 4 bits a dimension in one level: fewer bytes than [`CodeChoice::Auto`], but more of them read for each entry scanned.
    Flat,
    /// Product quantiser of `m` sub-quantisers of `bits` (4 or 8) each.
    Pq {
        /// Number of sub-quantisers, from 1 to d.
        m: usize,
        /// 4 (16 words) or 8 (256 words).
        bits: u8,
    },
}

/// What tells kinds of codes of one dimension apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeKind {
    /// Sub-quantisers of the words.
    pub m: usize,
    /// Their bits.
    pub bits: u8,
    /// Bits a dimension of the second level; 0: there is none.
    pub second_bits: u8,
    /// Whether entries are coded coordinate by coordinate instead.
    pub levels: bool,
}
