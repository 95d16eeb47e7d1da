//! A segment file in memory: the only `unsafe` of the store.

#![allow(unsafe_code)]

use crate::error::{Action, RESTORE, Why};
use crate::{Error, Result};
use memmap2::{Mmap, MmapMut};
use std::fs::File;
use std::io::Read;
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

fn wrong_length(path: &Path, expected: String, found: u64) -> Error {
    let message = format!("expected {expected} bytes, found {found}: the file was truncated or replaced; {RESTORE}");
    Error::format(path, message)
}

/// Reads a file of `expected` bytes into memory that nobody else can change, in huge pages where the system has them.
///
/// # Errors
/// `Format` for another length; `State` without so much memory; `Io`.
pub fn load(path: &Path, expected: u64) -> Result<Mmap> {
    const PIECE: usize = 1 << 20;
    let (mut file, length) = open_regular(path)?;
    if length != expected {
        return Err(wrong_length(path, expected.to_string(), length));
    }
    let room = usize::try_from(length).map_err(std::io::Error::other).and_then(MmapMut::map_anon);
    let mut memory = room.map_err(|e| {
        let message = format!(
            "{}: expected {length} bytes of memory to read it into, found too little: {e}; open it without",
            path.display()
        );
        Error::state(Why::Resources, message)
    })?;
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage); // smaller pages will do
    for piece in memory.chunks_mut(PIECE) {
        file.read_exact(piece).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => wrong_length(path, expected.to_string(), length),
            _ => Error::io(path, Action::Load, e),
        })?;
    }
    memory.make_read_only().map_err(|e| Error::io(path, Action::Load, e))
}

/// Maps a file read-only after checking that it is as long as `expected` says, or at least `minimum` bytes.
pub fn map(path: &Path, expected: Option<u64>, minimum: u64) -> Result<Mmap> {
    let (file, length) = open_regular(path)?;
    if expected.is_some_and(|expected| expected != length) || length < minimum {
        let expected = expected.map_or(format!("at least {minimum}"), |bytes| bytes.to_string());
        return Err(wrong_length(path, expected, length));
    }
    // SAFETY: segment files are written once under a temporary name and renamed; this crate never writes to, truncates
    // or replaces the contents of a file that has its final name, it only unlinks it, which leaves a mapping valid. The
    // length was checked above, so that no page of a truncated file is touched. Whoever else truncates a file of an open
    // store ends its readers with SIGBUS: docs/durability.md says how to restore one, and `load` does without a mapping.
    let map = unsafe { Mmap::map(&file) };
    map.map_err(|e| Error::io(path, Action::Map, e))
}
