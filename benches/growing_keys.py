"""More keys than there are: real ones resampled, with noise of the residual covariance of their list.

An entry is a real key plus a random mixture of residuals of the same list, which has exactly the covariance of those
residuals. Keys of twice the dimension are those of two tokens in a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from engine_sets import Array

LISTS = 256
POOL = 300_000  # real keys that entries are drawn from
SCALE = 0.5  # of the noise, in standard deviations of the residuals
BATCH = 65_536


def doubled(keys: Array, dim: int) -> Array:
    """Keys of `dim` dimensions, d or 2 d: those of one token or of two in a row. (n, dim) float32."""
    d = keys.shape[1]
    if dim == d:
        return np.asarray(keys, np.float32)
    if dim != 2 * d:
        raise SystemExit(f"--dim: expected {d} or {2 * d} for these keys, found {dim}")
    return np.concatenate([np.asarray(keys[:-1], np.float32), np.asarray(keys[1:], np.float32)], axis=1)


def nearest(points: Array, centres: Array) -> Array:
    """Index of the nearest centre of each point."""
    norms = np.square(centres).sum(1)
    parts = np.array_split(points, max(1, len(points) // BATCH))
    return np.concatenate([(norms - 2 * part @ centres.T).argmin(1) for part in parts])


class Source:
    """Entries by the number of their batch: the same number, the same entries."""

    def __init__(self, keys: Array, dim: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        start = int(rng.integers(max(1, len(keys) - 2 * POOL))) if dim > keys.shape[1] else 0
        if dim > keys.shape[1]:
            pool = doubled(keys[start : start + min(POOL, len(keys))], dim)
        else:
            pool = doubled(keys[np.sort(rng.choice(len(keys), min(POOL, len(keys)), replace=False))], dim)
        lists = min(LISTS, max(1, len(pool) // 64))
        centres = pool[rng.choice(len(pool), lists, replace=False)]
        for _ in range(5):
            labels = nearest(pool, centres)
            counts = np.maximum(np.bincount(labels, minlength=lists), 1)
            sums = np.zeros_like(centres)
            np.add.at(sums, labels, pool)
            centres = sums / counts[:, None].astype(np.float32)
        labels = nearest(pool, centres)
        order = np.argsort(labels, kind="stable")
        self.pool = pool[order]  # by list
        labels = labels[order]
        self.residuals = self.pool - centres[labels]
        bounds = np.searchsorted(labels, np.arange(lists + 1))
        self.first, self.length = bounds[labels], (bounds[1:] - bounds[:-1])[labels]
        self.dim, self.seed = dim, seed

    def batch(self, number: int, count: int) -> Array:
        """(count, dim) float32."""
        rng = np.random.default_rng((self.seed, number))
        rows = rng.integers(len(self.pool), size=count)
        out = self.pool[rows]
        for _ in range(2):  # two of them: the mixture is no copy of one entry's residual
            others = self.first[rows] + (rng.random(count) * self.length[rows]).astype(np.int64)
            weights = rng.standard_normal((count, 1), np.float32) * np.float32(SCALE / np.sqrt(2))
            out = out + weights * self.residuals[others]
        return out

    def batches(self, entries: int) -> Iterator[tuple[int, Array]]:
        """All of them: first id and keys."""
        for number, start in enumerate(range(0, entries, BATCH)):
            yield start, self.batch(number, min(BATCH, entries - start))


class Exact:
    """The k nearest entries of a few queries, kept up to date while entries pass."""

    def __init__(self, queries: Array, k: int) -> None:
        self.queries, self.k = queries, k
        self.norms = np.square(queries).sum(1)
        self.distances: list[Array] = [np.zeros(0, np.float32)] * len(queries)
        self.ids: list[Array] = [np.zeros(0, np.int64)] * len(queries)
        self.limit = np.full(len(queries), np.inf, np.float32)

    def see(self, keys: Array, first: int) -> None:
        """Takes keys with ids from `first` on."""
        near = np.square(keys).sum(1) - 2 * self.queries @ keys.T + self.norms[:, None]  # (q, n)
        for i, row in enumerate(near):
            some = np.flatnonzero(row < self.limit[i])
            distances = np.concatenate([self.distances[i], row[some]])
            ids = np.concatenate([self.ids[i], some + first])
            if len(ids) > self.k:
                best = np.argpartition(distances, self.k - 1)[: self.k]
                distances, ids = distances[best], ids[best]
                self.limit[i] = distances.max()
            self.distances[i], self.ids[i] = distances, ids

    def recall(self, found: Array) -> float:
        """Share of them among the found ids (q, k')."""
        hits = [len(np.intersect1d(a, b)) for a, b in zip(found, self.ids, strict=True)]
        return float(np.sum(hits) / sum(len(ids) for ids in self.ids))
