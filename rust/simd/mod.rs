//! Kernels per instruction set: an [`Isa`] is chosen once, and owning its [`Kernels`] is the proof that they may run.
//!
//! | kernel | what it does | bit-equal on all instruction sets |
//! |---|---|---|
//! | [`Kernels::score_tile`] | scores of ≤ 12 rows against 32 packed keys, with a limit per row | no (FMA) |
//! | [`Kernels::l2_f32`] … [`Kernels::ip_f16`] | one direct distance or inner product | yes |
//! | [`Kernels::score_tile8`], [`Kernels::score_rows8`] | the same of integers: k-means and assignment, coarse step | yes |
//! | [`Kernels::dot4`], [`Kernels::add_corrections`] | product of second-level codes with a query | yes |
//! | [`Kernels::scan_levels`], [`Kernels::scan4`], [`Kernels::scan8`], and of groups | scan of coded blocks, keeping what a limit lets pass | yes |
//! | `portable` | transform, encoding, tables, counting, packing | yes |
//!
//! `scalar.rs` defines every answer; `parity.rs` compares; `operands.rs` has what kernels take; `kernels.rs` checks it and calls
//! the kernels of the instruction set.

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
mod instantiate;
mod isa;
mod kernels;
#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code)]
mod neon;
mod operands;
#[cfg(test)]
mod parity;
mod portable;
#[allow(unsafe_code)]
mod prefetch;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
#[doc(hidden)]
pub mod roofline;
mod scalar;

pub use isa::Isa;
pub use kernels::Kernels;
pub(crate) use operands::float_at;
pub use operands::{
    ByteKeys, ByteQuery, FACTOR_BYTES, GROUP, LANES, LevelQuery, ScanQuery, Scores, TILE_LANES, TILE_ROWS, Tile,
};
pub(crate) use prefetch::{prefetch, prefetch_far};
