//! Documents as Python names them: by number or by name, for all queries or list by list.

use crate::Result;
use crate::ids::IdSet;
use crate::store::{DocumentKey, Snapshot};
use pyo3::prelude::*;

/// A document: its number or its name.
#[derive(FromPyObject)]
pub enum Key {
    /// Number.
    Index(u64),
    /// Name.
    Name(String),
}

impl Key {
    /// As the core takes it.
    pub fn core(self) -> DocumentKey {
        match self {
            Key::Index(index) => DocumentKey::Index(index),
            Key::Name(name) => DocumentKey::Name(name),
        }
    }
}

/// Distinct lists of documents, and for each query which of them is its own.
#[derive(FromPyObject)]
pub struct DocumentLists(Vec<Vec<Key>>, Vec<usize>);

impl DocumentLists {
    /// Ids of each query's documents.
    pub fn id_sets(self, snapshot: &Snapshot) -> Result<Vec<IdSet>> {
        let resolve = |list: Vec<Key>| snapshot.ids_of(&list.into_iter().map(Key::core).collect::<Vec<_>>());
        let sets: Vec<IdSet> = self.0.into_iter().map(resolve).collect::<Result<_>>()?;
        self.1
            .into_iter()
            .map(|i| {
                sets.get(i).cloned().ok_or_else(|| {
                    crate::Error::Argument(format!("documents: expected a list number below {}, found {i}", sets.len()))
                })
            })
            .collect()
    }
}
