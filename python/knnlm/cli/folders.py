"""Output folders: whole or not at all, the old one kept until the new one is whole, leftovers of a kill cleared."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from knnlm.cli.console import note, refuse_existing, refuse_foreign, warn

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def whole_folder(out: Path, overwrite: bool, inputs: Iterable[Path | str] = ()) -> Iterator[Path]:
    """A sibling folder that becomes `out` at the end, or is removed on any error or Ctrl-C.

    What a killed process left beside `out` is removed first; a former `out` that it had moved away is put back.
    """
    clear_leftovers(out)
    refuse_existing(out, overwrite)
    refuse_foreign(out, inputs)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(out, "partial")
    try:
        yield partial
        take_place(partial, out)
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def take_place(new: Path, out: Path) -> None:
    """Renames the folder `new` to `out` and removes what was there; at any moment one of the two is at `out`.

    Where the system cannot swap two names, there is a moment without `out`; after a kill just then, `whole_folder` puts
    the old one back and `missing` names it.
    """
    if not out.exists():
        new.rename(out)
        return
    if _exchange(new, out):
        shutil.rmtree(new)
        return
    old = _sibling(out, "old")
    out.rename(old)
    try:
        new.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)


def leftovers(out: Path) -> list[Path]:
    """Folders that commands which no longer run left beside `out`: half-written ones, or the former `out` itself."""
    pattern = re.compile(re.escape(f".{out.name}.{_host()}.") + r"(\d+)\.(partial|old)")
    parent = out.parent
    if not parent.is_dir():
        return []
    named = ((path, pattern.fullmatch(path.name)) for path in sorted(parent.iterdir()))
    return [path for path, match in named if match is not None and path.is_dir() and not _runs(int(match[1]))]


def clear_leftovers(out: Path) -> None:
    """Removes `leftovers` and says so; a former `out` goes back to its place if that is empty."""
    for path in leftovers(out):
        if path.suffix == ".old" and not out.exists():
            path.rename(out)
            note(f"{out} is back: a command that was killed had moved it to {path.name}")
            continue
        try:
            shutil.rmtree(path)
        except OSError as error:
            warn(f"{path}, left by a command that was killed, cannot be removed: {error.strerror or error}")
        else:
            note(f"removed {path.name}, left by a command that was killed")


def missing(path: Path) -> str:
    """What is known of a store that is not there: the end of an error message, with what to do."""
    moved = [found for found in leftovers(path) if found.suffix == ".old"]
    if moved:
        return f"a command that was killed had moved it to {moved[0]}: rename that folder back"
    return "make one with knnlm build"


def _sibling(out: Path, kind: str) -> Path:
    return out.with_name(f".{out.name}.{_host()}.{os.getpid()}.{kind}")


def _host() -> str:
    """This machine in a file name: on a shared disk, a process of another one may still run."""
    return re.sub(r"[^\w-]", "-", platform.node()) or "host"


def _runs(process: int) -> bool:
    if process == os.getpid():
        return True
    if sys.platform == "win32":  # os.kill would end the process there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    names = (os.fsencode(one.absolute()), os.fsencode(other.absolute()))
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
