//! What is on disk: the bytes of manifests and segment files, the layer that writes them, and the writer's lock.

pub(crate) mod damage;
pub(crate) mod deleted;
pub(crate) mod documents;
pub mod files;
pub(crate) mod fit;
pub(crate) mod layout;
pub(crate) mod lock;
pub(crate) mod manifest;
pub(crate) mod map;
pub(crate) mod names;
pub(crate) mod records;
pub(crate) mod runs;
pub(crate) mod segment;
pub(crate) mod segment_writer;
pub(crate) mod spill;
pub(crate) mod values;
