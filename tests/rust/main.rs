//! Integration tests of the crate.

mod built;
mod corrupt;
mod damaged_codes;
mod derived;
mod edit;
mod explained;
mod failing_disk;
mod failures;
mod flips;
mod foreign;
mod forge;
mod forged;
mod golden;
mod lists_file;
mod lookup;
mod misfit;
mod never_held;
mod outgrown;
mod parts;
mod power_loss;
#[cfg(target_os = "linux")]
mod read_ahead;
mod read_only;
mod recording_disk;
mod reindex;
mod replaced;
mod resident;
mod rooms;
mod sources;
mod store;
mod store_support;
mod supersede;
