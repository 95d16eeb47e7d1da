"""Continuous cache of the running text (Grave, Joulin & Usunier, ICLR 2017): a datastore of the last N tokens.

The cache holds the last N pairs (h_i, x_{i+1}) of the same document, and

    p_cache(w | h_t) ∝ sum over the cached i of 1[x_{i+1} = w] exp(theta h_t·h_i)                      (equation 3)

which is p_kNN over the cache with inner products, k = N and T = 1/theta. Keys that are compared by distance in the
store can be compared so here as well: exp(-theta |h_t - h_i|²), T = 1/theta again. Position t of a document sees the
pairs before it. Position 0 sees none: p_cache does not exist there (NaN), and a mixture gives its weight to the others.

`ContinuousCache` is that datastore, to be searched like any other; `continuous_cache_log_p` scores a document with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.store.neighbors import METRICS, MISSING, Neighbors, missing_value
from knnlm.system.memory import refuse_answer

Floats = NDArray[np.float64]
Theta = float | Literal["auto"]
"""Flatness: 0 counts words, large values copy the nearest pair; "auto": `theta_of` each query's own scores."""

_BLOCK = 256  # positions per matrix product: one product holds (256, N + 256) floats


class ContinuousCache:
    """A datastore of the last `size` (key, token) pairs of one running text, searched exactly.

    Ids are positions in the text, from 0. Pairs that `size` pushed out are never found again. Raises ValueError for a
    size below 1 or an unknown metric.
    """

    def __init__(self, dim: int, size: int = 2000, metric: str = "ip") -> None:
        if metric not in METRICS:
            raise ValueError(f'expected the metric "ip" or "l2", found {metric!r}')
        if size < 1 or dim < 1:
            raise ValueError(f"expected a size and a dimension of at least 1, found {size} and {dim}")
        self.dim, self.size, self.metric = dim, size, metric
        # Pairs lie together in the order of the text; room for as many again, so that they move once in `size` pairs.
        self._store_keys = np.zeros((0, dim), np.float32)
        self._store_values = np.zeros(0, np.uint32)
        self._norms = np.zeros(0)
        self._first = self._last = 0  # the pairs that are kept are first:last
        self._next = 0  # id of the next pair

    def __len__(self) -> int:
        """Pairs that are kept."""
        return self._last - self._first

    @property
    def _keys(self) -> NDArray[np.float32]:
        return self._store_keys[self._first : self._last]

    @property
    def _values(self) -> NDArray[np.uint32]:
        return self._store_values[self._first : self._last]

    def add(self, keys: ArrayLike, values: ArrayLike) -> None:
        """Append pairs: keys (m, d), values (m,). Raises ValueError for shapes that do not fit."""
        h, x = np.asarray(keys, np.float32), np.asarray(values)
        if h.ndim != 2 or h.shape[1] != self.dim or x.shape != h.shape[:1]:
            raise ValueError(f"expected keys (m, {self.dim}) and values (m,), found {h.shape} and {x.shape}")
        self._next += len(x)
        h, x = h[-self.size :], x[-self.size :]
        self._make_room(len(x))
        stop = self._last + len(x)
        self._store_keys[self._last : stop] = h
        self._store_values[self._last : stop] = x.astype(np.uint32)
        if self.metric == "l2":
            self._norms[self._last : stop] = _squares(h)
        self._first, self._last = max(self._first, stop - self.size), stop

    def _make_room(self, count: int) -> None:
        """Room for `count` pairs more, at most `size`, after the last one."""
        if self._last + count <= len(self._store_values):
            return
        keep = min(len(self), self.size)
        room = min(2 * self.size, max(2 * (keep + count), 64))
        room = max(room, keep + count)
        held = slice(self._last - keep, self._last)
        for name, width in (("_store_keys", (self.dim,)), ("_store_values", ()), ("_norms", ())):
            old = getattr(self, name)
            new = np.empty((room, *width), old.dtype)
            new[:keep] = old[held]
            setattr(self, name, new)
        self._first, self._last = 0, keep

    def search(
        self,
        queries: Any,
        k: int = 1024,
        *,
        nprobe: int | None = None,
        rerank: str | None = None,
        exact: bool = False,
        exclude: Any = None,
        threads: int | None = None,
    ) -> Neighbors:
        """The k nearest pairs of each query (..., d); exclude: a half-open id range a query, (..., 2).

        nprobe, rerank, exact and threads change nothing: there is no index. Raises ValueError for k < 1 or a wrong d.
        """
        if k < 1:
            raise ValueError(f"k: expected at least 1, found {k}")
        q = np.asarray(queries, np.float32)
        if q.ndim < 1 or q.shape[-1] != self.dim:
            raise ValueError(f"queries: expected shape (..., {self.dim}), found {q.shape}")
        lead, n = q.shape[:-1], len(self)
        refuse_answer(int(np.prod(lead, dtype=np.int64)), k, n, 4 + 4 + 8)
        scores = _scores(
            q.reshape(-1, self.dim), self._keys, self.metric, self._norms[self._first : self._last]
        )  # (q, n)
        ids = np.arange(self._next - n, self._next)
        if exclude is not None:
            low, high = np.asarray(exclude, np.int64).reshape(-1, 2).T[..., None]  # (q, 1) each
            scores[(ids >= low) & (ids < high)] = -np.inf
        order = _order(scores, k)  # (q, min(k, n)); equal scores by id
        best = np.take_along_axis(scores, order, 1)
        gone = np.isneginf(best)
        found = np.full((len(scores), k), MISSING, np.int64)
        values = np.full((len(scores), k), missing_value(np.uint32), np.uint32)
        near = np.full((len(scores), k), -np.inf, np.float32)
        width = order.shape[1]
        near[:, :width] = best
        found[:, :width] = np.where(gone, MISSING, ids[order])
        values[:, :width] = np.where(gone, missing_value(np.uint32), self._values[order])
        near = near if self.metric == "ip" else np.where(np.isneginf(near), np.inf, np.maximum(-near, 0))
        shape = (*lead, k)
        return Neighbors(near.reshape(shape), values.reshape(shape), found.reshape(shape), self.metric)

    def log_p_and_add(self, keys: ArrayLike, targets: ArrayLike, thetas: Sequence[Theta]) -> Floats:
        """Read on: log p_cache of each target, (g, m) for g thetas, from the pairs before it; then keep the pairs.

        keys (m, d), targets (m,): positions that follow what was added, each of which sees those before it here too.
        """
        h, x = np.asarray(keys, np.float32), np.asarray(targets)
        out = np.full((len(thetas), len(h)), np.nan)
        for start in range(0, len(h), _BLOCK):
            own, told = h[start : start + _BLOCK], x[start : start + _BLOCK]
            low = self._next - len(self)
            position = np.arange(self._next, self._next + len(own))
            before, said = np.concatenate([self._keys, own]), np.concatenate([self._values, told])  # (w, d), (w,)
            scores = _scores(own, before, self.metric)  # (b, w)
            age = position[:, None] - np.arange(low, low + len(said))[None, :]  # (b, w)
            cached = (age >= 1) & (age <= self.size)
            match = cached & (said[None, :] == told[:, None])
            best = np.max(scores, axis=1, keepdims=True, where=cached, initial=-np.inf)  # (b, 1)
            scores -= np.where(np.isfinite(best), best, 0.0)
            for g, theta in enumerate(thetas):
                each: Any = theta
                if theta == "auto":
                    each = np.array([[theta_of(row[kept])] for row, kept in zip(scores, cached, strict=True)])  # (b, 1)
                weights = np.exp(each * scores, where=cached, out=np.zeros_like(scores))
                total, hit = weights.sum(axis=1), weights.sum(axis=1, where=match)
                with np.errstate(divide="ignore", invalid="ignore"):
                    out[g, start : start + len(own)] = np.log(hit / total)  # 0 / 0: nothing is cached
            self.add(own, told)
        return out


