"""What a search returns, and what can be searched.

p_kNN sees nothing but `Neighbours`, and anything with the `search` of `Searchable` is a datastore: one on disk,
several together, a running cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Neighbours:
    """The `k` nearest entries of each query, best first.

    A missing neighbour has id −1, a value of all ones and distance +inf (inner product: −inf): no weight in p_kNN.
    Equal distances are ordered by id.
    """

    distances: NDArray[np.float32]  # (..., k); l2: squared, ascending; ip: inner products, descending
    values: NDArray[np.unsignedinteger[Any]]  # (..., k), uint32 or uint64
    ids: NDArray[np.int64]  # (..., k)
    metric: str = "l2"


class Searchable(Protocol):
    """A datastore, whatever it is made of."""

    @property
    def metric(self) -> str:
        """`"l2"` or `"ip"`."""
        ...

    @property
    def dim(self) -> int:
        """Length of a key."""
        ...

    def __len__(self) -> int: ...

    def search(
        self,
        queries: Any,
        k: int,
        *,
        nprobe: int | None = None,
        rerank: str | None = None,
        exact: bool = False,
        exclude: Any = None,
        threads: int | None = None,
    ) -> Neighbours:
        """Find the `k` nearest entries of each query `(..., d)`."""
        ...
