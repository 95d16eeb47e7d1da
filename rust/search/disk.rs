//! Stores larger than memory: where a search waits for the disk, it asks for what it will read before its turn, in few
//! large pieces. The mapping itself reads nothing ahead, since lists lie anywhere in the file.

use super::probes::{Probe, runs};
use crate::index::Lists;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

/// Bytes that are asked for ahead of the scan, about: enough for a fast disk, little beside any memory.
const WINDOW: usize = 8 << 20;
/// Runs of probes between two looks at what a scan has read.
const LOOK: usize = 16;
/// After the process has read from disk, its searches ask for so long, milliseconds; the next search does in any case. Short,
/// since asking costs a search in memory its own time again, and one that comes to pages on disk finds out by itself.
const WHILE: i64 = 10;

/// What [`is_cold`] saw last, and when it saw it change.
static SEEN: AtomicI64 = AtomicI64::new(-1);
static MOVED: AtomicI64 = AtomicI64::new(0);

/// Milliseconds since this was first asked.
fn now() -> i64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as i64
}

/// Whether the process has read from disk since the last question or a moment ago, or was never asked. Takes a microsecond at
/// most, while a search that asks for pages in memory takes twice its time (165 against 81 µs a query, batches of 200).
pub fn is_cold() -> bool {
    let (now, seen) = (now(), reads(Of::Process));
    if SEEN.swap(seen, Ordering::Relaxed) != seen {
        MOVED.store(now, Ordering::Relaxed);
    }
    now - MOVED.load(Ordering::Relaxed) < WHILE
}

/// Whether the process has read from disk since [`is_cold`] was last asked, or a moment before that.
pub fn has_read() -> bool {
    reads(Of::Process) != SEEN.load(Ordering::Relaxed) || now() - MOVED.load(Ordering::Relaxed) < WHILE
}

/// What mapped rows can be asked of.
pub trait Disk: Sync {
    /// Asks the system to bring mapped bytes into memory, without waiting for them.
    fn ask(&self, part: &[u8]);
}

enum Of {
    Process,
    Thread,
}

/// Blocks read from disk, and faults that waited for a page: a number that grows where the disk is read, whatever it counts.
#[cfg(target_os = "linux")]
#[allow(clippy::unnecessary_cast)] // `c_long` has 32 bits on some machines
fn reads(of: Of) -> i64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let who = match of {
        Of::Process => UsageWho::RUSAGE_SELF,
        Of::Thread => UsageWho::RUSAGE_THREAD,
    };
    getrusage(who).map_or(0, |usage| usage.block_reads() as i64 + usage.major_page_faults() as i64)
}

/// Whether the thread reads from disk: it did before, or has since it is watched.
pub struct Watch {
    cold: bool,
    reads: i64,
}

impl Watch {
    /// From now on.
    pub fn new(cold: bool) -> Watch {
        Watch { cold, reads: if cold { 0 } else { reads(Of::Thread) } }
    }

    /// Whether it does; takes a third of a microsecond until then.
    pub fn is_cold(&mut self) -> bool {
        self.cold |= reads(Of::Thread) != self.reads;
        self.cold
    }
}

/// Not told by other systems, where mapped files are read ahead as the system likes.
#[cfg(not(target_os = "linux"))]
fn reads(_: Of) -> i64 {
    0
}

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
            self.asked += self.lists.iter().map(|lists| lists.ask_list(next[0].list as usize)).sum::<usize>();
        }
        let bytes = self.lists.iter().map(|lists| lists.list(run[0].list as usize).0.len()).sum();
        self.asked = self.asked.saturating_sub(bytes);
    }
}
