//! The exact scan of raw keys, which knows no index: [`scan`] finds the nearest rows by a matrix product whose rounding is
//! made good, [`sweep`] is that product, [`Nearest`] keeps the best of a stream.
//!
//! The index learns and assigns with the same product, and calibrates against the same scan.

mod filter;
mod found;
mod rows;
mod scan;
pub(crate) mod select;
pub(crate) mod sweep;

pub(crate) use filter::Filter;
pub(crate) use found::{Found, best};
pub(crate) use rows::Rows;
pub(crate) use scan::scan;
pub(crate) use select::{Nearest, smallest};
