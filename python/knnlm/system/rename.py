"""Putting one folder in the place of another: renames that lose nothing."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

from knnlm.system.own_files import create, remove, sync

REPLACED = "replaced.tmp"
"""Mark in a folder that another one takes the place of: after a kill it tells the former from the new one."""

_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2  # linux/fcntl.h, linux/fs.h


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
