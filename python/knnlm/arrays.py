"""Arrays as callers have them → arrays as the core wants them. No torch import: a tensor is known by its module."""

from __future__ import annotations

import json
import operator
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_numpy(x: Any) -> NDArray[Any]:
    """View or copy `x` (array, torch tensor, nested list) as a NumPy array; bfloat16 becomes float32."""
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported it
    if torch is not None and isinstance(x, torch.Tensor):
        x = x.detach()
        if x.dtype == torch.bfloat16:
            x = x.float()  # NumPy has no bfloat16; float32 holds each of them exactly
        return np.asarray(x.cpu().numpy())
    array = np.asarray(x)
    # bfloat16 of ml_dtypes, without importing it; names are slow to make, so others are not asked for theirs
    strange = array.dtype.kind == "V" and array.dtype.name == "bfloat16"
    return array.astype(np.float32) if strange else array


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
        with np.errstate(over="ignore"):  # an overflow becomes Inf, which the core refuses with its position
            array = array.astype(np.float32)
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))


def to_json(x: Any, what: str) -> str:
    """Return `x` as canonical JSON text.

    Raises:
        ValueError: something that JSON does not have.
    """
    try:
        return json.dumps(x, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what} must be JSON: dictionaries with str keys, lists, str, numbers, bool and None; {error}; "
            "nothing was changed"
        ) from None


def to_integers(x: Any, what: str, dtype: Any, low: int, high: int, hint: str) -> NDArray[Any]:
    """Return `x` as a C-contiguous array of `dtype`, each from `low` to `high`.

    Raises:
        ValueError: not integers, or one out of range (its position and `hint` are named).
    """
    array = to_numpy(x)
    if array.size == 0:
        return np.empty(array.shape, dtype)
    if array.dtype == object and all(isinstance(v, int) for v in array.flat):
        pass  # Python integers beyond 64 bits: refused below, with their position
    elif array.dtype.kind not in "iu":
        raise ValueError(f"{what} must be integers, found dtype {array.dtype}; convert them to int64")
    if int(array.min()) < low or int(array.max()) > high:
        position = int(np.argmax((array < low).reshape(-1) | (array > high).reshape(-1)))
        found = int(array.reshape(-1)[position])
        raise ValueError(f"{what} must be from {low} to {high}, found {found} at position {position}; {hint}")
    return np.ascontiguousarray(array, dtype=dtype)


def to_integer(x: Any, what: str, low: int, high: int) -> int:
    """Check an integer argument, of any integer type."""
    try:
        number = operator.index(x)
    except TypeError:
        raise ValueError(f"{what} must be an integer, found {x!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{what} must be from {low} to {high}, found {number}")
    return number


def to_optional(x: Any, what: str) -> int | None:
    """Check an integer argument of 1 or more that may be left out."""
    return None if x is None else to_integer(x, what, 1, 2**32)


def widened(columns: NDArray[Any], k: int, missing: float) -> NDArray[Any]:
    """Give `(..., present)` columns the width `k`, which is more than they have."""
    wide = np.full((*columns.shape[:-1], k), missing, columns.dtype)
    wide[..., : columns.shape[-1]] = columns
    return wide
