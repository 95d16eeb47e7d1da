"""Neighbors: what every search returns, what counts as a datastore, and how results of several stores merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

METRICS = ("l2", "ip")
MISSING = -1
"""The id of a slot that holds no neighbor."""


@dataclass(frozen=True)
class Neighbors:
    """The k nearest entries of each query, for any leading shape.

    distances: (..., k) float32; "l2": squared L2, ascending; "ip": inner product, descending; missing +inf (ip: -inf).
    values: (..., k) uint32 or uint64; missing: all ones.  ids: (..., k) int64; missing: -1.
    documents, positions: (..., k) int64 where the search was asked for them: index of an entry's document and number of
    entries before it in there; missing: -1.
    Raises ValueError if the shapes differ or the metric is unknown, TypeError for values that are not unsigned.
    """

    distances: NDArray[np.floating[Any]]
    values: NDArray[np.unsignedinteger[Any]]
    ids: NDArray[np.int64]
    metric: str = "l2"
    documents: NDArray[np.int64] | None = None
    positions: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Check shapes, kinds and the metric."""
        if self.metric not in METRICS:
            raise ValueError(f"metric: expected one of {METRICS}, found {self.metric!r}")
        shape = self.ids.shape
        if self.distances.shape != shape or self.values.shape != shape or not shape:
            raise ValueError(
                "distances, values and ids must share one shape (..., k); found "
                f"{self.distances.shape}, {self.values.shape} and {shape}"
            )
        if self.values.dtype.kind != "u":
            raise TypeError(f"values: expected an unsigned integer type, found {self.values.dtype}")
        if self.ids.dtype != np.int64:
            raise TypeError(f"ids: expected int64, found {self.ids.dtype}")

    @property
    def k(self) -> int:
        """Number of slots a query has."""
        return int(self.ids.shape[-1])

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which slots hold a neighbor, (..., k) bool."""
        return np.not_equal(self.ids, MISSING)

    def __getitem__(self, rows: Any) -> Neighbors:
        """The neighbors of some queries: indexes the leading axes."""
        return self._each(lambda array: array[rows])

    def _each(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Neighbors:
        documents, positions = (None if a is None else change(a) for a in (self.documents, self.positions))
        return Neighbors(
            change(self.distances), change(self.values), change(self.ids), self.metric, documents, positions
        )

    def first(self, k: int) -> Neighbors:
        """The nearest k of each query, (..., min(k, self.k)); raises ValueError if k < 1.

        What a search for k finds, but for entries whose distance is 0 by their codes: of these it prefers the likelier.
        """
        if k < 1:
            raise ValueError(f"k: expected at least 1, found {k}")
        return self[..., :k]

    def reshape(self, *leading: int) -> Neighbors:
        """The same neighbors with another leading shape; k stays."""
        shape = (*leading, self.k)
        return self._each(lambda array: array.reshape(shape))


def missing_value(dtype: Any) -> int:
    """The value of a missing slot: all ones."""
    return int(np.iinfo(dtype).max)


def joined(parts: Sequence[Neighbors]) -> Neighbors | None:
    """Neighbors of several batches of queries, one after the other: (q_1 + q_2 + ..., k); None for no batch."""
    if len(parts) < 2:
        return next(iter(parts), None)
    return Neighbors(
        np.concatenate([part.distances for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.ids for part in parts]),
        parts[0].metric,
    )


def merge(parts: Sequence[Neighbors], k: int | None = None) -> tuple[Neighbors, NDArray[np.int64]]:
    """The k nearest of several stores' answers to the same queries, ordered by (distance, store, id).

    parts: one `Neighbors` a store, same leading shape and metric, each (..., k_s). k: None = the largest k_s.
    Returns the merged neighbors (..., k), whose ids are each store's own, and the store of each, (..., k) int64 with
    -1 for missing. Raises ValueError if there is nothing to merge or if shapes or metrics differ.
    """
    if not parts:
        raise ValueError("merge: expected the neighbors of at least one store, found none")
    metric, leading = parts[0].metric, parts[0].ids.shape[:-1]
    if any(part.metric != metric or part.ids.shape[:-1] != leading for part in parts):
        raise ValueError("merge: every store must answer the same queries with the same metric")
    k = max(part.k for part in parts) if k is None else k
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}")
    dtype = np.result_type(*[part.values for part in parts])
    ones = np.array(missing_value(dtype), dtype)
    distances = np.concatenate([part.distances for part in parts], axis=-1)
    values = np.concatenate([np.where(p.found, p.values.astype(dtype), ones) for p in parts], axis=-1)
    ids = np.concatenate([part.ids for part in parts], axis=-1)
    stores = np.concatenate([np.full(part.ids.shape, s, np.int64) for s, part in enumerate(parts)], axis=-1)
    stores[ids == MISSING] = MISSING
    # Missing slots sort last even beside an inner product of -inf or a distance of +inf.
    key = -distances if metric == "ip" else distances
    order = np.lexsort((ids, stores, key, ids == MISSING), axis=-1)[..., :k]
    merged = [np.take_along_axis(a, order, axis=-1) for a in (distances, values, ids, stores)]
    if (short := k - order.shape[-1]) > 0:
        pad = [(0, 0)] * len(leading) + [(0, short)]
        fills = (-np.inf if metric == "ip" else np.inf, missing_value(dtype), MISSING, MISSING)
        merged = [np.pad(a, pad, constant_values=fill) for a, fill in zip(merged, fills, strict=True)]
    return Neighbors(merged[0], merged[1], merged[2], metric), merged[3]
