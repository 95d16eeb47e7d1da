"""Output folders: whole or not at all, the old one kept until the new one is whole, leftovers of a kill cleared."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from knnlm.store.lock import kept_from_writers
from knnlm.system.log import LOG
from knnlm.system.making import make_with_parents
from knnlm.system.own_files import (
    MODEL,
    STORE,
    force,
    is_file,
    is_folder,
    leftovers,
    remove,
    remove_tree,
    sibling,
    sync,
)
from knnlm.system.rename import REPLACED, rename_to_free, swap
from knnlm.system.usage import UsageError


@contextmanager
def whole_folder(out: Path, overwrite: bool, inputs: Iterable[os.PathLike[str] | str] = ()) -> Iterator[Path]:
    """A sibling folder that becomes `out` at the end, or is removed on any error or Ctrl-C.

    What a killed process left beside `out` is removed first; a former `out` that it had moved away is put back. A whole
    folder that may not become `out` is kept beside it.
    """
    clear_leftovers(out)
    refuse_existing(out, overwrite)
    refuse_foreign(out, inputs)
    make_with_parents(out.parent)
    partial = sibling(out, "partial")
    remove_tree(partial)  # nobody else has this name
    try:
        yield partial
    except BaseException:
        remove_tree(partial)
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
    from knnlm.store.datastore import StoreError

    force(new)
    try:
        if rename_to_free(new, out):
            sync(out.parent)
            return
        if not overwrite:
            raise UsageError(
                f"output {out} exists already: expected nothing there, found what another command made meanwhile; "
                "move that away"
            )
        with kept_from_writers(out):
            refuse_foreign(out)
            aside = sibling(out, "old")
            if not is_folder(aside):
                remove(aside)
            former = swap(new, out, aside)
            sync(out.parent)
            _remove(_aside(former, out))
    except (UsageError, StoreError, OSError):
        if is_folder(new) and not is_file(new / REPLACED):  # it has not changed places with the old one
            kept = new if found_again else _kept(new, out)
            do = "the same command, run again, puts it in place"
            if not found_again:
                do = f"to put it in place, move {out} away, then: mv {shlex.quote(str(kept))} {shlex.quote(str(out))}"
            LOG.warning(f"what was made is whole, in {kept}; {out} is as it was; {do}")
        raise


def clear_leftovers(out: Path, new: Path | None = None) -> None:
    """Removes `leftovers` and says so; a former `out` goes back to its place if that is empty.

    new: where something that is to become `out` is made; a former `out` that is there instead is removed too.
    """
    if new is not None and is_folder(new) and is_file(new / REPLACED):
        _remove(_aside(new, out))
    for path in leftovers(out):
        if path.suffix == ".old" and is_folder(path) and not out.exists():
            path.rename(out)
            LOG.info(f"{out} is back: a command that was killed had moved it to {path.name}")
            continue
        if _remove(path):
            LOG.info(f"removed {path.name}, left by a command that was killed")


def _kept(new: Path, out: Path) -> Path:
    """Moves a whole folder to a name of its own that is none of `leftovers`, so that no command removes it."""
    names = (f"{out.name}.whole" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
    return next(kept for kept in map(out.with_name, names) if rename_to_free(new, kept))


def _aside(path: Path, out: Path) -> Path:
    """Moves a folder that is to go where `leftovers` finds it if this process is killed."""
    aside = sibling(out, "partial")
    if path != aside:
        remove_tree(aside)
    return path.rename(aside)


def _remove(path: Path) -> bool:
    """Removes what nobody needs; False with a warning if that cannot be."""
    try:
        remove_tree(path)
    except OSError as error:
        LOG.warning(f"{path}, which nothing needs any more, cannot be removed: {error.strerror or error}")
        return False
    return True


def place_of(given: Path) -> Path:
    """Where an output folder is made: of a link, what it leads to, so that the link stays; `.` and `..` by their names.

    Raises UsageError for what leads nowhere.
    """
    if not given.is_symlink() and given.name not in ("", ".."):
        return given
    place = Path(os.path.realpath(given))
    if place.is_symlink() or not place.parent.is_dir():
        raise UsageError(
            f"expected a link that leads to a folder, or to a free name in one that is there, found that {given} "
            f"leads to {place}; make {place.parent}, or remove the link"
        )
    if not place.name:
        raise UsageError(f"expected a folder with a name, found {place}; choose another path")
    return place


def refuse_existing(path: Path, overwrite: bool, what: str = "output") -> None:
    """Raises UsageError if `path` is there and may not be replaced."""
    if os.path.lexists(path) and not overwrite:
        raise UsageError(
            f"{what} {path} exists already: choose another name, or give overwrite=True (in commands --overwrite)"
        )


def refuse_foreign(folder: Path, inputs: Iterable[os.PathLike[str] | str] = ()) -> None:
    """Raises UsageError if replacing `folder` would remove what knnlm did not write, or an input."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: only stores and models are replaced (overwrite)")
    if folder.is_dir() and folder.samefile(os.curdir):
        raise UsageError(
            f"{folder} is the folder that this command runs in, which would be removed: expected another one; "
            f"go up (cd {folder.resolve().parent}) and give {folder.resolve().name} there, or choose another name"
        )
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() or not (STORE.fullmatch(path.name) or MODEL.fullmatch(path.name)):
            raise UsageError(
                f"{folder} holds {path.name}, which is not of a store or model: to replace it would lose that; "
                "move it away or choose another name"
            )
    for source in inputs:
        if folder.resolve() in (Path(source).resolve(), *Path(source).resolve().parents):
            raise UsageError(f"to replace {folder} would remove the input {source}; choose another name")
