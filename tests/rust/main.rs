//! Integration tests of the crate.

mod corrupt;
mod failing_disk;
mod failures;
mod store;
mod store_support;
