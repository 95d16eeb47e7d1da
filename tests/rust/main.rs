//! Integration tests of the crate.

mod built;
mod corrupt;
mod failing_disk;
mod failures;
mod forge;
mod forged;
mod golden;
mod store;
mod store_support;
