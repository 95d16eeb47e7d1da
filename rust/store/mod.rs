//! A store on disk: numbered manifests and immutable, memory-mapped segment files.
//!
//! [`Datastore`] is what callers use: `add` streams entries to a data segment, `build` has [`crate::index`] write
//! codebook and lists segments; a manifest names the files of one generation and is switched by one rename; a
//! [`Snapshot`] is one generation opened. The bytes are described below.
//!
#![doc = include_str!("../../docs/format.md")]

mod changes;
mod datastore;
mod format;
mod generations;
mod read;
mod reading;
mod staged;
mod write;

pub use datastore::{Datastore, Options};
pub use format::documents::{Document, DocumentKey};
pub use format::fit::Fit;
pub use format::layout::SegmentName;
pub use format::manifest::MAX_DIM;
pub use format::records::{KeyType, ValueType};
pub use format::values::{ValueRows, Values, ValuesMut};
pub use read::info::{CalibrationInfo, FileInfo, IndexInfo, Info, SectionInfo};
pub use read::lookup::Entries;
pub use read::search::{Neighbors, NeighborsMut};
pub use read::snapshot::Snapshot;
pub use read::verify::Problem;
pub use staged::Held;
pub use write::build::BuildOptions;
pub use write::lists::Encoded;
pub use write::part::PartDocument;
pub use write::reindex::Staged;
pub use write::salvage::Lost;

// Of tests, which put another layer of files under a store and look into its folder.
#[doc(hidden)]
pub use format::files;
#[doc(hidden)]
pub use format::{layout::FORMAT_MAJOR, layout::FORMAT_MINOR, layout::SegmentKind, records::ListsRecord};
