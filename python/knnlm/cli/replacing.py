"""Putting one folder in the place of another: renames that lose nothing, and the lock that keeps writers away."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from knnlm.own_files import create, remove, sync

if sys.platform != "win32":
    import fcntl

REPLACED = "replaced.tmp"
"""Mark in a folder that another one takes the place of: after a kill it tells the former from the new one."""

_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def kept_from_writers(out: Path) -> Iterator[None]:
    """Holds the writer's lock of the store at `out`, as `rust/store/files.rs` takes it; of no store there is none.

    Windows renames no folder that has open files: there a writer needs no lock to be in the way, and ours would be.
    Raises StoreError if another process holds it.
    """
    from knnlm.datastore import StoreError

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
    from knnlm.datastore import StoreError

    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "rb")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreError(f"{path}: expected the lock of a store, found a link; remove it") from error
        raise


def rename_to_free(new: Path, out: Path) -> bool:
    """Renames a folder with something in it; False, with nothing changed, where there is something at `out`."""
    try:
        if _rename_by(_RENAME_NOREPLACE, new, out):
            return True
        if os.path.lexists(out):
            return False
        new.rename(out)  # refused by the system if a folder with something in it is there by now
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    return True


def swap(new: Path, out: Path, aside: Path) -> Path:
    """Puts `new` at `out`; returns where the former `out` is: at `new`, or `aside` where names cannot be swapped."""
    mark = out / REPLACED
    create(mark).close()
    sync(out)
    try:
        if _rename_by(_RENAME_EXCHANGE, new, out):
            return new
        out.rename(aside)
        try:
            new.rename(out)
        except BaseException:
            aside.rename(out)
            raise
    except BaseException:
        remove(mark)
        raise
    return aside


def _rename_by(way: int, old: Path, new: Path) -> bool:
    """Renames in one step as a flag of Linux's renameat2 says; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(old.absolute()), _AT_FDCWD, os.fsencode(new.absolute()), way) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code), os.fspath(old), None, os.fspath(new))
