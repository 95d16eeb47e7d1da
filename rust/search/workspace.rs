//! Memory of a search task, kept for the next one: clearing fresh pages costs more than scanning the codes.

use super::near::{Choice, Near, Probe};
use crate::exact::Nearest;
use crate::index::bytes::ByteRows;
use crate::index::quantiser::Tables;
use std::sync::Mutex;

/// Workspaces that are kept, at most.
const KEPT: usize = 16;
/// Bytes that all of them hold, at most; a workspace that goes beyond is not kept.
const MOST_BYTES: usize = 256 << 20;

/// Those that are kept, with the bytes of each.
static STORE: Mutex<Vec<(usize, Workspace)>> = Mutex::new(Vec::new());

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
    /// Bytes that candidates and tables of a query held, at most.
    largest: usize,
}

impl Workspace {
    /// Bytes that it holds on to, at most: what the queries of the last task hold is looked at, what others held before is
    /// remembered.
    fn capacity(&mut self) -> usize {
        fn of<T>(vec: &Vec<T>) -> usize {
            vec.capacity() * size_of::<T>()
        }
        let used = self.near.shifts.len().min(self.nearest.len()).min(self.tables.len());
        let pairs = self.nearest[..used].iter().zip(&self.tables[..used]);
        let most = pairs.map(|(nearest, tables)| nearest.capacity() + tables.capacity()).max().unwrap_or(0);
        self.largest = self.largest.max(most);
        let Workspace { centred, rotated, bytes, tables, scores, near, products, nearest, entries, .. } = self;
        let Workspace { rounds, cursors, choice, keys, .. } = self;
        let floats = [centred, rotated, scores, products, &near.scores, &near.limits, &near.shifts, &choice.lows];
        let numbers = [&near.lists, cursors, &choice.found, &choice.ignored, &choice.nearest, &choice.done];
        let probes = rounds.iter().chain([&choice.sorted]).map(of).sum::<usize>();
        let ends = of(&near.ends) + of(&choice.ends) + of(&choice.counts) + of(entries);
        let each = nearest.len().max(tables.len()) * self.largest + of(nearest) + of(tables);
        floats.map(of).iter().chain(&numbers.map(of)).chain(&keys.each_ref().map(of)).sum::<usize>()
            + probes
            + ends
            + each
            + bytes.capacity()
    }
}

/// A workspace that goes back when it is dropped.
pub struct Loan(Workspace);

impl Loan {
    /// One that was used before, or a new one.
    pub fn take() -> Loan {
        // A lock that was held while the process forked stays locked in the child: do without then.
        let kept = STORE.try_lock().ok().and_then(|mut store| store.pop());
        Loan(kept.map_or_else(Workspace::default, |(_, workspace)| workspace))
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
        let own = self.0.capacity();
        if let Ok(mut store) = STORE.try_lock()
            && store.len() < KEPT
            && store.iter().map(|(bytes, _)| bytes).sum::<usize>() + own <= MOST_BYTES
        {
            store.push((own, std::mem::take(&mut self.0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_in_all() {
        // Vectors of a task that looked into many lists for many queries.
        let large = || {
            let mut loan = Loan::take();
            loan.near.lists = Vec::with_capacity(MOST_BYTES / 16);
            loan.rounds[0] = Vec::with_capacity(MOST_BYTES / 4 / size_of::<Probe>());
            assert!(loan.0.capacity() >= MOST_BYTES / 2 - 64);
            loan
        };
        let all: Vec<Loan> = (0..5).map(|_| large()).collect();
        drop(all);
        let store = STORE.lock().expect("no panic");
        assert!(store.iter().map(|(bytes, _)| bytes).sum::<usize>() <= MOST_BYTES && store.len() <= KEPT);
        assert!(store.iter().filter(|(_, kept)| kept.near.lists.capacity() >= MOST_BYTES / 16).count() <= 2);
    }
}
