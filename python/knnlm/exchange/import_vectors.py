"""Import: what other programs keep for a kNN language model becomes a store.

Files of keys and values (`vector_files`), or a FAISS index and its values. An index is read by a process of its own
(`faiss_index`), says what it is, and gives its ids and its vectors, decoded where it is lossy. Nothing is at the
store's place before the first vectors and all ids and values are found to be sound, and nothing is left there by an
error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from knnlm.exchange.faiss_index import FaissIndex
from knnlm.exchange.vector_files import ROWS, open_column, open_memmaps, value_width, written_rows
from knnlm.store.datastore import Datastore, StoreError
from knnlm.system.counted import counted
from knnlm.system.own_files import STORE, is_folder, remove, remove_tree, sibling

Matched = Literal["row", "id", "order of ids", "ids file"]
Progress = Callable[[str, int, int], None]
Blocks = Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]]
"""Keys (m, d), values (m,), and the row of each in the file that an error names (m,)."""


@dataclass(frozen=True)
class Imported:
    """What was imported.

    dropped: rows at the end that were never written (an all-zero key). ignored: rows whose value was to be left out.
    unused: values without a vector. lossy: keys are what an index decodes. matched: how values belong to vectors. kind:
    of a FAISS index, its types.
    """

    entries: int
    dim: int
    dropped: int
    lossy: bool
    source: str
    ignored: int = 0
    unused: int = 0
    matched: Matched = "row"
    kind: str | None = None


def import_memmaps(
    path: str | Path,
    keys: str | Path,
    values: str | Path,
    *,
    dim: int | None = None,
    key_dtype: str | None = None,
    value_dtype: str | None = None,
    metric: Literal["l2", "ip"] = "l2",
    ignore: int | None = None,
    attributes: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Make a store at `path` from a file of keys and one of values, raw or .npy; build its index afterwards.

    Rows at the end whose key is all zeros were allocated but never written by the program that made the files; they are
    left out. ignore: a value whose rows are left out, such as −100. Values that 32 bits do not hold make a store of
    64-bit values. All entries are one document: such files do not say where a text begins.

    Raises:
        ValueError: files whose shape is not clear (see `open_memmaps`), keys that are not finite, values that are no
            integers or below 0 (which a 16-bit file holds where larger ones did not fit).
        StoreError: a store is there, and `overwrite` is not given; another process writes to it. What was at `path`
            stays as it was.
    """
    _refuse_existing(path, overwrite)
    rows, column = open_memmaps(keys, values, dim=dim, key_dtype=key_dtype, value_dtype=value_dtype)
    n = written_rows(rows)
    if n == 0:
        zeros = counted(len(rows), "row")
        raise ValueError(f"{keys}: expected keys, found {zeros} of zeros only, as of files never written to")
    width = value_width(values, column[:n], ignore)
    kept: Any = str(rows.dtype.newbyteorder("=")) if rows.dtype in (np.float16, np.float32) else "float32"

    def blocks() -> Blocks:
        for start in range(0, n, ROWS):
            stop = min(n, start + ROWS)
            yield rows[start:stop], column[start:stop], np.arange(start, stop)

    read_as = f"it was read as {rows.dtype} of dimension {rows.shape[1]}: are these its type and dimension?"
    made = dict(dim=rows.shape[1], metric=metric, keep_keys=kept, value_dtype=width, attributes=attributes)
    done, ignored = _import(path, overwrite, "memmap", blocks(), ignore, n, f"{keys}: row", read_as, progress, made)
    return Imported(done, rows.shape[1], len(rows) - n, False, str(keys), ignored)


