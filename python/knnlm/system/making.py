"""Making: a folder is made; where nothing can be, as in /proc, the error says so, and not that a file is missing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOWHERE = (errno.ENOENT, errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What systems say of a folder in which nobody can make anything, whatever the rights and the room."""


@contextmanager
def making(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around what makes the folder `path`: such an error names the folder that takes nothing, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOWHERE:
            raise
        there = _there(Path(path))
        said = f"{os.strerror(error.errno)}; nothing can be made in {there}: choose a folder on a disk"
        raise OSError(error.errno, said, os.fspath(path)) from error


def make_with_parents(folder: Path) -> None:
    """Make a folder and those above it, where they are not there."""
    with making(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _there(path: Path) -> Path:
    """The lowest folder above a path that is there."""
    return next((folder for folder in path.absolute().parents if folder.is_dir()), Path(path.anchor))
