"""Arrays as callers have them → arrays as the core wants them. No torch import: a tensor is known by its module."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_THREADS = 4096
"""As of the core."""

STRANGE = ("bfloat16", "float8", "float6", "float4")
"""Beginnings of the names of floats that NumPy has not; float32 holds each of their numbers exactly."""


MAX_ID = 2**63 - 1


def to_numpy(x: Any) -> NDArray[Any]:
    """View or copy `x` (array, torch tensor, nested list) as a NumPy array; bfloat16 and shorter floats become float32.

    Raises:
        ValueError: a tensor that is not dense, or has no data; a masked array of which something is masked.
    """
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported it
    if torch is not None and isinstance(x, torch.Tensor):
        return _of_tensor(x, torch)
    if isinstance(x, np.ma.MaskedArray) and (masked := int(np.ma.getmaskarray(x).sum())):
        raise ValueError(
            f"expected an array, found a masked one of which {masked:,} numbers are masked: take the rows without, "
            "or put numbers in their place (filled)"
        )
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"expected an array, or lists of one length: {error}") from error
    # those of ml_dtypes, without importing it; names are slow to make, so others are not asked for theirs
    strange = array.dtype.kind == "V" and array.dtype.name.startswith(STRANGE)
    return array.astype(np.float32) if strange else array


def _of_tensor(x: Any, torch: Any) -> NDArray[Any]:
    try:
        x = x.detach().resolve_conj().resolve_neg()
        if x.is_floating_point() and x.dtype not in (torch.float16, torch.float32, torch.float64):
            x = x.float()
        return np.asarray(x.cpu().numpy())
    except (RuntimeError, TypeError) as error:  # NotImplementedError among them
        kind = "nested" if getattr(x, "is_nested", False) else str(x.layout).removeprefix("torch.")
        raise ValueError(
            f"expected a dense tensor with data, found a {kind} one of {x.dtype} on {x.device}, which NumPy cannot "
            "hold: give a dense one (to_dense(), dequantize()) of a float or integer type"
        ) from error


def _fit(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """As the core reads arrays: C-contiguous, of this type in the machine's byte order, and aligned."""
    array = np.ascontiguousarray(array, dtype=dtype)
    return array if array.flags.aligned else array.copy()


def to_floats(x: Any, what: str, dim: int) -> NDArray[np.float16] | NDArray[np.float32]:
    """Return `x` as C-contiguous float32 or float16 `(..., dim)`.

    Raises:
        ValueError: not numbers, or another dimension. That they are finite is checked by the core.
    """
    array = to_numpy(x)
    if array.size == 0 and array.ndim <= 1 and dim:
        array = np.empty((0, dim), np.float32)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{what} must be floats, found dtype {array.dtype}; convert them to float32")
    if array.ndim == 0 or array.shape[-1] != dim:
        raise ValueError(f"{what} must have shape (..., {dim}), the dimension of the store, found {array.shape}")
    if array.dtype not in (np.float16, np.float32):
        given = array
        with np.errstate(over="ignore"):  # an overflow becomes Inf, which the core refuses with its position
            array = given.astype(np.float32)
        if array.size and not array.flat[0] and not array.any() and given.any():
            raise ValueError(f"{what}: expected numbers that float32 holds, found only smaller ones; multiply them")
    return _fit(array, array.dtype.newbyteorder("="))


def to_integers(x: Any, what: str, dtype: Any, low: int, high: int, hint: str) -> NDArray[Any]:
    """Return `x` as a C-contiguous array of `dtype`, each from `low` to `high`.

    Raises:
        ValueError: not integers, or one out of range (its position and `hint` are named).
    """
    array = to_numpy(x)
    if array.size == 0:
        return np.empty(array.shape, dtype)
    if array.dtype.kind == "f" and isinstance(x, (list, tuple)):
        exact = np.array(x, dtype=object)  # NumPy makes floats of small and very large integers beside each other
        array = exact if all(isinstance(v, (int, np.integer)) for v in exact.flat) else array
    if array.dtype == object and all(isinstance(v, (int, np.integer)) for v in array.flat):
        pass  # Python integers beyond 64 bits: refused below, with their position, if they are out of range
    elif array.dtype.kind not in "iu":
        raise ValueError(f"{what} must be integers, found dtype {array.dtype}; convert them to int64")
    if int(array.min()) < low or int(array.max()) > high:
        position = int(np.argmax((array < low).reshape(-1) | (array > high).reshape(-1)))
        found = int(array.reshape(-1)[position])
        raise ValueError(f"{what} must be from {low} to {high}, found {found} at position {position}; {hint}")
    return _fit(array, dtype)


def to_integer(x: Any, what: str, low: int, high: int) -> int:
    """Check an integer argument, of any integer type."""
    try:
        if isinstance(x, (bool, np.bool_)):
            raise TypeError
        number = operator.index(x)
    except TypeError:
        raise ValueError(f"{what} must be an integer, found {x!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{what} must be from {low} to {high}, found {number}")
    return number


def to_optional(x: Any, what: str) -> int | None:
    """Check an integer argument of 1 or more that may be left out."""
    return None if x is None else to_integer(x, what, 1, 2**32)


def to_threads(x: Any) -> int | None:
    """Check a number of threads that may be left out."""
    return None if x is None else to_integer(x, "threads", 1, MOST_THREADS)


def to_flag(x: Any, what: str) -> bool:
    """Check an argument that is True or False; a word that says no would count as yes."""
    if isinstance(x, (bool, np.bool_)):
        return bool(x)
    raise ValueError(f"{what} must be True or False, found {x!r}")


def to_progress(x: Any) -> Callable[[str, int, int], object] | None:
    """Check a function that hears of progress, or None."""
    if x is None or callable(x):
        heard: Callable[[str, int, int], object] | None = x
        return heard
    raise ValueError(f"progress must be a function of (stage, done, total) or None, found {x!r}")


def one_of(x: Any, what: str, allowed: Sequence[str | None]) -> Any:
    """Check an argument that is one of a few words, or None where that is among them."""
    if (x is None or isinstance(x, str)) and x in allowed:
        return x
    raise ValueError(f"{what} must be one of {', '.join(map(repr, allowed))}, found {x!r}")


def widened(columns: NDArray[Any], k: int, missing: float) -> NDArray[Any]:
    """Give `(..., present)` columns the width `k`, which is more than they have."""
    wide = np.full((*columns.shape[:-1], k), missing, columns.dtype)
    wide[..., : columns.shape[-1]] = columns
    return wide
