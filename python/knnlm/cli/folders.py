"""Output folders: whole or not at all, the old one kept until the new one is whole, leftovers of a kill cleared."""

from __future__ import annotations

import itertools
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from knnlm.cli.console import note, refuse_existing, refuse_foreign, warn
from knnlm.cli.replacing import REPLACED, kept_from_writers, rename_to_free, swap
from knnlm.staging import force, sync


@contextmanager
def whole_folder(out: Path, overwrite: bool, inputs: Iterable[Path | str] = ()) -> Iterator[Path]:
    """A sibling folder that becomes `out` at the end, or is removed on any error or Ctrl-C.

    What a killed process left beside `out` is removed first; a former `out` that it had moved away is put back. A whole
    folder that may not become `out` is kept beside it.
    """
    clear_leftovers(out)
    refuse_existing(out, overwrite)
    refuse_foreign(out, inputs)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(out, "partial")
    try:
        yield partial
    except BaseException:
        if partial.exists():
            shutil.rmtree(partial)
        raise
    take_place(partial, out, overwrite)


def take_place(new: Path, out: Path, overwrite: bool, found_again: bool = False) -> None:
    """Renames the whole folder `new` to `out`; what is there is removed with `overwrite`, and refused without.

    At any moment, and after lost power, one of the two is at `out`. A store is replaced only while nobody writes to it.
    Where the system cannot swap two names, there is a moment without `out`; after a kill just then, `clear_leftovers`
    puts the old one back and `missing` names it. A former `out` that a kill leaves at `new` is known by its mark.

    What may not become `out` is kept, and it is said where. found_again: the same command finds it at `new`; else it
    gets a name that no command clears.
    """
    from knnlm.datastore import StoreError

    force(new)
    try:
        if rename_to_free(new, out):
            sync(out.parent)
            return
        if not overwrite:
            raise click.UsageError(
                f"output {out} exists already: expected nothing there, found what another command made meanwhile; "
                "move that away"
            )
        with kept_from_writers(out):
            refuse_foreign(out)
            former = swap(new, out, _sibling(out, "old"))
            sync(out.parent)
            _remove(former.rename(_sibling(out, "partial")))
    except (click.UsageError, StoreError, OSError):
        if new.is_dir() and not (new / REPLACED).exists():  # it has not changed places with the old one
            kept = new if found_again else _kept(new, out)
            do = "the same command, run again, puts it in place"
            if not found_again:
                do = f"to put it in place, move {out} away, then: mv {shlex.quote(str(kept))} {shlex.quote(str(out))}"
            note(f"what was made is whole, in {kept}; {out} is as it was; {do}")
        raise


def leftovers(out: Path) -> list[Path]:
    """Folders that commands which no longer run left beside `out`: half-written ones, or the former `out` itself."""
    pattern = re.compile(re.escape(f".{out.name}.{_host()}.") + r"(\d+)\.(partial|old)")
    parent = out.parent
    if not parent.is_dir():
        return []
    named = ((path, pattern.fullmatch(path.name)) for path in sorted(parent.iterdir()))
    return [path for path, match in named if match is not None and path.is_dir() and not _runs(int(match[1]))]


def clear_leftovers(out: Path, new: Path | None = None) -> None:
    """Removes `leftovers` and says so; a former `out` goes back to its place if that is empty.

    new: where something that is to become `out` is made; a former `out` that is there instead is removed too.
    """
    if new is not None and (new / REPLACED).exists():
        new.rename(_sibling(out, "partial"))
        _remove(_sibling(out, "partial"))
    for path in leftovers(out):
        if path.suffix == ".old" and not out.exists():
            path.rename(out)
            note(f"{out} is back: a command that was killed had moved it to {path.name}")
            continue
        if _remove(path):
            note(f"removed {path.name}, left by a command that was killed")


def missing(path: Path) -> str:
    """What is known of a store that is not there: the end of an error message, with what to do."""
    moved = [found for found in leftovers(path) if found.suffix == ".old"]
    if moved:
        return f"a command that was killed had moved it to {moved[0]}: rename that folder back"
    return "make one with knnlm build"


def _kept(new: Path, out: Path) -> Path:
    """Moves a whole folder to a name of its own that is none of `leftovers`, so that no command removes it."""
    names = (f"{out.name}.whole" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
    return next(kept for kept in map(out.with_name, names) if rename_to_free(new, kept))


def _remove(path: Path) -> bool:
    """Removes a folder that nobody needs; False with a warning if that cannot be."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        warn(f"{path}, which nothing needs any more, cannot be removed: {error.strerror or error}")
        return False
    return True


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
