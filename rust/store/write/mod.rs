//! What makes the next generation of one that is there: added entries, lists, an index, what is left after a deletion.

pub(crate) mod batch;
pub(crate) mod build;
pub(crate) mod collect;
pub(crate) mod compact;
pub(crate) mod delete;
pub(crate) mod encoding;
pub(crate) mod lists;
pub(crate) mod merge;
pub(crate) mod notices;
pub(crate) mod part;
pub(crate) mod recall;
pub(crate) mod reindex;
pub(crate) mod salvage;
pub(crate) mod staging;
pub(crate) mod writer;
