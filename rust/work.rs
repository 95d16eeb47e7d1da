//! How long work is followed.

/// Called with (stage, done, total); total is 0 where it is not known.
pub type Progress<'p> = &'p (dyn Fn(&str, u64, u64) + Sync);
