//! Threads of our own: a rayon pool that is created when first needed and survives `fork`.
//!
//! After a fork the child has the pool's memory but not its threads. The process id is kept beside the pools; a child
//! sees that it differs, leaks the dead pools (dropping one would wait for its threads) and makes new ones.

use crate::error::Why;
use crate::{Error, Result};
use rayon::ThreadPool;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

/// A number of threads to work with. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    threads: usize,
    pool: Option<Arc<ThreadPool>>,
}

#[derive(Default)]
struct Cache {
    pid: u32,
    pools: HashMap<usize, Arc<ThreadPool>>,
}

fn cache() -> &'static Mutex<Cache> {
    static CACHE: OnceLock<Mutex<Cache>> = OnceLock::new();
    CACHE.get_or_init(Mutex::default)
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
        // A lock that was held while the process forked stays locked in the child: do without the cache then.
        let Ok(mut cache) = cache().try_lock() else {
            return Ok(Pool { threads, pool: Some(Self::start(threads)?) });
        };
        let pid = std::process::id();
        if cache.pid != pid {
            std::mem::forget(std::mem::take(&mut cache.pools));
            cache.pid = pid;
        }
        let pool = match cache.pools.get(&threads) {
            Some(pool) => pool.clone(),
            None => {
                let pool = Self::start(threads)?;
                cache.pools.insert(threads, pool.clone());
                pool
            }
        };
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
}
