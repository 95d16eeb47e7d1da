//! Turns raw keys into lists of short codes: [`Params`] say how.
//!
//! `train` learns centroids and words from a sample and writes the codebook sections; `write_lists` assigns every
//! key to its nearest centroid, encodes its residual and writes the list sections; `Codebook` and `Lists` view
//! those sections for [`crate::search`].

mod block;
pub(crate) mod bytes;
pub(crate) mod coarse;
mod codebook;
mod coding;
mod decode;
mod defaults;
mod kmeans;
mod levels;
mod lists;
mod memory;
mod merge;
mod panels;
mod params;
pub(crate) mod quantiser;
mod rotation;
mod second;
mod trainer;
mod writer;

pub use params::{CodeChoice, Params};

pub(crate) use codebook::KeptCodebook;
pub(crate) use coding::Coding;
pub(crate) use decode::reconstruct;
pub(crate) use lists::KeptLists;
pub(crate) use merge::merge_lists;
pub(crate) use trainer::{FINE, plan};

// Of tests and benchmarks.
#[doc(hidden)]
pub use {codebook::Codebook, lists::Lists, memory::Memory, params::CodeKind};
#[doc(hidden)]
pub use {trainer::code_kind, trainer::train, writer::write_lists};
