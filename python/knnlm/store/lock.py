"""The writer's lock of a store, for what replaces the store as a whole."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from knnlm.store.datastore import StoreError

if sys.platform != "win32":
    import fcntl


@contextmanager
def kept_from_writers(out: Path) -> Iterator[None]:
    """Holds the writer's lock of a store at `out`, as `rust/store/format/files.rs` takes it; else there is none.

    Windows renames no folder that has open files: there a writer needs no lock to be in the way, and ours would be.
    Raises StoreError if another process holds it.
    """
    if sys.platform == "win32" or not any(out.glob("manifest-*.json")):
        yield
        return
    with _lock_file(out / "lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = True
        else:  # another command may have replaced the store between the two calls
            held = not os.path.samestat(os.fstat(lock.fileno()), (out / "lock").stat())
        if held:
            raise StoreError(
                f"{out}: another writer holds this store, expected none while it is replaced; wait until it has "
                "committed or closed, then try again (reading and searching need no lock)"
            )
        yield


def _lock_file(path: Path) -> BinaryIO:
    """The file that a writer locks; raises StoreError for a link, which leads to no lock of ours."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "rb")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreError(f"{path}: expected the lock of a store, found a link; remove it") from error
        raise
