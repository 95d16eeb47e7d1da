//! Memory of a search task, kept for the next one: clearing fresh pages costs more than scanning the codes.

use super::probes::Probe;
use super::select::Nearest;
use crate::index::bytes::ByteRows;
use crate::index::quantiser::Tables;
use std::sync::Mutex;

/// Workspaces that are kept, at most.
const KEPT: usize = 16;
/// A workspace of more bytes is not kept.
const MOST_BYTES: usize = 128 << 20;

static STORE: Mutex<Vec<Workspace>> = Mutex::new(Vec::new());

/// Buffers for a tile of queries. What they hold has no meaning to the next task.
#[derive(Default)]
pub struct Workspace {
    /// Queries less the mean, and rotated, of a group that meets the centroids together.
    pub centred: Vec<f32>,
    /// See `centred`.
    pub rotated: Vec<f32>,
    /// Rotated queries in 8 bits.
    pub bytes: ByteRows,
    /// Look-up tables of each query.
    pub tables: Vec<Tables>,
    /// Scores of all lists for each query of the group.
    pub scores: Vec<f32>,
    /// What is kept of them for each query.
    pub near: Near,
    /// Products that a look-up table is made from.
    pub products: Vec<f32>,
    /// Candidates of each query.
    pub nearest: Vec<Nearest>,
    /// Entries in the lists of each query.
    pub entries: Vec<u64>,
    /// Lists to scan: the nearest of every query, then the others; each round by list.
    pub rounds: [Vec<Probe>; 2],
    /// Candidates of each query that were scored again.
    pub cursors: Vec<u32>,
    /// Scratch of the choice of lists.
    pub choice: Choice,
    /// Scratch of the final order.
    pub keys: [Vec<u64>; 2],
}

/// The lists that lie near each query, by number, one query after the other.
#[derive(Default)]
pub struct Near {
    /// Numbers of lists, ascending for each query.
    pub lists: Vec<u32>,
    /// Their scores.
    pub scores: Vec<f32>,
    /// Where those of each query end.
    pub ends: Vec<usize>,
    /// Scores of the lists that are left out are above it, for each query.
    pub limits: Vec<f32>,
    /// Added to a score gives the base of a probe, for each query.
    pub shifts: Vec<f32>,
}

/// Scratch of the choice of lists.
#[derive(Default)]
pub struct Choice {
    /// Positions of scores.
    pub found: Vec<u32>,
    /// What a scan of all centroids writes besides scores.
    pub ignored: Vec<u32>,
    /// Least score of each class of lists, and scores of what was found.
    pub lows: Vec<f32>,
    /// The lists that each query scans first, nearest first, one query after the other.
    pub nearest: Vec<u32>,
    /// Where those of each query end.
    pub ends: Vec<usize>,
    /// The same of one query, ascending.
    pub done: Vec<u32>,
    /// Counts and copies of a sort by list.
    pub counts: Vec<u32>,
    /// See `counts`.
    pub sorted: Vec<Probe>,
}

impl Workspace {
    fn capacity(&self) -> usize {
        4 * self.scores.capacity()
            + 8 * self.near.scores.capacity()
            + self.nearest.iter().map(Nearest::capacity).sum::<usize>()
    }
}

/// A workspace that goes back when it is dropped.
pub struct Loan(Workspace);

impl Loan {
    /// One that was used before, or a new one.
    pub fn take() -> Loan {
        // A lock that was held while the process forked stays locked in the child: do without then.
        Loan(STORE.try_lock().ok().and_then(|mut store| store.pop()).unwrap_or_default())
    }
}

impl std::ops::Deref for Loan {
    type Target = Workspace;

    fn deref(&self) -> &Workspace {
        &self.0
    }
}

impl std::ops::DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut Workspace {
        &mut self.0
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if self.0.capacity() > MOST_BYTES {
            return;
        }
        if let Ok(mut store) = STORE.try_lock()
            && store.len() < KEPT
        {
            store.push(std::mem::take(&mut self.0));
        }
    }
}
