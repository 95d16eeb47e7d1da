"""Index choice: what a caller asks of an index, checked before anything is made for it; the core checks it again."""

from __future__ import annotations

import operator
from typing import Any

from knnlm.store.arrays import one_of, to_integer, to_optional, to_threads

BITS = (4, 8)
"""Bits of a word of a product quantiser."""


def to_code(code: Any, dim: int | None = None) -> str | tuple[int, int] | None:
    """Check a choice of code: a word, or parts and bits of any integer type, of keys of `dim` numbers if that is known.

    Raises ValueError for anything else.
    """
    if code is None or (isinstance(code, str) and code in ("small", "flat")):
        return code
    if isinstance(code, str):
        raise _unknown(code)
    try:
        m, bits = (operator.index(number) for number in code)
    except (TypeError, ValueError):
        raise ValueError(f"code must be 'small', 'flat', (m, bits) or None, found {code!r}") from None
    if bits not in BITS:
        raise _unknown((m, bits))
    if m < 1 or (dim is not None and m > dim):
        most = "the dimension of the keys" if dim is None else f"d = {dim}"
        raise ValueError(f"code: m must be from 1 to {most} and bits 4 or 8, found m = {m}, bits = {bits}")
    return m, bits


def check_index_choice(
    *, code: Any = None, nlist: Any = None, metric: Any = "l2", seed: Any = 0, threads: Any = None
) -> None:
    """Raise ValueError for what no index can be made with, as `Datastore.create` and `build` would later."""
    to_code(code)
    to_optional(nlist, "nlist")
    one_of(metric, "metric", ("l2", "ip"))
    to_integer(seed, "seed", 0, 2**64 - 1)
    to_threads(threads)


def _unknown(found: Any) -> ValueError:
    return ValueError(f"code: expected None, 'small', 'flat' or (m, bits) with 4 or 8 bits, found {found!r}")
