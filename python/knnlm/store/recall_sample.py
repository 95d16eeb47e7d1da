"""Truth: exact neighbors of a few stored keys, kept while all keys pass by, to measure codes against without them.

A store of codes alone cannot say how many of the true neighbors it finds. So some keys of the training sample become
queries, and each part of the text is compared with them while its raw keys are in memory: one small matrix product.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from knnlm import _core
from knnlm.system.own_files import read, remove, write_for_good

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Distances and ids of the nearest, (q, k) each."""


UNMEASURED = (
    "recall was not measured: the file of an interrupted run that it is measured against is damaged; all else is as it "
    "should be, and recall= is refused until a new index measures it: index(retrain=True) (in commands knnlm build "
    "STORE --retrain)"
)
"""Said of an index whose build went on without exact neighbors."""


class TruthError(ValueError):
    """A damaged file of exact neighbors: all but recall is as it would be without."""


@dataclass(frozen=True)
class Truth:
    """The nearest so far. queries: (q, d); own: (q, 2) ids that a query leaves out; distances, ids: (q, k)."""

    metric: str
    queries: NDArray[np.float32]
    own: NDArray[np.int64]
    distances: NDArray[np.float32]
    ids: NDArray[np.int64]

    @classmethod
    def choose(cls, sample: NDArray[np.float32], ids: NDArray[np.int64], entries: int, metric: str) -> Truth:
        """Queries at equal distances in a sample (n, d) whose ids in a store of `entries` will be `ids` (n,)."""
        queries, neighbors, nearby = _core.plan_calibration(entries)
        wanted = min(queries, len(sample))
        rows = (2 * np.arange(wanted) + 1) * len(sample) // (2 * wanted)  # (q,)
        own = around(ids[rows], nearby)  # (q, 2)
        none = np.zeros((wanted, neighbors), np.float32), np.zeros((wanted, neighbors), np.int64)
        return cls(metric, np.ascontiguousarray(sample[rows]), own, *none).empty()

    @classmethod
    def lost(cls, dim: int, entries: int, metric: str) -> Truth:
        """No queries, of keys of length `dim`: a store that is finished with them is one whose recall nobody knows."""
        return cls.choose(np.empty((0, dim), np.float32), np.empty(0, np.int64), entries, metric)

    def empty(self) -> Truth:
        """The same queries, nothing found yet."""
        nowhere = np.inf if self.metric == "l2" else -np.inf
        distances, ids = np.full(self.ids.shape, nowhere, np.float32), np.full(self.ids.shape, -1, np.int64)
        return replace(self, distances=distances, ids=ids)

    def nearest(self, keys: NDArray[Any], ids: int | NDArray[np.int64], threads: int | None = None) -> Found:
        """The nearest of some keys (n, d); the same for any number of threads.

        ids: theirs, (n,) ascending, or the first of ids that follow each other.
        """
        q, k = self.ids.shape
        places = ids + np.arange(len(keys), dtype=np.int64) if isinstance(ids, int) else ids  # (n,)
        own = np.searchsorted(places, self.own)  # (q, 2), rows
        distances, rows = _core.exact_nearest(
            keys, self.queries, k, metric=self.metric, first_id=0, exclude=own, threads=threads
        )
        found = np.append(places, -1)[rows]  # row −1 is a missing neighbor
        return distances.reshape(q, k), found.reshape(q, k)

    def merged(self, found: Found) -> Truth:
        """The nearest of these and of others, ties by id."""
        distances = np.concatenate([self.distances, found[0]], axis=1)  # (q, 2k)
        ids = np.concatenate([self.ids, found[1]], axis=1)
        worse = distances if self.metric == "l2" else -distances
        best = np.lexsort((ids, worse), axis=1)[:, : self.ids.shape[1]]  # (q, k)
        return replace(self, distances=np.take_along_axis(distances, best, 1), ids=np.take_along_axis(ids, best, 1))

    def without(self, spans: Sequence[tuple[int, int]]) -> Truth:
        """The same without entries of half-open ranges of ids, which leave places that are missing."""
        ids = self.ids.copy()
        for start, stop in spans:
            ids[(ids >= start) & (ids < stop)] = -1
        nowhere = np.float32(np.inf if self.metric == "l2" else -np.inf)
        distances = np.where(ids < 0, nowhere, self.distances)
        order = np.argsort(ids < 0, axis=1, kind="stable")
        return replace(self, ids=np.take_along_axis(ids, order, 1), distances=np.take_along_axis(distances, order, 1))

    def save(self, folder: Path, parts: int) -> None:
        """Write the state after so many parts; it is on disk for good when the call returns."""
        content = io.BytesIO()
        np.savez(
            content,
            metric=np.frombuffer(self.metric.encode(), np.uint8),
            queries=self.queries,
            own=self.own,
            distances=self.distances,
            ids=self.ids,
        )
        write_for_good(_path(folder, parts), content.getvalue())

    @classmethod
    def load(cls, folder: Path, parts: int) -> Truth | None:
        """Read what `save` wrote; None if it is not there. Raises TruthError, naming the file, for a damaged one."""
        path = _path(folder, parts)
        try:
            file = read(path)
        except FileNotFoundError:
            return None
        try:
            with file, np.load(file, allow_pickle=False) as saved:
                arrays = {name: saved[name] for name in ("queries", "own", "distances", "ids")}
                truth = cls(saved["metric"].tobytes().decode(), **arrays)
            if wrong := truth._wrong():
                raise ValueError(wrong)
        except (ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            raise TruthError(
                f"{path}: expected the exact neighbors that an interrupted build has found, found a damaged file"
            ) from error
        return truth

    def _wrong(self) -> str | None:
        """What does not fit together, if anything."""
        q, k = len(self.queries), self.ids.shape[-1]
        shapes = (self.queries.ndim == 2, self.own.shape == (q, 2), self.ids.shape == (q, k) == self.distances.shape)
        kinds = [array.dtype.name for array in (self.queries, self.own, self.distances, self.ids)]
        sound = all(shapes) and kinds == ["float32", "int64", "float32", "int64"] and self.metric in ("l2", "ip")
        return None if sound else "arrays that do not fit together"

    @staticmethod
    def forget(folder: Path, parts: int) -> None:
        """Remove the state after so many parts."""
        remove(_path(folder, parts))


def spread_ids(store: Any, count: int) -> NDArray[np.int64]:
    """Ids of up to `count` entries, spread evenly over those that are there: the same whatever else was deleted."""
    return ids_at(store, np.unique(np.linspace(0, len(store) - 1, min(count, len(store))).astype(np.int64)))


def ids_at(store: Any, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ids of the entries at `ranks` (r,), each at least 0 and below `len(store)`, among those that are there."""
    spans = np.asarray(store.document_spans(), np.int64)
    ends = np.cumsum(spans[:, 1] - spans[:, 0])  # entries up to the end of each document
    at = np.searchsorted(ends, ranks, side="right")
    return np.asarray(spans[at, 1] - (ends[at] - ranks))


def around(ids: NDArray[np.int64], nearby: int) -> NDArray[np.int64]:
    """Half-open ranges (q, 2) of ids (q,) and so many before and after each."""
    return np.stack([np.maximum(ids - nearby, 0), ids + nearby + 1], axis=-1)


def _path(folder: Path, parts: int) -> Path:
    return folder / f"truth-{parts}.npz"
