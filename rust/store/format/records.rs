//! Segments as a manifest knows them, and the types of keys and values.

use super::layout::SegmentName;
use crate::sections::Element;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How raw keys are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyType {
    /// IEEE half precision.
    Float16,
    /// IEEE single precision.
    Float32,
}

/// How values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueType {
    /// Unsigned 32-bit.
    #[default]
    Uint32,
    /// Unsigned 64-bit.
    Uint64,
}

impl KeyType {
    /// Element type of their section.
    pub(crate) fn element(self) -> Element {
        match self {
            KeyType::Float16 => Element::F16,
            KeyType::Float32 => Element::F32,
        }
    }
}

impl ValueType {
    /// Element type of their section.
    pub(crate) fn element(self) -> Element {
        match self {
            ValueType::Uint32 => Element::U32,
            ValueType::Uint64 => Element::U64,
        }
    }
}

/// A data segment as the manifest knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DataRecord {
    /// Its file.
    #[serde(flatten)]
    pub name: SegmentName,
    /// Id of its first entry.
    pub first_id: u64,
    /// Number of its entries.
    pub entries: u64,
    /// Its raw keys, if it has them.
    pub keys: Option<KeyType>,
    /// Number of its document records.
    pub documents: u64,
    /// Whether its first record continues the last document of the segment before.
    pub continues: bool,
    /// Id after the last that it stands for, if ids are gone: its rows are then found through its section `Runs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_id: Option<u64>,
}

impl DataRecord {
    /// Ids that it stands for; checked by `Manifest::read` not to overflow.
    pub fn ids(&self) -> Range<u64> {
        self.first_id..self.end_id.unwrap_or(self.first_id.saturating_add(self.entries))
    }
}

/// The file of deleted documents as the manifest knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeletedRecord {
    /// The file.
    #[serde(flatten)]
    pub name: SegmentName,
    /// Number of deleted documents.
    pub documents: u64,
    /// Number of their entries that are still in data segments.
    pub entries: u64,
}

/// A lists segment as the manifest knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListsRecord {
    /// Its file.
    #[serde(flatten)]
    pub name: SegmentName,
    /// Id of its first entry.
    pub first_id: u64,
    /// Number of its entries.
    pub entries: u64,
}
