//! Calls into the core: interpreter lock released, Ctrl-C answered, progress reported, errors mapped.
//!
//! The core works on a thread of its own. The calling thread sleeps beside it and wakes every tenth of a second to ask
//! Python for signals (only the main thread gets any) and to hand on progress; so callbacks run on the caller's thread
//! and the core needs to know nothing of Python but a flag.

use crate::{Error, Result};
use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long Ctrl-C and progress may wait.
const TICK: Duration = Duration::from_millis(100);

/// What a call may look at while it works.
pub struct Reporter<'r> {
    cancel: &'r AtomicBool,
    shared: &'r Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    done: bool,
    /// Latest numbers of each stage that the caller has not heard of yet, in order of the stages.
    stages: Vec<(String, u64, u64)>,
}

impl Reporter<'_> {
    /// Set once the caller wants to stop.
    pub fn cancel(&self) -> &AtomicBool {
        self.cancel
    }

    /// Notes progress for the caller to hear of.
    pub fn report(&self, stage: &str, done: u64, total: u64) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        match shared.stages.last_mut() {
            Some(last) if last.0 == stage => (last.1, last.2) = (done, total),
            _ => shared.stages.push((stage.to_owned(), done, total)),
        }
    }
}

/// Runs `work` without the interpreter lock.
///
/// # Errors
/// What `work` returns, mapped; the exception of a signal handler (`KeyboardInterrupt`) or of `progress`.
pub fn call<T: Send>(
    py: Python<'_>,
    progress: Option<&Py<PyAny>>,
    work: impl FnOnce(&Reporter) -> Result<T> + Send,
) -> PyResult<T> {
    let (cancel, shared, wake) = (AtomicBool::new(false), Mutex::new(Shared::default()), Condvar::new());
    let mut raised: Option<PyErr> = None;
    let outcome = py.detach(|| {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let _finish = Finish { shared: &shared, wake: &wake };
                work(&Reporter { cancel: &cancel, shared: &shared })
            });
            let mut done = false;
            while !done {
                let guard = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let (mut guard, _) =
                    wake.wait_timeout_while(guard, TICK, |shared| !shared.done).unwrap_or_else(PoisonError::into_inner);
                done = guard.done;
                let stages = std::mem::take(&mut guard.stages);
                drop(guard);
                if raised.is_none() && (!done || !stages.is_empty()) {
                    raised = Python::attach(|py| listen(py, progress, stages)).err();
                    cancel.fetch_or(raised.is_some(), Ordering::Relaxed);
                }
            }
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    });
    match (raised, outcome) {
        (None, outcome) => Ok(outcome?),
        (Some(exception), Err(Error::Interrupted)) => Err(exception),
        // What went wrong meanwhile is not hidden by it.
        (Some(exception), Err(error)) => {
            exception.set_cause(py, Some(error.into()));
            Err(exception)
        }
        // Too late to stop: whoever tries again should know.
        (Some(exception), Ok(_)) => {
            let note = "the call had ended by then: what it was to do is done";
            let _ = exception.value(py).call_method1("add_note", (note,)); // from Python 3.11 on
            Err(exception)
        }
    }
}

/// [`call`] for work that is over before anybody could press Ctrl-C: on the calling thread, which saves starting one.
pub fn brief<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    Ok(py.detach(work)?)
}

/// Signals and callbacks, with the interpreter lock.
fn listen(py: Python<'_>, progress: Option<&Py<PyAny>>, stages: Vec<(String, u64, u64)>) -> PyResult<()> {
    py.check_signals()?;
    if let Some(progress) = progress {
        for stage in stages {
            progress.call1(py, stage)?;
        }
    }
    Ok(())
}

/// Says that the work has ended, also when it panics.
struct Finish<'f> {
    shared: &'f Mutex<Shared>,
    wake: &'f Condvar,
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).done = true;
        self.wake.notify_one();
    }
}
