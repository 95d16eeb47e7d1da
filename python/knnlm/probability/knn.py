"""p_kNN of neighbors (Khandelwal et al. 2020, equation 2), sparse and in log space.

    p_kNN(y | x) = sum over neighbors i with v_i = y of softmax_i(-d_i / T)      (inner product: softmax_i(+s_i / T))

Where a query has no neighbor at all p_kNN does not exist: its logarithm is NaN here. `mix.py` has equation 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.store.arrays import to_integers
from knnlm.store.neighbors import METRICS, Neighbors

Floats = NDArray[np.floating[Any]]


class SparseProbabilities(NamedTuple):
    """Probabilities of the retrieved tokens only, as compressed rows.

    tokens: (m,) ascending within a row.  probabilities: (m,) float64.
    offsets: (q + 1,); row i is offsets[i]:offsets[i + 1].
    """

    tokens: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    offsets: NDArray[np.int64]


def knn_log_weights(distances: ArrayLike, temperature: float, metric: str = "l2") -> NDArray[np.float64]:
    """Log of each neighbor's share of p_kNN: log softmax(-d/T), for "ip" log softmax(+s/T).

    distances: (..., k); +inf (ip: -inf) marks a missing slot, which gets -inf. Returns (..., k) float64; a row with
    nothing but missing slots is all -inf. Raises ValueError for T <= 0, an unknown metric or a NaN distance.
    """
    if not temperature > 0 or not np.isfinite(temperature):
        raise ValueError(f"temperature: expected a positive finite number, found {temperature}")
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {METRICS}, found {metric!r}")
    scores = np.asarray(distances, np.float64) / (temperature if metric == "ip" else -temperature)
    if np.isnan(scores).any():
        raise ValueError("distances: found NaN; every slot needs a distance, or +inf (ip: -inf) if it is missing")
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0.0)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    return np.asarray(scores - top - np.log(np.where(total > 0, total, 1.0)))


def knn_weights(distances: ArrayLike, temperature: float, metric: str = "l2") -> NDArray[np.float64]:
    """Each neighbor's share of p_kNN, (..., k) float64; the sum of a row is 1, or 0 where nothing was found."""
    return np.exp(knn_log_weights(distances, temperature, metric))


def log_p_knn(
    neighbors: Neighbors, targets: ArrayLike, temperature: float, dtype: type[np.floating[Any]] = np.float64
) -> NDArray[np.float64]:
    """log p_kNN of one target token per query.

    targets: (...) integers. dtype: of the weights, see `log_p_of_matches`. Returns (...) float64: -inf where the target
    was not retrieved, NaN where nothing was.
    """
    targets = np.asarray(targets)
    if targets.shape != neighbors.ids.shape[:-1]:
        raise ValueError(f"targets: expected shape {neighbors.ids.shape[:-1]}, found {targets.shape}")
    match = matches(neighbors, targets)
    rows = neighbors.distances.reshape(-1, neighbors.k), match.reshape(-1, neighbors.k)
    log_p: NDArray[np.float64] = log_p_of_matches(*rows, temperature, neighbors.metric, dtype=dtype)[0]
    return log_p.reshape(targets.shape)


def matches(neighbors: Neighbors, targets: ArrayLike) -> NDArray[np.bool_]:
    """Which neighbors' values are the target: (..., k) and (...) integers to (..., k) bool.

    Raises ValueError for targets that are no integers, or that no value can be.
    """
    dtype = neighbors.values.dtype
    most = int(np.iinfo(dtype).max)
    wanted = to_integers(targets, "targets", dtype, 0, most, "targets are values as the store has them")[..., None]
    return np.asarray((neighbors.values == wanted) & neighbors.found)


def log_p_of_matches(
    distances: ArrayLike,
    match: NDArray[np.bool_],
    temperature: float,
    metric: str = "l2",
    ks: Sequence[int] | None = None,
    dtype: type[np.floating[Any]] = np.float64,
) -> NDArray[np.float64]:
    """log p_kNN of targets from the nearest k neighbors, for several k from one pass over the distances.

    distances, match: (r, k), nearest first; missing +inf (ip: -inf). ks: ascending; None = all k. dtype: of the
    weights; NumPy adds a row in pairs, so float32 loses nothing that matters to a perplexity. Returns (len(ks), r):
    -inf where the target was not retrieved, NaN where nothing was. As T goes to 0 only the nearest count, and a T that
    the dtype cannot hold means that limit. Raises ValueError for T <= 0, a NaN distance or ks that do not ascend.
    """
    if not temperature > 0 or not np.isfinite(temperature):
        raise ValueError(f"temperature: expected a positive finite number, found {temperature}")
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {METRICS}, found {metric!r}")
    d = np.asarray(distances)
    ks = [d.shape[1]] if ks is None else list(ks)
    if ks != sorted(set(ks)) or (d.shape[1] and not 1 <= ks[0] <= ks[-1] <= d.shape[1]):
        raise ValueError(f"k: expected ascending numbers between 1 and {d.shape[1]}, found {ks}")
    if not d.size:
        return np.full((len(ks), len(d)), np.nan)
    d = d[:, : ks[-1]]
    nearest = d.max(axis=1, keepdims=True) if metric == "ip" else d.min(axis=1, keepdims=True)
    if np.isnan(nearest).any():
        raise ValueError("distances: found NaN; every slot needs a distance, or +inf (ip: -inf) if it is missing")
    some = np.isfinite(nearest)
    weights = np.subtract(d, np.where(some, nearest, 0), dtype=dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        weights *= dtype((1.0 if metric == "ip" else -1.0) / max(temperature, float(np.finfo(dtype).tiny)))
        weights[~some[:, 0]] = -np.inf
        np.exp(weights, out=weights)  # (r, k) relative to the nearest
    spans = [slice(a, b) for a, b in zip([0, *ks[:-1]], ks, strict=True)]

    def sums(x: NDArray[Any]) -> NDArray[np.float64]:
        return np.stack([x[:, span].sum(1) for span in spans], axis=1, dtype=np.float64).cumsum(1)  # (r, len(ks))

    total = sums(weights)
    hit = sums(weights * match[:, : ks[-1]])
    with np.errstate(divide="ignore", invalid="ignore"):
        # A sum over all of the weights may exceed 1 by rounding; 0 / 0 = NaN: no neighbor.
        return np.asarray(np.log(np.minimum(hit / total, 1.0)).T)


def sparse_p_knn(neighbors: Neighbors, temperature: float) -> SparseProbabilities:
    """p_kNN of every retrieved token, never a dense (q, v).

    neighbors: (..., k), flattened to q rows. A row without neighbors is empty; any other sums to 1.
    """
    k = neighbors.k
    values = neighbors.values.reshape(-1, k)
    found = neighbors.found.reshape(-1, k)
    weights = knn_weights(neighbors.distances, temperature, neighbors.metric).reshape(-1, k)
    rows = np.broadcast_to(np.arange(len(values))[:, None], values.shape)[found]  # (h,)
    tokens, weights = values[found].astype(np.int64), weights[found]
    order = np.lexsort((tokens, rows))
    rows, tokens, weights = rows[order], tokens[order], weights[order]
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:] != rows[:-1]) | (tokens[1:] != tokens[:-1])
    starts = np.flatnonzero(first)
    sums = np.add.reduceat(weights, starts) if len(starts) else np.zeros(0)
    offsets = np.searchsorted(rows[starts], np.arange(len(values) + 1)).astype(np.int64)
    return SparseProbabilities(tokens[starts], sums, offsets)
