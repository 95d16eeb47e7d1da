//! Threads of our own: a rayon pool that is created when first needed and survives `fork`.
//!
//! After a fork the child has the pools' memory but not their threads, and a lock that another thread held stays taken. So
//! pools and their lock belong to a process; a child finds those of another, leaks them (dropping a pool would wait for
//! its threads) and makes its own. Callers of one process wait for each other while a pool starts.

use crate::error::Why;
use crate::{Error, Result};
use arc_swap::ArcSwapOption;
use rayon::ThreadPool;
use std::sync::{Arc, Mutex, PoisonError};

/// Pools that are kept, at most: of the numbers of threads that were asked for last.
const KEPT: usize = 8;

/// A number of threads to work with. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    threads: usize,
    pool: Option<Arc<ThreadPool>>,
}

/// The pools of a process, by their number of threads; those used last are the last.
struct Pools {
    process: u32,
    pools: Mutex<Vec<(usize, Arc<ThreadPool>)>>,
}

static POOLS: ArcSwapOption<Pools> = ArcSwapOption::const_empty();

/// Those of this process.
fn pools() -> Arc<Pools> {
    let process = std::process::id();
    loop {
        let there = POOLS.load();
        if let Some(own) = there.as_ref().filter(|pools| pools.process == process) {
            return own.clone();
        }
        let own = Arc::new(Pools { process, pools: Mutex::default() });
        let before = POOLS.compare_and_swap(&there, Some(own));
        if before.as_ref().map(Arc::as_ptr) == there.as_ref().map(Arc::as_ptr) {
            std::mem::forget(before.clone());
        }
    }
}

impl Pool {
    /// The process's pool of `threads` threads; `None` = one per core. One thread means the caller's own.
    pub fn get(threads: Option<usize>) -> Result<Pool> {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = threads.unwrap_or_else(cores);
        if threads == 0 || threads > 4096 {
            return Err(Error::Argument(format!("threads must be from 1 to 4096, found {threads}")));
        }
        if threads == 1 {
            return Ok(Pool { threads, pool: None });
        }
        let shared = pools();
        let mut pools = shared.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = match pools.iter().position(|(n, _)| *n == threads) {
            Some(at) => pools.remove(at).1,
            None => Self::start(threads)?,
        };
        pools.push((threads, pool.clone()));
        let unused = (pools.len() > KEPT).then(|| pools.remove(0));
        drop(pools);
        drop(unused); // its threads end once nobody uses them
        Ok(Pool { threads, pool: Some(pool) })
    }

    fn start(threads: usize) -> Result<Arc<ThreadPool>> {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("knnlm-{i}"))
            .build()
            .map(Arc::new)
            .map_err(|e| Error::state(Why::Resources, format!("cannot start {threads} threads: {e}; ask for fewer")))
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `work(i)` for every `i` in `0..n`, in any order, on the pool's threads; results in order of `i`.
    pub fn map<T: Send>(&self, n: usize, work: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        use rayon::prelude::*;
        match &self.pool {
            Some(pool) if n > 1 => pool.install(|| (0..n).into_par_iter().with_max_len(1).map(work).collect()),
            _ => (0..n).map(work).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_keeps_the_order() {
        for threads in [1, 2, 5] {
            let pool = Pool::get(Some(threads)).expect("threads start");
            assert_eq!(pool.threads(), threads);
            assert_eq!(pool.map(100, |i| i * i), (0..100).map(|i| i * i).collect::<Vec<_>>());
        }
    }

    #[test]
    fn zero_threads_is_an_error() {
        assert!(matches!(Pool::get(Some(0)), Err(Error::Argument(_))));
    }

    /// Threads of this process that are ours.
    #[cfg(target_os = "linux")]
    fn own_threads() -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").expect("tasks").map(|task| task.expect("task").path());
        let name = |task: std::path::PathBuf| std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        tasks.map(name).filter(|name| name.starts_with("knnlm-")).count()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn callers_that_overlap_share_one_pool_and_few_are_kept() {
        const THREADS: usize = 37; // a number that no other test asks for
        let (before, barrier) = (own_threads(), std::sync::Barrier::new(24));
        let pools: Vec<Pool> = std::thread::scope(|scope| {
            let get = || {
                barrier.wait();
                Pool::get(Some(THREADS)).expect("threads start")
            };
            let all: Vec<_> = (0..24).map(|_| scope.spawn(get)).collect();
            all.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let first = pools[0].pool.as_ref().expect("a pool");
        assert!(pools.iter().all(|pool| pool.pool.as_ref().is_some_and(|pool| Arc::ptr_eq(pool, first))));
        // Other tests start and end pools meanwhile, none as large as a second one of these.
        assert!(own_threads() < before + 2 * THREADS, "{} after {before}", own_threads());
        let shared = super::pools();
        (40..40 + KEPT).for_each(|threads| drop(Pool::get(Some(threads)).expect("threads start")));
        let kept = shared.pools.lock().expect("no panic");
        assert!(kept.len() <= KEPT && kept.iter().all(|(threads, _)| *threads != THREADS));
    }
}
