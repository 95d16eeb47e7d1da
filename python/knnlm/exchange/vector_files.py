"""Files of keys and values as other programs write them: .npy, or raw numbers without a header.

Shape and types of a raw file follow from its length, the dimension, the file beside it and its name, as urvashik/knnlm
and neulab/knn-transformers leave them; where those leave a choice the caller must make it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from knnlm.system.counted import counted

ROWS = 1 << 16
"""Rows that are read at a time."""

IGNORED = -100
"""The label that PyTorch's cross entropy leaves out (its `ignore_index`), as of padding."""

NAME = re.compile(r"_(?P<size>\d+)_(?P<dim>\d+)_(keys|vals)\.npy$")
"""knn-transformers: dstore_gpt2_116988150_768_keys.npy."""

KEYS, VALUES = ("float16", "float32"), ("int16", "int32", "int64")
"""Types that a raw file may have."""


def open_memmaps(
    keys: str | Path,
    values: str | Path,
    *,
    dim: int | None = None,
    key_dtype: str | None = None,
    value_dtype: str | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Map keys `(n, dim)` and values `(n,)`, each of a raw file or of a real .npy file.

    Raises ValueError for a file that is no whole array of numbers, for what is given and differs from its header, and
    where the lengths fit no shape or more than one, with what to say.
    """
    rows, column = _headed(keys, key_dtype), _headed(values, value_dtype)
    if rows is not None and (rows.ndim != 2 or (dim is not None and rows.shape[1] != dim)):
        expected = "(n, dim)" if dim is None else f"(n, {dim}), as was given,"
        raise ValueError(f"{keys}: expected keys of shape {expected} found {rows.shape} in its header")
    column = None if column is None else column.reshape(-1)
    named = None if rows is not None else _named(Path(keys))
    if rows is None:
        dim = named[1] if named and dim is None else dim
        if dim is None:
            raise ValueError(f"{keys}: expected its dimension, which a file without a header does not say: give dim")
        if dim < 1:
            raise ValueError(f"{keys}: expected a dimension of 1 or more, found {dim}: give dim")
    key_bytes, value_bytes = os.path.getsize(keys), os.path.getsize(values)
    fits: list[tuple[int, str | None, str | None]] = []
    for kind in [key_dtype] if key_dtype else KEYS if rows is None else [None]:
        n, rest = (len(rows), 0) if rows is not None else divmod(key_bytes, (dim or 1) * np.dtype(kind).itemsize)
        if rest or n == 0 or (named and n != named[0]):
            continue
        if column is not None:
            fits += [(n, kind, None)] * (len(column) == n)
            continue
        fits += [
            (n, kind, value)
            for value in ([value_dtype] if value_dtype else VALUES)
            if n * np.dtype(value).itemsize == value_bytes
        ]
    if len(fits) != 1:
        raise ValueError(_no_shape(fits, rows, column, dim, key_bytes, value_bytes, named))
    n, kind, value = fits[0]
    if rows is None:
        rows = np.memmap(keys, dtype=np.dtype(kind), mode="r").reshape(n, -1)
    if column is None:
        column = np.memmap(values, dtype=np.dtype(value), mode="r")
    return rows, column


def _no_shape(
    fits: list[tuple[int, str | None, str | None]],
    rows: NDArray[Any] | None,
    column: NDArray[Any] | None,
    dim: int | None,
    key_bytes: int,
    value_bytes: int,
    named: tuple[int, int] | None,
) -> str:
    keys = f"{counted(key_bytes, 'byte')} of keys of dimension {dim}" if rows is None else f"keys of shape {rows.shape}"
    values = f"{counted(value_bytes, 'byte')} of values" if column is None else counted(len(column), "value")
    found = "; or ".join(f"{counted(n, 'row')} of {kind} with {value} values" for n, kind, value in fits) or "no shape"
    of_name = f" and {counted(named[0], 'row')} by its name" if named else ""
    give = [name for name, array in (("key_dtype", rows), ("value_dtype", column)) if array is None]
    hint = f": give {' and '.join(give)}, and check dim" if give else ""
    return f"expected one shape for {keys} and {values}{of_name}, found {found}{hint}"


def _named(keys: Path) -> tuple[int, int] | None:
    """Entries and dimension that a file's name says."""
    match = NAME.search(keys.name)
    if match is None:
        return None
    size, dim = int(match["size"]), int(match["dim"])
    if size < 1 or dim < 1:
        raise ValueError(
            f"{keys}: expected a name that says 1 or more entries of a dimension of 1 or more, found {size} of "
            f"{dim}: rename it, and give dim"
        )
    return size, dim


def check_regular(path: str | Path) -> None:
    """Raise ValueError for a pipe or a device, whose bytes come only once or never end."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a folder, opening it says what it is
        raise ValueError(f"{path}: expected a file, found a pipe or a device; save what it gives in a file")


def _headed(path: str | Path, dtype: str | None) -> NDArray[Any] | None:
    """The array of an .npy file, None for a file without its header."""
    check_regular(path)
    with open(path, "rb") as file:
        magic = file.read(6)
    if not magic:
        raise ValueError(f"{path}: expected an array of numbers, found an empty file")
    if magic[:4] == b"PK\x03\x04":
        raise ValueError(
            f"{path}: expected a raw file or one of numpy.save, found a zip archive, as .npz and .pt are: save the one "
            "array of it with numpy.save"
        )
    if magic != b"\x93NUMPY":
        return None
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OverflowError) as error:
        raise ValueError(
            f"{path}: expected a whole .npy file of numbers, found one that cannot be read: {error}"
        ) from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: expected numbers, found dtype {array.dtype}; convert them")
    if dtype is not None and array.dtype != np.dtype(dtype):
        raise ValueError(f"{path}: expected {dtype}, as was given, found {array.dtype} in its header")
    return array


def open_column(path: str | Path, n: int, dtype: str | None, what: str = "value") -> NDArray[Any]:
    """Map integers `(m,)` of an .npy file of any length, or of a raw one that has one for each of `n` vectors.

    dtype: of a raw file, where its length leaves a choice; it may then have any length. Raises ValueError.
    """
    column = _headed(path, dtype)
    if column is None:
        size = os.path.getsize(path)
        fits = [kind for kind in VALUES if np.dtype(kind).itemsize * n == size] if dtype is None else [dtype]
        if len(fits) != 1 or size % np.dtype(fits[0]).itemsize:
            raise ValueError(
                f"{path}: expected a {what} for each of {n:,} vectors, found {size:,} bytes: give the type of a {what}"
            )
        column = np.memmap(path, dtype=fits[0], mode="r", shape=(size // np.dtype(fits[0]).itemsize,))
    column = column.reshape(-1)
    if column.dtype.kind not in "iu":
        raise ValueError(f"{path}: expected integers, found {column.dtype}; convert them to int64")
    return column


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


def value_width(values: str | Path, column: NDArray[Any], ignore: int | None) -> Literal["uint32", "uint64"]:
    """The type that a store needs for the values `(n,)` of a file, those that are `ignore` aside.

    Raises ValueError for values that are no integers or below 0, with their row and what they may be.
    """
    if column.dtype.kind not in "iu":
        raise ValueError(f"{values}: expected integers, found {column.dtype}; convert them to int64")
    largest, negative, at, all_ignored = 0, 0, 0, True
    for start, block in _blocks(column):
        kept = block if ignore is None else block[block != ignore]
        if not len(kept):
            continue
        largest = max(largest, int(kept.max()))
        if int(kept.min()) < 0:
            below = (block < 0) & (block != ignore) if ignore is not None else block < 0
            at = at if negative else start + int(np.argmax(below))
            negative += int(below.sum())
            all_ignored = all_ignored and bool((block[below] == IGNORED).all())
    if negative:
        raise ValueError(_below_zero(values, column, negative, at, all_ignored))
    if largest >= 2**64 - 1:
        raise ValueError(f"{values}: expected values below 2^64 - 1, which means a missing one, found that value")
    return "uint64" if largest >= 2**32 - 1 else "uint32"


def _below_zero(values: str | Path, column: NDArray[Any], negative: int, at: int, all_ignored: bool) -> str:
    others = f", and {negative - 1:,} more below 0" if negative > 1 else ""
    text = f"{values}: value {at}: expected 0 or more, found {int(column[at])}{others}"
    wrapped = column.dtype.itemsize == 2
    if all_ignored:
        text += (
            f"; {IGNORED} is PyTorch's mark of a label that is left out, such as padding: give ignore={IGNORED} "
            f"(in commands --ignore {IGNORED}) to leave its rows out"
        )
        text += ", unless 16 bits were too small for the vocabulary" if wrapped else ""
    elif wrapped:
        text += (
            f": {column.dtype} was too small for the vocabulary where these values were written, and they cannot be "
            "told any more"
        )
    else:
        text += ": tokens are never negative; check the type of a value, and which file holds the values"
    return text


def _blocks(column: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    for start in range(0, len(column), ROWS):
        yield start, np.asarray(column[start : start + ROWS])
