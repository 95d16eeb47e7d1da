//! Stores larger than memory: where a search waits for the disk, it asks for what it will read before its turn, in few
//! large pieces. The mapping itself reads nothing ahead, since lists lie anywhere in the file.

use super::probes::{Probe, runs};
use crate::index::Lists;
use std::sync::atomic::{AtomicI64, Ordering};

/// Bytes that are asked for ahead of the scan, about: enough for a fast disk, little beside any memory.
const WINDOW: usize = 8 << 20;

/// Blocks that the process had read from disk when it was last asked.
static READ: AtomicI64 = AtomicI64::new(-1);

/// Whether the process has read from disk since it was asked last; true the first time. Takes a microsecond, while asking for
/// pages that are in memory already would take a third of a query's time.
pub fn waited() -> bool {
    let now = blocks_read();
    READ.swap(now, Ordering::Relaxed) != now
}

/// Blocks that the process has read from disk.
#[cfg(target_os = "linux")]
fn blocks_read() -> i64 {
    use nix::sys::resource::{UsageWho, getrusage};
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.block_reads())
}

/// Not told by other systems, where mapped files are read ahead as the system likes.
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
