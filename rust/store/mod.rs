//! A store on disk: numbered manifests and immutable, memory-mapped segment files.
//!
//! [`Datastore`] is what callers use: `add` streams entries to a data segment, `build` has [`crate::index`] write
//! codebook and lists segments; a [`Manifest`] names the files of one generation and is switched by one rename; a
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
#[doc(hidden)]
pub use format::files; // tests put another layer under a store
pub use format::fit::Fit;
pub use format::layout::{FORMAT_MAJOR, FORMAT_MINOR, Section, SegmentKind, SegmentName};
pub use format::manifest::{MAX_DIM, Manifest};
pub use format::records::{DataRecord, DeletedRecord, KeyType, ListsRecord, ValueType};
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
