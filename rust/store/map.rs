//! A segment file in memory: the only `unsafe` of the store.

#![allow(unsafe_code)]

use crate::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// Maps a file read-only after checking that it is as long as `expected` says, or at least `minimum` bytes.
pub fn map(path: &Path, expected: Option<u64>, minimum: u64) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let length = file.metadata().map_err(|e| Error::io(path, "read length", e))?.len();
    if expected.is_some_and(|expected| expected != length) || length < minimum {
        let expected = expected.map_or(format!("at least {minimum}"), |bytes| bytes.to_string());
        return Err(Error::format(
            path,
            format!(
                "expected {expected} bytes, found {length}: the file was truncated or replaced; restore it from a copy"
            ),
        ));
    }
    // SAFETY: segment files are written once under a temporary name and renamed; this crate never writes to, truncates
    // or replaces the contents of a file that has its final name, it only unlinks it, which leaves a mapping valid. The
    // length was checked above, so that no page of a truncated file is touched.
    let map = unsafe { Mmap::map(&file) };
    map.map_err(|e| Error::io(path, "map into memory", e))
}
