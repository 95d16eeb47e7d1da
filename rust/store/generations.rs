//! From one generation of a store to the next: what is added, the lock, and what is published.
//!
//! Whatever fails, the store is at one generation or the other, and its object with it.

use super::datastore::{Datastore, Writing};
use super::format::lock::{FolderId, Lock};
use super::format::manifest::Manifest;
use super::format::values::ValueRows;
use super::read::snapshot::{Loaded, Snapshot};
use super::write::collect::collect;
use super::write::writer::Writer;
use crate::error::Why;
use crate::keys::KeyRows;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

impl Datastore {
    /// What changes since the last call have left as it was, such as damaged lists that they did not join: nothing is lost by
    /// it, but somebody should see to it.
    pub fn take_notices(&self) -> Vec<Error> {
        self.notices.take()
    }

    /// Adds entries and returns their ids; they are visible after [`Self::commit`]. Consecutive calls with the same
    /// document name extend that document; `None` = entries without a name. If an argument is wrong, nothing is added.
    ///
    /// # Errors
    /// `Argument` naming the first bad row; `State` if another writer holds the store; `Io`, after which what was
    /// added since the last commit is lost and only [`Self::discard`] is left.
    pub fn add(
        &self,
        keys: KeyRows,
        values: ValueRows,
        document: Option<&str>,
        metadata: Option<&str>,
    ) -> Result<Range<u64>> {
        self.write(|writer| writer.add(keys, values, document, metadata))
    }

    /// Does something with the writer, which is started, and takes the lock, if there is none.
    pub(crate) fn write<T>(&self, act: impl FnOnce(&mut Writer) -> Result<T>) -> Result<T> {
        let mut guard = self.writing()?;
        let fresh = guard.is_none();
        let writing = match &mut *guard {
            Some(writing) => writing,
            none => {
                let (lock, base) = (self.begin()?, self.snapshot());
                base.check_anew();
                none.insert(Writing { writer: Writer::start(&self.folder, base, &self.notices)?, lock })
            }
        };
        let outcome = act(&mut writing.writer);
        if fresh && outcome.is_err() && !writing.writer.has_failed() {
            self.abandon(&mut guard); // a refused first batch must not leave the store locked
        }
        outcome
    }

    /// Publishes what was added, less what was superseded, as the next generation; nothing happens if nothing was.
    ///
    /// # Errors
    /// `Io`, after which the store is as at the last commit; `State` if an `add` had failed.
    pub fn commit(&self) -> Result<()> {
        self.commit_held(&mut *self.writing()?)
    }

    pub(crate) fn commit_held(&self, guard: &mut Option<Writing>) -> Result<()> {
        let Some(writing) = guard.as_ref() else { return Ok(()) };
        if writing.writer.has_failed() {
            // Stays until discarded: silence here would hide the loss.
            return Err(writing.writer.failure());
        }
        let Some(Writing { writer, lock }) = guard.take() else { return Ok(()) };
        let committed = lock.check(&self.folder).and_then(|()| writer.commit());
        let outcome = committed.and_then(|manifest| manifest.map_or(Ok(()), |manifest| self.switch(manifest)));
        match outcome {
            Ok(()) => self.sweep(&lock),
            Err(_) => self.recover(&lock),
        }
        outcome
    }

    /// Forgets what was added or superseded since the last commit.
    pub fn discard(&self) {
        if let Ok(mut guard) = self.writing() {
            self.abandon(&mut guard); // what a forked child did not begin is not its to give up
        }
    }

    fn abandon(&self, guard: &mut Option<Writing>) {
        if let Some(Writing { writer, lock }) = guard.take() {
            drop(writer); // closes its files: Windows removes no open ones
            self.sweep(&lock);
        }
    }

    /// Entries added since the last commit.
    pub fn pending(&self) -> u64 {
        self.writing().ok().and_then(|guard| guard.as_ref().map(|w| w.writer.pending())).unwrap_or(0)
    }

