//! What is asked of one generation, opened: entries and documents, searches, sizes, what is damaged.

pub(crate) mod drift;
pub(crate) mod info;
pub(crate) mod lookup;
pub(crate) mod search;
pub(crate) mod snapshot;
pub(crate) mod verify;
