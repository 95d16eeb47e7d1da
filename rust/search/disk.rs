//! Stores larger than memory: where a search waits for the disk, it asks for what it will read before its turn, in few
//! large pieces. The mapping itself reads nothing ahead, since lists lie anywhere in the file.

use super::probes::{Probe, runs};
use crate::index::Lists;
use std::cell::Cell;

/// Bytes that are asked for ahead of the scan, about: enough for a fast disk, little beside any memory.
const WINDOW: usize = 8 << 20;

thread_local! {
    static READ: Cell<Option<i64>> = const { Cell::new(None) };
}

/// Whether this thread has read from disk since it asked last; true the first time. Takes a third of a microsecond, while
/// asking for pages that are in memory already would take a third of a query's time.
pub fn waited() -> bool {
    let now = blocks_read();
    READ.with(|read| read.replace(Some(now)) != Some(now))
}

/// Blocks that this thread has read from disk.
#[cfg(target_os = "linux")]
fn blocks_read() -> i64 {
    use nix::sys::resource::{UsageWho, getrusage};
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.block_reads())
}

/// Not told by other systems: their own reading ahead has to do.
#[cfg(not(target_os = "linux"))]
fn blocks_read() -> i64 {
    0
}

/// Asks for the lists of some probes, a window ahead of their scan.
pub struct Ahead<'a, I: Iterator<Item = &'a [Probe]>> {
    lists: &'a [Lists<'a>],
    coming: I,
    asked: usize,
}

/// For the lists of probes that are sorted by list.
pub fn ahead<'a>(lists: &'a [Lists<'a>], probes: &'a [Probe]) -> Ahead<'a, impl Iterator<Item = &'a [Probe]>> {
    Ahead { lists, coming: runs(probes), asked: 0 }
}

impl<'a, I: Iterator<Item = &'a [Probe]>> Ahead<'a, I> {
    /// The scan comes to `list`: asks for it, if it was not yet, and for those after it.
    pub fn reach(&mut self, list: u32) {
        while self.asked < WINDOW
            && let Some(run) = self.coming.next()
        {
            self.asked += self.lists.iter().map(|lists| lists.ask_list(run[0].list as usize)).sum::<usize>();
        }
        let bytes = self.lists.iter().map(|lists| lists.list(list as usize).0.len()).sum();
        self.asked = self.asked.saturating_sub(bytes);
    }
}
