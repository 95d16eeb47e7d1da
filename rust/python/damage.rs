//! What is damaged in a store, as plain values, and the refusal of a store that is.

use crate::store::{self, Problem};
use crate::{Error, Result};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Name, first id, id after the last and damaged sections of a document.
pub type Lost = (Option<String>, u64, u64, Vec<String>);

/// A document that `salvage` drops.
pub fn lost(lost: store::Lost) -> Lost {
    (lost.name, lost.ids.start, lost.ids.end, lost.damaged)
}

/// Each problem in words.
pub fn lines(problems: Vec<Problem>) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

/// Reads every byte of a store.
///
/// # Errors
/// `Format` names all that is damaged; `Interrupted` once `cancel` is set.
pub fn refuse_damaged(path: &Path, cancel: &AtomicBool) -> Result<()> {
    let problems = store::Datastore::verify_path_unless(path, &|_, _, _| (), cancel)?;
    if problems.is_empty() {
        return Ok(());
    }
    let message = format!("expected a sound store, found damage: {}", lines(problems).join("; "));
    Err(Error::Format { path: path.to_path_buf(), message })
}
