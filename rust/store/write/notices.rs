//! What a writer left as it was, and the caller should hear of: nothing was lost by it.

use crate::Error;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by a store and its writers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notices(Arc<Mutex<Vec<Error>>>);

impl Notices {
    /// Adds one, if there is one.
    pub(crate) fn note(&self, notice: Option<Error>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(notice);
    }

    /// Those since the last call.
    pub(crate) fn take(&self) -> Vec<Error> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
