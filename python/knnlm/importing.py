"""Import: what other programs keep for a kNN language model becomes a store.

Raw memory maps of urvashik/knnlm and neulab/knn-transformers have no header: shape and types follow from the lengths of
the two files, the dimension, and the file names, and where those leave a choice the caller must make it. A FAISS index
gives its vectors, decoded where it is lossy.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from knnlm.datastore import Datastore

ROWS = 1 << 16
"""Rows that are copied at a time."""

NAME = re.compile(r"_(?P<size>\d+)_(?P<dim>\d+)_(keys|vals)\.npy$")
"""knn-transformers: dstore_gpt2_116988150_768_keys.npy."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Imported:
    """What was imported. dropped: rows at the end that were never written (an all-zero key)."""

    entries: int
    dim: int
    dropped: int
    lossy: bool
    source: str


def open_memmaps(
    keys: str | Path,
    values: str | Path,
    *,
    dim: int | None = None,
    key_dtype: str | None = None,
    value_dtype: str | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Map keys `(n, dim)` and values `(n,)` of raw files, or of real .npy files.

    Raises ValueError where the lengths fit no shape or more than one, with what to say.
    """
    headed = [_npy(Path(path)) for path in (keys, values)]
    if headed[0] is not None and headed[1] is not None:
        rows, column = headed[0], headed[1].reshape(-1)
        if rows.ndim != 2 or len(rows) != len(column):
            raise ValueError(f"expected keys (n, dim) and n values, found {rows.shape} and {headed[1].shape}")
        return rows, column
    named = NAME.search(Path(keys).name)
    if named and dim is None:
        dim = int(named["dim"])
    if dim is None:
        raise ValueError(f"{keys}: expected its dimension, which a file without a header does not say: give dim")
    key_bytes, value_bytes = Path(keys).stat().st_size, Path(values).stat().st_size
    fits = []
    for kind in [key_dtype] if key_dtype else ["float16", "float32"]:
        n, rest = divmod(key_bytes, dim * np.dtype(kind).itemsize)
        for value in [value_dtype] if value_dtype else ["int16", "int32", "int64"]:
            same = n > 0 and not rest and n * np.dtype(value).itemsize == value_bytes
            if same and (not named or n == int(named["size"])):
                fits.append((n, kind, value))
    if len(fits) != 1:
        found = "; or ".join(f"{n:,} rows of {kind} with {value} values" for n, kind, value in fits) or "no shape"
        raise ValueError(
            f"expected one shape for {key_bytes:,} bytes of keys of dimension {dim} and {value_bytes:,} bytes of "
            f"values, found {found}: give key_dtype and value_dtype, and check dim"
        )
    n, kind, value = fits[0]
    return (
        np.memmap(keys, dtype=kind, mode="r", shape=(n, dim)),
        np.memmap(values, dtype=value, mode="r", shape=(n,)),
    )


def _npy(path: Path) -> NDArray[Any] | None:
    with path.open("rb") as file:
        magic = file.read(6)
    return np.load(path, mmap_mode="r", allow_pickle=False) if magic == b"\x93NUMPY" else None


def import_memmaps(
    path: str | Path,
    keys: str | Path,
    values: str | Path,
    *,
    dim: int | None = None,
    key_dtype: str | None = None,
    value_dtype: str | None = None,
    metric: Literal["l2", "ip"] = "l2",
    attributes: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Make a store at `path` from two raw files; build its index afterwards.

    Rows at the end whose key is all zeros were allocated but never written by the program that made the files; they are
    left out. Values that 32 bits do not hold make a store of 64-bit values. Raises ValueError for files whose shape is
    not clear (see `open_memmaps`), for values that are no integers, and for values below 0, which a 16-bit file holds
    where larger ones did not fit.
    """
    rows, column = open_memmaps(keys, values, dim=dim, key_dtype=key_dtype, value_dtype=value_dtype)
    n = written_rows(rows)
    width = value_width(column[:n])
    kept: Any = str(rows.dtype) if rows.dtype in (np.float16, np.float32) else "float32"
    store = _create(path, rows.shape[1], metric, kept, width, attributes, {"kind": "memmap"}, overwrite)
    with store:
        _fill(store, ((rows[i : i + ROWS], column[i : min(n, i + ROWS)]) for i in range(0, n, ROWS)), n, progress)
    return Imported(n, rows.shape[1], len(rows) - n, False, str(keys))


def written_rows(rows: NDArray[Any]) -> int:
    """Number of rows up to the last that is not all zeros."""
    end = len(rows)
    while end > 0:
        start = max(0, end - ROWS)
        used = np.flatnonzero(np.asarray(rows[start:end]).any(axis=1))
        if len(used):
            return start + int(used[-1]) + 1
        end = start
    return 0


def import_faiss(
    path: str | Path,
    index: str | Path,
    values: str | Path,
    *,
    value_dtype: str | None = None,
    keep_keys: Literal["float16", "float32"] = "float16",
    attributes: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Make a store at `path` from a FAISS index and the values of its ids 0 … n − 1; build its index afterwards.

    Vectors of an index that quantises come back decoded: the store is then as exact as that index was, not as the keys.
    values: a raw file or an .npy file; those that 32 bits do not hold make a store of 64-bit values. Raises ImportError
    without FAISS, ValueError for an index or values that do not fit.
    """
    try:
        faiss: Any = importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError("importing a FAISS index needs FAISS: pip install faiss-cpu") from error
    found = faiss.read_index(str(index))
    n, dim = int(found.ntotal), int(found.d)
    metrics: dict[int, Literal["l2", "ip"]] = {faiss.METRIC_L2: "l2", faiss.METRIC_INNER_PRODUCT: "ip"}
    if found.metric_type not in metrics:
        raise ValueError(f"{index}: expected squared L2 or inner product, found FAISS metric {found.metric_type}")
    column = _npy(Path(values))
    if column is None:
        size = Path(values).stat().st_size
        kinds = [value_dtype] if value_dtype else ["int16", "int32", "int64"]
        fits = [kind for kind in kinds if np.dtype(kind).itemsize * n == size]
        if len(fits) != 1:
            raise ValueError(f"{values}: expected a value for each of {n:,} vectors, found {size:,} bytes")
        column = np.memmap(values, dtype=fits[0], mode="r", shape=(n,))
    column = column.reshape(-1)
    if len(column) != n:
        raise ValueError(f"{values}: expected a value for each of {n:,} vectors, found {len(column):,}")
    width = value_width(column)
    with suppress(RuntimeError):  # an index without inverted lists finds its vectors by itself
        faiss.extract_index_ivf(found).make_direct_map()
    lossy = "Flat" not in type(faiss.downcast_index(found)).__name__ or hasattr(found, "pq")
    store = _create(path, dim, metrics[found.metric_type], keep_keys, width, attributes, {"kind": "faiss"}, overwrite)

    def blocks() -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        for start in range(0, n, ROWS):
            count = min(ROWS, n - start)
            try:
                vectors = found.reconstruct_n(start, count)  # (count, d)
            except RuntimeError as error:
                raise ValueError(f"{index}: expected ids 0 to {n - 1}, each with a vector: {error}") from error
            yield vectors, column[start : start + count]

    with store:
        _fill(store, blocks(), n, progress)
    return Imported(n, dim, 0, lossy, str(index))


def _create(
    path: str | Path,
    dim: int,
    metric: Literal["l2", "ip"],
    keep_keys: Any,
    width: Literal["uint32", "uint64"],
    attributes: dict[str, Any] | None,
    how: dict[str, Any],
    overwrite: bool,
) -> Datastore:
    marks = {**(attributes or {}), "imported": how}
    return Datastore.create(
        path,
        dim=dim,
        metric=metric,
        keep_keys=keep_keys,
        value_dtype=width,
        attributes=marks,
        overwrite=overwrite,
    )


def value_width(column: NDArray[Any]) -> Literal["uint32", "uint64"]:
    """The type that a store needs for values `(n,)`. Raises ValueError for values that are no integers."""
    if column.dtype.kind not in "iu":
        raise ValueError(f"values: expected integers, found {column.dtype}; convert them to int64")
    large = any(int(column[i : i + ROWS].max()) >= 2**32 - 1 for i in range(0, len(column), ROWS))
    return "uint64" if column.dtype.itemsize > 4 and large else "uint32"


def _fill(
    store: Datastore, blocks: Iterator[tuple[NDArray[Any], NDArray[Any]]], n: int, progress: Progress | None
) -> None:
    done = 0
    for rows, column in blocks:
        rows = rows[: len(column)]
        if len(column) and int(np.min(column)) < 0:
            at = done + int(np.argmax(np.asarray(column) < 0))
            store.discard()
            raise ValueError(
                f"value {at}: expected 0 or more, found {int(np.min(column))}: {column.dtype} was too small for the "
                "vocabulary where these values were written, and they cannot be told any more"
            )
        store.add(np.ascontiguousarray(rows), np.asarray(column), document="imported")
        done += len(column)
        if progress is not None:
            progress("import", done, n)
    store.commit()