    /// Commits what was added, takes the lock and publishes the manifest that `next` makes of the newest generation; none
    /// = nothing to do. Whatever fails, the store is at one generation or the other, and this object with it.
    pub(crate) fn publish_next(&self, next: impl FnOnce(&Snapshot) -> Result<Option<Manifest>>) -> Result<()> {
        let mut guard = self.writing()?;
        self.commit_held(&mut guard)?;
        let lock = self.begin()?;
        self.publish_locked(&lock, next)
    }

    /// The same for a caller that holds the lock and has committed.
    pub(crate) fn publish_locked(
        &self,
        lock: &Lock,
        next: impl FnOnce(&Snapshot) -> Result<Option<Manifest>>,
    ) -> Result<()> {
        let snapshot = self.snapshot();
        snapshot.check_anew();
        let outcome = next(&snapshot).and_then(|manifest| match manifest {
            Some(manifest) => {
                lock.check(&self.folder)?;
                manifest.publish(&self.folder).and_then(|()| self.switch(manifest))
            }
            None => Ok(()),
        });
        if outcome.is_err() {
            self.recover(lock);
        }
        outcome
    }

    /// Takes the lock, or shares the one that this object holds, moves to the newest generation, removes what earlier
    /// writers left.
    ///
    /// # Errors
    /// `State` if another writer holds the store, or another store is in its place; `Format` for damaged files; `Io`.
    pub(crate) fn begin(&self) -> Result<Arc<Lock>> {
        let held = self.held().upgrade();
        let lock = held.map_or_else(|| self.folder.lock().map(Arc::new), Ok)?;
        lock.check(&self.folder)?;
        let (own, newest) = (self.snapshot(), Manifest::newest(&self.folder)?);
        let newest = newest.map(|generation| Manifest::read(&self.folder, generation)).transpose()?;
        if newest.as_ref().is_none_or(|newest| !newest.same(&own.manifest)) {
            let moved = own.folder_id.is_some_and(|id| FolderId::at(&self.folder) != Some(id));
            // One store counts its generations up.
            if newest.is_some_and(|newest| moved || newest.generation <= own.manifest.generation) {
                return Err(Error::state(
                    Why::Replaced,
                    format!(
                        "{}: expected generation {} of the store that was opened or a later one, found another store in its place; nothing was written: open it again",
                        self.path().display(),
                        own.manifest.generation
                    ),
                ));
            }
            self.refresh()?;
        }
        self.sweep(&lock);
        Ok(lock)
    }

    /// Removes what the generation of this object does not name, if the folder is still its own.
    pub(crate) fn sweep(&self, lock: &Lock) {
        if lock.is_of(&self.folder) {
            let _ = collect(&self.folder, &self.snapshot().manifest);
        }
    }

    /// After an error while publishing: on disk either generation may be the newest if the very last step failed. Looks,
    /// and removes what the other one left.
    pub(crate) fn recover(&self, lock: &Lock) {
        if lock.is_of(&self.folder) {
            let _ = self.refresh();
        }
        self.sweep(lock);
    }

    /// After a manifest was published: switches to it and removes what it does not name.
    pub(crate) fn switch(&self, manifest: Manifest) -> Result<()> {
        let before = self.snapshot();
        let loaded = self.resident.then_some(Loaded { before: Some(&before) });
        let snapshot = Arc::new(Snapshot::of_as(&self.folder, manifest, loaded)?);
        self.snapshot.store(snapshot.clone());
        drop(before); // Windows removes no file that is mapped
        let _ = collect(&self.folder, &snapshot.manifest);
        Ok(())
    }

    pub(crate) fn writing(&self) -> Result<MutexGuard<'_, Option<Writing>>> {
        self.check_process()?;
        Ok(self.writing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The lock that [`Self::hold`] took with this object, as long as it is held.
    pub(crate) fn held(&self) -> MutexGuard<'_, Weak<Lock>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses to write in a forked child: locks may be held by threads that it does not have, and the writer's lock is the
    /// parent's.
    fn check_process(&self) -> Result<()> {
        let own = std::process::id();
        if self.process == own {
            return Ok(());
        }
        Err(Error::state(
            Why::Forked,
            format!(
                "{}: expected to write from process {}, which opened the store, found its forked child {own}; open it again in this process",
                self.path().display(),
                self.process
            ),
        ))
    }
}
