"""Opening a store that somebody named: what to do where there is none, or what was given is none."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from knnlm.store.datastore import Datastore
from knnlm.system.counted import counted
from knnlm.system.log import LOG
from knnlm.system.own_files import is_folder, leftovers


def is_store(path: Path) -> bool:
    """Whether the folder has a store's manifest."""
    return path.is_dir() and any(path.glob("manifest-*.json"))


def open_store(path: Path) -> Datastore:
    """The store at `path`; raises FileNotFoundError with what to do where there is none.

    Raises ValueError for attributes that nobody can read: now, and not after the work of a command.
    """
    if not path.exists():
        raise FileNotFoundError(f"expected a store at {path}, found nothing there: {missing(path)}")
    store = Datastore.open(path)
    try:
        _ = store.attributes
    except ValueError:
        store.close()
        raise
    if LOG.isEnabledFor(logging.DEBUG):
        _tell(store)
    return store


def _tell(store: Datastore) -> None:
    """Tell the logger what was opened."""
    info = store.info()
    index = f"index of {counted(info['nlist'], 'list')}" if info["nlist"] else "no index, all keys are scanned"
    LOG.debug(
        "store %s: %s in %s, dimension %s, generation %s, %s, raw keys kept: %s",
        store.path,
        counted(info["n"], "entry"),
        counted(info["documents"], "document"),
        info["dim"],
        info["generation"],
        index,
        info["keep_keys"] or "no",
    )


def as_store(store: Any) -> Datastore:
    """A `Datastore` as it is, or the one at a path. Raises TypeError for anything else."""
    if isinstance(store, Datastore):
        return store
    return open_store(as_folder(store))


def as_folder(store: Any) -> Path:
    """The path of a store. Raises TypeError for what is none."""
    if not isinstance(store, (str, os.PathLike)) or not os.fspath(store):
        found = "an empty path" if isinstance(store, str) else f"a {type(store).__name__}"
        raise TypeError(f"store: expected the path of its folder, found {found}")
    return Path(store)


def missing(path: Path) -> str:
    """What is known of a store that is not there: the end of an error message, with what to do."""
    moved = [found for found in leftovers(path) if found.suffix == ".old" and is_folder(found)]
    if moved:
        return f"a command that was killed had moved it to {moved[0]}: rename that folder back"
    return "make one with KNNLM.build or Datastore.create (in commands knnlm build)"