def theta_of(scores: ArrayLike) -> float:
    """Theta for one query from its own scores, (n,): 6 over the gap between the best and the best tenth's last.

    The rule of a store's default temperature, so that the last of n / 10 neighbors weighs exp(-6) of the first. It
    needs no validation text and looks at nothing that comes later. 1 where there is no gap.
    """
    s = np.asarray(scores, np.float64)
    if len(s) < 2:
        return 1.0
    at = len(s) - 1 - min(max(1, len(s) // 10), len(s) - 1)
    gap = float(s.max() - np.partition(s, at)[at])
    return 6 / gap if gap > 0 else 1.0


def continuous_cache_log_p(
    keys: ArrayLike,
    targets: ArrayLike,
    theta: Theta | Sequence[Theta],
    size: int = 2000,
    metric: str = "ip",
) -> Floats:
    """Log p_cache of each target of one document, from the `size` pairs before it.

    Args:
        keys: (L, d) key at each position; any float type, computed in float32.
        targets: (L,) token that follows each key.
        theta: flatness, or "auto". Several values cost one matrix product.
        size: N, how many pairs are kept.
        metric: "ip" for h_t·h_i as in the paper, "l2" for -|h_t - h_i|².

    Returns:
        (L,) float64, or (len(theta), L) for several: -inf where no cached pair has the target, NaN at position 0.

    Raises:
        ValueError: shapes that do not fit, an unknown metric, negative theta, or size below 1.
    """
    h = np.ascontiguousarray(keys, dtype=np.float32)  # (L, d)
    x = np.asarray(targets)
    single = isinstance(theta, str) or np.ndim(theta) == 0
    thetas: list[Theta] = [theta] if single else list(theta)  # type: ignore[list-item,arg-type]
    if h.ndim != 2 or x.shape != h.shape[:1]:
        raise ValueError(f"expected keys (L, d) and targets (L,), found {h.shape} and {x.shape}")
    if not all(value == "auto" or (not isinstance(value, str) and value >= 0) for value in thetas):
        raise ValueError(f'expected theta >= 0 or "auto", found {theta}')
    out = ContinuousCache(h.shape[1], size, metric).log_p_and_add(h, x, thetas)
    return np.asarray(out[0]) if single else out


def _scores(
    queries: NDArray[np.float32], keys: NDArray[np.float32], metric: str, squares: Floats | None = None
) -> Floats:
    """Larger is nearer: inner products, or negative squared distances, (q, n). squares: |key|², (n,), if known."""
    scores = (queries @ keys.T).astype(np.float64)
    if metric == "l2":
        k2 = _squares(keys) if squares is None else squares
        scores = 2 * scores - _squares(queries)[:, None] - k2[None, :]
    return scores


def _squares(x: NDArray[np.float32]) -> Floats:
    return np.asarray(np.einsum("nd,nd->n", x, x, dtype=np.float64))


def _order(scores: Floats, k: int) -> NDArray[np.int64]:
    """Columns of the k largest of each row, largest first, ties by column: (q, min(k, n))."""
    n = scores.shape[1]
    if k >= n:
        return np.argsort(-scores, axis=1, kind="stable")
    limit = np.partition(scores, n - k, axis=1)[:, n - k, None]  # the k-th largest
    out = np.empty((len(scores), k), np.int64)
    for row, (own, least) in enumerate(zip(scores, limit, strict=True)):
        above = np.flatnonzero(own > least)
        chosen = np.concatenate([above, np.flatnonzero(own == least)[: k - len(above)]])  # equal ones by column
        out[row] = chosen[np.argsort(-own[chosen], kind="stable")]
    return out
