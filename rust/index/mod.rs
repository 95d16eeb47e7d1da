//! Turns raw keys into lists of short codes.
//!
//! [`train`] learns centroids and words from a sample and writes the codebook sections; [`write_lists`] assigns every
//! key to its nearest centroid, encodes its residual and writes the list sections; [`Codebook`] and [`Lists`] view
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

pub use codebook::{Codebook, KeptCodebook};
pub(crate) use coding::Coding;
pub use decode::reconstruct;
pub use lists::{KeptLists, Lists};
pub use memory::Memory;
pub use merge::merge_lists;
pub use params::{CodeChoice, CodeKind, Params};
pub(crate) use trainer::FINE;
pub use trainer::{code_kind, plan, train};
pub use writer::write_lists;
