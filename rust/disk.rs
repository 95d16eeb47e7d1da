//! Stores larger than memory: whether searches wait for the disk, by what their own threads have read from it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// After searches have read from disk, others ask for so long, milliseconds; the next search does in any case. Short,
/// since asking costs a search in memory its own time again, and one that comes to pages on disk finds out by itself.
const WHILE: i64 = 10;

/// What searches have read from disk so far, of all threads. What else the process reads tells nothing of their pages: a text
/// that is read beside them must not make each search ask for pages that are in memory, which takes twice its
/// time (165 against 81 µs a query, batches of 200).
static READ: AtomicI64 = AtomicI64::new(1);
/// What [`is_cold`] saw of it last, and when it saw it change; nothing at first.
static SEEN: AtomicI64 = AtomicI64::new(0);
static MOVED: AtomicI64 = AtomicI64::new(0);

/// Milliseconds of the clock; where it is set, a search asks for too much or too little once.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Whether searches have read from disk since the last question or a moment ago, or it was never asked.
pub fn is_cold() -> bool {
    let (now, read) = (now(), READ.load(Ordering::Relaxed));
    if SEEN.swap(read, Ordering::Relaxed) != read {
        MOVED.store(now, Ordering::Relaxed);
    }
    (now - MOVED.load(Ordering::Relaxed)).abs() < WHILE
}

/// Whether searches have read from disk since [`is_cold`] was last asked, or a moment before that.
pub fn has_read() -> bool {
    READ.load(Ordering::Relaxed) != SEEN.load(Ordering::Relaxed)
        || (now() - MOVED.load(Ordering::Relaxed)).abs() < WHILE
}

/// Counts what a part of a search reads from disk, on the thread that it began on, until it is dropped there.
pub struct Meter {
    before: i64,
}

impl Meter {
    /// From now on; takes a third of a microsecond, and as much at the end.
    pub fn start() -> Meter {
        Meter { before: reads() }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let read = reads() - self.before;
        if read > 0 {
            READ.fetch_add(read, Ordering::Relaxed);
        }
    }
}

/// Blocks that this thread has read from disk, and faults that waited for a page: a number that grows where the disk is read,
/// whatever it counts.
#[cfg(target_os = "linux")]
#[allow(clippy::unnecessary_cast)] // `c_long` has 32 bits on some machines
fn reads() -> i64 {
    use nix::sys::resource::{UsageWho, getrusage};
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.block_reads() as i64 + usage.major_page_faults() as i64)
}

/// Whether the thread reads from disk: it did before, or has since it is watched.
pub struct Watch {
    cold: bool,
    reads: i64,
}

impl Watch {
    /// From now on.
    pub fn new(cold: bool) -> Watch {
        Watch { cold, reads: if cold { 0 } else { reads() } }
    }

    /// Whether it does; takes a third of a microsecond until then.
    pub fn is_cold(&mut self) -> bool {
        self.cold |= reads() != self.reads;
        self.cold
    }
}

/// Not told by other systems, where mapped files are read ahead as the system likes.
#[cfg(not(target_os = "linux"))]
fn reads() -> i64 {
    0
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;

    /// Reads from disk, past the system's cache; whether the system counts it.
    fn read_from_disk() -> bool {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("folder");
        let path = folder.path().join("block");
        std::fs::write(&path, vec![7u8; 1 << 20]).expect("write");
        std::fs::File::open(&path).and_then(|file| file.sync_all()).expect("sync");
        let before = reads();
        let open = std::fs::File::options().read(true).custom_flags(nix::libc::O_DIRECT).open(&path);
        let mut block = crate::aligned::Aligned::<u8>::zeros(64 * 4096);
        let start = block.as_ptr().align_offset(4096);
        let room = block.len() - 4096;
        let read = open.and_then(|mut file| file.read(&mut block[start..start + room]));
        read.is_ok() && reads() > before
    }

    #[test]
    fn only_what_searches_read_makes_them_ask() {
        let quiet = || {
            is_cold();
            std::thread::sleep(std::time::Duration::from_millis(2 * WHILE as u64));
            !is_cold()
        };
        // Other tests may search meanwhile: it has to be so once.
        assert!((0..50).any(|_| quiet()), "searches of other tests read from disk all the time");
        if !read_from_disk() {
            return; // a file system in memory, or one that does not count
        }
        assert!((0..50).any(|_| {
            let before = READ.load(Ordering::Relaxed);
            read_from_disk() && READ.load(Ordering::Relaxed) == before && !has_read()
        }));
        let before = READ.load(Ordering::Relaxed);
        let meter = Meter::start();
        assert!(read_from_disk());
        drop(meter);
        assert!(READ.load(Ordering::Relaxed) > before && has_read() && is_cold());
    }
}
