"""Continuous cache of the running text (Grave, Joulin & Usunier, ICLR 2017): a datastore of the last N tokens.

The cache holds the last N pairs (h_i, x_{i+1}) of the same document, and

    p_cache(w | h_t) ∝ sum over the cached i of 1[x_{i+1} = w] exp(theta h_t·h_i)                      (equation 3)

which is p_kNN over the cache with inner products, k = N and T = 1/theta. Keys that are compared by distance in the
store can be compared so here as well: exp(-theta |h_t - h_i|²), T = 1/theta again. Position t of a document sees the
pairs before it. Position 0 sees none: p_cache does not exist there (NaN), and a mixture gives its weight to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.arrays import to_floats, to_integers
from knnlm.neighbours import Neighbours

Floats = NDArray[np.float64]

_BLOCK = 256  # positions per matrix product: one product holds (256, N + 256) floats


def continuous_cache_log_p(
    keys: ArrayLike,
    targets: ArrayLike,
    theta: float | Sequence[float],
    size: int = 2000,
    metric: str = "ip",
) -> Floats:
    """Log p_cache of each target of one document, from the `size` pairs before it.

    Args:
        keys: (L, d) key at each position; any float type, computed in float32.
        targets: (L,) token that follows each key.
        theta: flatness; 0 counts words, large values copy the nearest pair. Several values cost one matrix product.
        size: N, how many pairs are kept.
        metric: "ip" for h_t·h_i as in the paper, "l2" for -|h_t - h_i|².

    Returns:
        (L,) float64, or (len(theta), L) for several: -inf where no cached pair has the target, NaN at position 0.

    Raises:
        ValueError: shapes that do not fit, an unknown metric, negative theta, or size below 1.
    """
    h = np.ascontiguousarray(keys, dtype=np.float32)  # (L, d)
    x = np.asarray(targets)
    thetas = np.atleast_1d(np.asarray(theta, dtype=np.float64))  # (g,)
    if h.ndim != 2 or x.shape != h.shape[:1]:
        raise ValueError(f"expected keys (L, d) and targets (L,), found {h.shape} and {x.shape}")
    if metric not in ("ip", "l2"):
        raise ValueError(f'expected the metric "ip" or "l2", found {metric!r}')
    if thetas.ndim != 1 or not (thetas >= 0).all() or size < 1:
        raise ValueError(f"expected theta >= 0 and a size of at least 1, found {theta} and {size}")
    squares = np.einsum("ld,ld->l", h, h, dtype=np.float64)  # (L,)
    out = np.full((len(thetas), len(h)), np.nan)
    for start in range(0, len(h), _BLOCK):
        stop = min(start + _BLOCK, len(h))
        low = max(0, start - size)
        scores = (h[start:stop] @ h[low:stop].T).astype(np.float64)  # (b, w)
        if metric == "l2":
            scores = 2 * scores - squares[start:stop, None] - squares[None, low:stop]
        age = np.arange(start, stop)[:, None] - np.arange(low, stop)[None, :]  # (b, w)
        cached = (age >= 1) & (age <= size)
        match = cached & (x[None, low:stop] == x[start:stop, None])
        best = np.max(scores, axis=1, keepdims=True, where=cached, initial=-np.inf)  # (b, 1)
        scores -= np.where(np.isfinite(best), best, 0.0)
        for g, value in enumerate(thetas):
            weights = np.exp(value * scores, where=cached, out=np.zeros_like(scores))
            total, hit = weights.sum(axis=1), weights.sum(axis=1, where=match)
            with np.errstate(divide="ignore", invalid="ignore"):
                out[g, start:stop] = np.log(hit / total)  # 0 / 0: nothing is cached
    return out if np.ndim(theta) else out[0]


class RunningCache:
    """The last `size` (key, value) pairs of a text being read or written, with the `search` of a datastore.

    Ids count from 0 in the order of `append` and are not reused, so they are positions in the text. The search is
    exact; `nprobe`, `rerank`, `exact` and `threads` are accepted, because every datastore has them, and change nothing.
    """

    def __init__(self, dim: int, size: int = 2000, metric: str = "l2") -> None:
        if dim < 1 or size < 1:
            raise ValueError(f"expected a dimension and a size of at least 1, found {dim} and {size}")
        if metric not in ("ip", "l2"):
            raise ValueError(f'expected the metric "ip" or "l2", found {metric!r}')
        self.dim = dim
        self.metric = metric
        self.size = size
        self._keys = np.zeros((size, dim), dtype=np.float32)
        self._values = np.zeros(size, dtype=np.uint32)
        self._ids = np.full(size, -1, dtype=np.int64)
        self._next = 0

    def __len__(self) -> int:
        return min(self._next, self.size)

    def clear(self) -> None:
        """Forgets everything, for the start of another document; ids count from 0 again."""
        self._ids[:] = -1
        self._next = 0

    def append(self, keys: Any, values: ArrayLike) -> range:
        """Adds pairs, dropping the oldest over `size`: (m, d) or (d,) floats, (m,) tokens or one; returns their ids.

        Raises:
            ValueError: shapes that do not fit, NaN or infinite keys, values that are no unsigned 32-bit integers.
        """
        h = _rows(keys, "keys", self.dim)
        x = to_integers(values, "values", np.uint32, 0, 0xFFFFFFFF, "the cache keeps 32-bit values").reshape(-1)
        if x.shape != h.shape[:1]:
            raise ValueError(f"expected one value for each of {len(h)} keys, found {len(x)}")
        ids = np.arange(self._next, self._next + len(h))
        self._next += len(h)
        kept = slice(max(0, len(h) - self.size), len(h))
        slots = ids[kept] % self.size
        self._keys[slots], self._values[slots], self._ids[slots] = h[kept], x[kept], ids[kept]
        return range(self._next - len(h), self._next)

    def search(
        self,
        queries: Any,
        k: int = 1024,
        nprobe: int | None = None,
        rerank: str | None = None,
        exact: bool = False,
        exclude: Any = None,
        threads: int | None = None,
    ) -> Neighbours:
        """The k nearest cached pairs: queries (..., d) to arrays (..., k); missing ones have id -1.

        Args:
            queries: keys to compare with.
            k: number of neighbours; more than the cache holds gives missing ones.
            exclude: (..., 2) half-open id range left out of each query, or None.
            nprobe: ignored, as are rerank, exact and threads.
            rerank: ignored.
            exact: ignored; the search always is.
            threads: ignored.

        Raises:
            ValueError: k below 1, or shapes that do not fit.
        """
        if k < 1:
            raise ValueError(f"expected k of at least 1, found {k}")
        lead = np.shape(queries)[:-1]
        q = _rows(queries, "queries", self.dim)
        scores = (q @ self._keys.T).astype(np.float64)  # (q, N)
        if self.metric == "l2":
            squares = np.einsum("nd,nd->n", self._keys, self._keys, dtype=np.float64)
            cost = squares[None, :] - 2 * scores + np.einsum("qd,qd->q", q, q, dtype=np.float64)[:, None]
            cost = np.maximum(cost, 0.0)
        else:
            cost = -scores
        missing = np.broadcast_to(self._ids < 0, cost.shape)
        if exclude is not None:
            ranges = np.asarray(exclude, dtype=np.int64)
            if ranges.shape != (*lead, 2):
                raise ValueError(f"exclude must have shape {(*lead, 2)}, a range per query, found {ranges.shape}")
            ranges = ranges.reshape(-1, 2)
            missing = missing | ((self._ids >= ranges[:, :1]) & (self._ids < ranges[:, 1:]))
        cost = np.where(missing, np.inf, cost.astype(np.float32))  # (q, N)
        order = np.lexsort((np.broadcast_to(self._ids, cost.shape), cost))[:, :k]  # ties by id
        best = np.take_along_axis(cost, order, axis=1)
        lost = np.isinf(best)
        ids = np.where(lost, -1, self._ids[order])
        values = np.where(lost, np.uint32(0xFFFFFFFF), self._values[order])
        distances = best if self.metric == "l2" else -best
        pad, shape = ((0, 0), (0, k - order.shape[1])), (*lead, k)
        worst = np.inf if self.metric == "l2" else -np.inf
        return Neighbours(
            np.pad(distances.astype(np.float32), pad, constant_values=worst).reshape(shape),
            np.pad(values.astype(np.uint32), pad, constant_values=0xFFFFFFFF).reshape(shape),
            np.pad(ids, pad, constant_values=-1).reshape(shape),
            self.metric,
        )


def _rows(keys: Any, what: str, dim: int) -> NDArray[np.float32]:
    """Keys of any array type and leading shape as float32 (m, d)."""
    h = to_floats(keys, what, dim).reshape(-1, dim).astype(np.float32, copy=False)
    if not np.isfinite(h).all():
        raise ValueError(f"{what} must be finite, found NaN or infinity: check the model's output")
    return h
