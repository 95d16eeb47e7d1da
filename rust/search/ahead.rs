//! Stores larger than memory: a scan that waits for the disk asks for the lists that it will read before their turn, in few
//! large pieces. The mapping itself reads nothing ahead, since lists lie anywhere in the file.

use super::near::{Probe, runs};
use crate::disk::Watch;
use crate::index::Lists;

/// Bytes that are asked for ahead of the scan, about: enough for a fast disk, little beside any memory.
const WINDOW: usize = 8 << 20;
/// Runs of probes between two looks at what a scan has read.
const LOOK: usize = 16;

/// Asks for the lists of some probes, which are sorted by list, a window ahead of their scan.
pub struct Ahead<'a> {
    lists: &'a [Lists<'a>],
    /// Probes that nothing was asked for yet.
    coming: &'a [Probe],
    asked: usize,
    /// Bytes asked for ahead of the scan, about.
    pub window: usize,
    cold: bool,
    seen: usize,
    watch: Watch,
}

impl<'a> Ahead<'a> {
    /// For a scan of the lists of `probes`; one that is not `cold` begins to ask once its thread has read from disk.
    pub fn new(lists: &'a [Lists<'a>], probes: &'a [Probe], cold: bool) -> Ahead<'a> {
        Ahead { lists, coming: probes, asked: 0, window: WINDOW, cold, seen: 0, watch: Watch::new(cold) }
    }

    /// The scan comes to the lists of `run`: asks for them, if it has not yet, and for those after them.
    pub fn reach(&mut self, run: &[Probe]) {
        if !self.cold {
            self.coming = &self.coming[run.len()..];
            self.seen += 1;
            self.cold = self.seen.is_multiple_of(LOOK) && self.watch.is_cold();
            return;
        }
        while self.asked < self.window
            && let Some(next) = runs(self.coming).next()
        {
            self.coming = &self.coming[next.len()..];
            self.asked += self.lists.iter().map(|lists| lists.advise_list(next[0].list as usize)).sum::<usize>();
        }
        let bytes = self.lists.iter().map(|lists| lists.list(run[0].list as usize).0.len()).sum();
        self.asked = self.asked.saturating_sub(bytes);
    }
}