def import_faiss(
    path: str | Path,
    index: str | Path,
    values: str | Path,
    *,
    ids: str | Path | None = None,
    value_dtype: str | None = None,
    keep_keys: Literal["float16", "float32"] | None = None,
    ignore: int | None = None,
    attributes: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Make a store at `path` from a FAISS index and the values of its vectors; build its index afterwards.

    A vector's value is the row of `values` that its FAISS id names, as in `values[ids_found_by_faiss]`: the i-th for
    the i-th vector that was added without ids of its own. Where ids are not rows of `values`:

    - consecutive ids that begin elsewhere, and as many values: the i-th value belongs to the i-th id, ascending;
    - `ids`, a file of one id for each row of `values`, says whose it is; values of ids that the index does not have
      (any more) are left out.

    Entries are stored in the order of the rows of `values`.

    Vectors of an index that quantises come back decoded: the store is then as exact as that index was, not as the keys.
    So are those behind a transformation (OPQ, PCA …), in the space of the queries. FAISS reads the index in a process
    of its own, in memory as a whole; here memory is bounded but for 24 bytes a vector, where ids do not count from 0.

    Args:
        path: the store.
        index: a file of `faiss.write_index`; inverted lists in a file of their own are looked for beside it.
        values: a raw file or an .npy file `(n,)` of integers; those that 32 bits do not hold make a store of 64-bit
            values.
        ids: a raw file (int64) or an .npy file `(n,)`.
        value_dtype: type of raw values, where their length leaves a choice.
        keep_keys: by default float32 where the index holds the vectors exactly, else float16.
        ignore: a value whose vectors are left out, such as −100.
        attributes, overwrite, progress: as of `import_memmaps`.

    Raises:
        ImportError: no FAISS. ValueError: an index that gives no vectors, or whose ids or values do not fit (ids that
            repeat, are negative or name no value).
        FaissError: a file that FAISS refuses, or over which its process dies.
        StoreError: as of `import_memmaps`. What was at `path` stays as it was.
    """
    _refuse_existing(path, overwrite)
    with FaissIndex(index, most=os.path.getsize(values)) as found:
        n = found.n
        if n == 0:
            raise ValueError(f"{index}: expected vectors, found an index of none ({found.kind})")
        column = open_column(values, n, value_dtype)
        given = None if ids is None else (ids, open_column(ids, n, "int64", "id"))
        rows, matched = _rows_of(found, values, len(column), given)
        width = value_width(values, column if rows is None else column[rows], ignore)
        order = None if rows is None else np.argsort(rows, kind="stable")

        def blocks() -> Blocks:
            def ask(start: int) -> NDArray[np.int64]:
                stop = min(n, start + ROWS)
                places = np.arange(start, stop) if order is None else order[start:stop]
                found.ask(places)
                return places

            places = ask(0)
            for start in range(0, n, ROWS):
                keys, own = found.rows(), places if rows is None else rows[places]
                if start + ROWS < n:
                    places = ask(start + ROWS)
                yield keys, column[own], own

        kept = keep_keys or ("float32" if found.exact else "float16")
        made = dict(dim=found.dim, metric=found.metric, keep_keys=kept, value_dtype=width, attributes=attributes)
        where, hint = f"{index}: vector of value", f"{found.kind} gave it"
        done, ignored = _import(path, overwrite, "faiss", blocks(), ignore, n, where, hint, progress, made)
        return Imported(done, found.dim, 0, not found.exact, str(index), ignored, len(column) - n, matched, found.kind)


def _rows_of(
    found: FaissIndex, values: str | Path, count: int, given: tuple[str | Path, NDArray[Any]] | None
) -> tuple[NDArray[np.int64] | None, Matched]:
    """The row of the values (n,) of each place, None where they are the same; and how that was found."""
    n, ids = found.n, found.ids
    if ids is not None:
        ascending = np.sort(ids)
        twice = np.flatnonzero(ascending[1:] == ascending[:-1])
        if len(twice):
            raise ValueError(
                f"{found.path}: expected an id of its own for each vector, found id {ascending[twice[0]]} more than "
                f"once, and {len(twice) - 1:,} more repetitions: a value cannot be told to belong to one of them"
            )
        if ascending[0] < 0:
            raise ValueError(
                f"{found.path}: expected ids of 0 or more, found {ascending[0]}: FAISS itself takes −1 for no vector"
            )
    if given is not None:
        return _rows_by(found, values, count, *given), "ids file"
    if ids is None:
        if count != n:
            raise ValueError(
                f"{values}: expected a value for each of {n:,} vectors with ids 0 to {n - 1}, found {count:,}"
            )
        return None, "row"
    if ascending[-1] < count:
        return ids, "id"
    if count == n and ascending[-1] - ascending[0] == n - 1:
        return ids - ascending[0], "order of ids"
    raise ValueError(
        f"{values}: expected a value for each id of {found.path}, found {count:,} values and ids from "
        f"{ascending[0]} to {ascending[-1]}, no rows of it: give ids (in commands --ids), a file with the id of each "
        "value"
    )


def _rows_by(
    found: FaissIndex, values: str | Path, count: int, path: str | Path, given: NDArray[Any]
) -> NDArray[np.int64]:
    """The row of each place (n,), by the ids (m,) of the rows of the values."""
    if len(given) != count:
        raise ValueError(f"{path}: expected an id for each of {count:,} values of {values}, found {len(given):,}")
    order = np.argsort(given, kind="stable")
    ascending = np.asarray(given)[order]
    twice = np.flatnonzero(ascending[1:] == ascending[:-1])
    if len(twice):
        raise ValueError(f"{path}: expected each id once, found {ascending[twice[0]]} more than once")
    wanted = np.arange(found.n) if found.ids is None else found.ids
    at = np.minimum(np.searchsorted(ascending, wanted), count - 1)
    gone = np.flatnonzero(ascending[at] != wanted)
    if len(gone):
        raise ValueError(
            f"{path}: expected every id of {found.path}, found none for {len(gone):,} of its {found.n:,} vectors, such "
            f"as that of id {wanted[gone[0]]}"
        )
    return np.asarray(order[at], np.int64)


def _import(
    path: str | Path,
    overwrite: bool,
    kind: str,
    blocks: Blocks,
    ignore: int | None,
    n: int,
    where: str,
    hint: str,
    progress: Progress | None,
    made: dict[str, Any],
) -> tuple[int, int]:
    """Entries stored and rows left out. where: what names a row in an error; hint: what may be wrong there."""
    made["attributes"] = {**(made["attributes"] or {}), "imported": {"kind": kind}}

    def sound() -> Blocks:
        for keys, values, rows in blocks:
            fine = np.isfinite(keys).all(axis=1)
            if not fine.all():
                at = int(np.argmin(fine))
                wrong = float(np.asarray(keys[at])[~np.isfinite(keys[at])][0])
                raise ValueError(f"{where} {rows[at]}: expected finite numbers, found {wrong}; {hint}")
            yield keys, values, rows

    checked = sound()
    first = next(checked)  # whatever is wrong from the start is found before anything is written
    done = ignored = 0
    with _new_store(path, overwrite, made) as store:
        for keys, values, rows in chain([first], checked):
            if ignore is not None:
                wanted = np.asarray(values) != ignore
                ignored += len(values) - int(wanted.sum())
                keys, values, rows = keys[wanted], values[wanted], rows[wanted]
            if len(values):
                try:
                    store.add(keys, values, document="imported")
                except ValueError as error:
                    raise ValueError(f"{where}s {rows[0]} to {rows[-1]}: {error}") from error
            done += len(values)
            if progress is not None:
                progress("import", done + ignored, n)
        store.commit()
    return done, ignored


def _refuse_existing(path: str | Path, overwrite: bool) -> None:
    if not overwrite and any(Path(path).glob("manifest-*.json")):
        raise StoreError(
            f"{path}: expected no store, found one; choose another place, or give overwrite=True (in commands "
            "--overwrite) to replace it"
        )


def _of_store(file: Path) -> bool:
    return bool(STORE.fullmatch(file.name)) or (file.name in ("parts", "retraining") and is_folder(file))


@contextmanager
def _new_store(path: str | Path, overwrite: bool, made: dict[str, Any]) -> Iterator[Datastore]:
    """A store to fill, which is at `path` at the end. After an error nothing is there but what was before."""
    from knnlm.store.lock import kept_from_writers
    from knnlm.system.rename import swap

    path = Path(path)
    replaces = any(path.glob("manifest-*.json"))
    with ExitStack() as stack:
        place = path
        if replaces:
            path = Path(os.path.realpath(path))
            foreign = sorted(file.name for file in path.iterdir() if not _of_store(file))
            if foreign:
                raise StoreError(
                    f"{path}: expected a store and nothing else to replace, found {foreign[0]}; move it away"
                )
            stack.enter_context(kept_from_writers(path))
            place = sibling(path, "partial")
            remove_tree(place)  # nobody else has this name
        was_there = place.is_dir()
        store = Datastore.create(place, **made)
        try:
            with store:
                yield store
            if replaces:
                place = swap(place, path, sibling(path, "old"))
                remove_tree(place)
        except BaseException:
            if was_there:
                for file in place.iterdir():
                    remove(file)
            else:
                remove_tree(place)
            raise
