//! A store on disk: numbered manifests and immutable, memory-mapped segment files.
//!
//! [`Datastore`] is what callers use: `add` streams entries to a data segment, `build` has [`crate::index`] write
//! codebook and lists segments; a [`Manifest`] names the files of one generation and is switched by one rename; a
//! [`Snapshot`] is one generation opened. The bytes are described below.
//!
#![doc = include_str!("../../docs/format.md")]

mod batch;
mod build;
mod calibrate;
mod collect;
mod compact;
mod datastore;
mod deleted;
mod documents;
mod drift;
mod edit;
mod encoding;
pub mod files;
mod info;
mod layout;
mod lock;
mod lookup;
mod manifest;
mod map;
mod merge;
mod names;
mod notices;
mod part;
mod places;
mod reindex;
mod runs;
mod salvage;
mod search;
mod segment;
mod segment_writer;
mod snapshot;
mod spill;
mod staging;
mod values;
mod verify;
mod writer;

pub use build::{BuildOptions, Encoded};
pub use datastore::{Datastore, Options};
pub use documents::Document;
pub use drift::Fit;
pub use info::{CalibrationInfo, FileInfo, IndexInfo, Info, SectionInfo};
pub use layout::{FORMAT_MAJOR, FORMAT_MINOR, Section, SegmentKind, SegmentName};
pub use lookup::{DocumentKey, Entries};
pub use manifest::{DataRecord, DeletedRecord, KeyType, ListsRecord, MAX_DIM, Manifest, ValueType};
pub use part::PartDocument;
pub use reindex::{Held, Staged};
pub use salvage::Lost;
pub use search::{Neighbours, NeighboursMut};
pub use segment::{Damage, DamagedSection, SegmentFile};
pub use segment_writer::SegmentWriter;
pub use snapshot::Snapshot;
pub use values::{ValueRows, Values, ValuesMut};
pub use verify::Problem;
