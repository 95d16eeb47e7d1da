//! A segment file in memory: the only `unsafe` of the store.

#![allow(unsafe_code)]

use crate::error::{Action, RESTORE};
use crate::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// Opens a file of a store for reading and tells its length, unless it is something else: a link could lead anywhere, and
/// opening a pipe waits for ever.
///
/// # Errors
/// `Format` for what is no file; `Io`.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let kind = std::fs::symlink_metadata(path).map_err(|e| Error::io(path, Action::Open, e))?.file_type();
    if !kind.is_file() {
        let found = match () {
            _ if kind.is_symlink() => "a link (copy what it leads to here)",
            _ if kind.is_dir() => "a folder",
            _ => "a pipe, socket or device",
        };
        return Err(Error::format(path, format!("expected a file of this store, found {found}")));
    }
    let file = File::open(path).map_err(|e| Error::io(path, Action::Open, e))?;
    let metadata = file.metadata().map_err(|e| Error::io(path, Action::Inspect, e))?;
    Ok((file, metadata.len()))
}

/// Maps a file read-only after checking that it is as long as `expected` says, or at least `minimum` bytes.
pub fn map(path: &Path, expected: Option<u64>, minimum: u64) -> Result<Mmap> {
    let (file, length) = open_regular(path)?;
    if expected.is_some_and(|expected| expected != length) || length < minimum {
        let expected = expected.map_or(format!("at least {minimum}"), |bytes| bytes.to_string());
        return Err(Error::format(
            path,
            format!("expected {expected} bytes, found {length}: the file was truncated or replaced; {RESTORE}"),
        ));
    }
    // SAFETY: segment files are written once under a temporary name and renamed; this crate never writes to, truncates
    // or replaces the contents of a file that has its final name, it only unlinks it, which leaves a mapping valid. The
    // length was checked above, so that no page of a truncated file is touched.
    let map = unsafe { Mmap::map(&file) };
    map.map_err(|e| Error::io(path, Action::Map, e))
}
