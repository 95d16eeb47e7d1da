"""What found neighbours are worth: recall, mass of the weights, total variation, perplexity, all against exact search.

All scores use true distances of the returned ids where the truth is meant, and the returned distances where the user of
an index would see them: recall and mass say which neighbours came back, total variation and perplexity what p_kNN makes
of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from engine_sets import KeySet
from numpy.typing import NDArray

from knnlm.cached import Cached
from knnlm.interpolate import mix
from knnlm.tune import tune

Array = NDArray[Any]


def true_distances(keys: Array, queries: Array, ids: Array) -> NDArray[np.float32]:
    """Squared L2 of each returned id, +inf for missing: (q, k)."""
    out = np.full(ids.shape, np.inf, np.float32)
    for row, (query, found) in enumerate(zip(queries, ids, strict=True)):
        there = found >= 0
        out[row, there] = np.square(keys[found[there]].astype(np.float32) - query).sum(1)
    return out


def softmax(distances: Array, temperature: float) -> NDArray[np.float64]:
    """Weights of the neighbours: (q, k)."""
    x = -distances.astype(np.float64) / temperature
    x -= np.where(np.isfinite(x), x, -np.inf).max(axis=1, keepdims=True, initial=-1e300)
    weights = np.exp(np.where(np.isfinite(x), x, -np.inf))
    total: NDArray[np.float64] = weights.sum(axis=1, keepdims=True)
    return weights / np.maximum(total, 1e-300)


@dataclass(frozen=True)
class Truth:
    """Exact neighbours of the queries and what is tuned on them."""

    queries: Array  # (q, d)
    distances: Array  # (q, k)
    ids: Array  # (q, k)
    temperature: float
    values: Array | None  # (n,)
    targets: Array | None  # (q,)
    log_p_lm: Array | None  # (q,)
    lambda_: float = 0.0
    k: int = 1024  # tuned
    perplexity: float = float("nan")
    lm_perplexity: float = float("nan")


def truth(key_set: KeySet, neighbours: tuple[Array, Array], tuning: tuple[Array, Array], rows: Array) -> Truth:
    """Tunes lambda, T and k on exact neighbours of the tuning queries, and scores the measured ones (`rows`)."""
    distances, ids = neighbours
    if key_set.values is None or key_set.targets is None or key_set.log_p_lm is None:
        gap = float(np.median(distances[:, -1] - distances[:, 0]))
        return Truth(key_set.queries[rows], distances, ids, max(gap / 6, 1e-6), None, None, None)
    count = len(tuning[0])
    cached = Cached(
        key_set.log_p_lm[:count].astype(np.float32),
        tuning[0],
        key_set.values[tuning[1]] == key_set.targets[:count, None],
    )
    tuned = tune(cached)
    out = Truth(
        key_set.queries[rows],
        distances,
        ids,
        tuned.temperature,
        key_set.values,
        key_set.targets[rows],
        key_set.log_p_lm[rows],
        tuned.lambda_,
        tuned.k,
    )
    return Truth(
        **out.__dict__
        | {
            "perplexity": perplexity(out, distances, ids),
            "lm_perplexity": float(np.exp(-key_set.log_p_lm[rows].mean())),
        }
    )


def perplexity(t: Truth, distances: Array, ids: Array) -> float:
    """Of the mixture at the tuned lambda, T and k, from returned distances."""
    if t.values is None or t.targets is None or t.log_p_lm is None:
        return float("nan")
    k = min(t.k, ids.shape[1])
    match = (t.values[np.maximum(ids, 0)] == t.targets[:, None]) & (ids >= 0)
    cached = Cached(t.log_p_lm.astype(np.float32), np.where(ids >= 0, distances, np.inf).astype(np.float32), match)
    mixed = mix(t.log_p_lm, cached.log_p_knn(t.temperature, k), t.lambda_)
    return float(np.exp(-np.mean(mixed, dtype=np.float64)))


def judge(t: Truth, keys: Array, found: tuple[Array, Array], k: int) -> dict[str, float]:
    """Recall (ties count), mass recall and total variation at k; at the full k the perplexity too."""
    distances, ids = found[0].astype(np.float32), found[1]
    queries = t.queries[: len(ids)]
    exact, exact_ids = t.distances[: len(ids), :k], t.ids[: len(ids), :k]
    true = true_distances(keys, queries, ids)
    bound = exact[:, -1:] * (1 + 1e-4) + 1e-6  # f32 sums of another order, equal keys
    recall = np.minimum((true <= bound).sum(axis=1), k).mean() / k
    weights = softmax(exact, t.temperature)
    nearest = exact[:, :1].astype(np.float64)
    total = np.exp(-(exact - nearest) / t.temperature).sum(axis=1)
    there = np.isfinite(true)
    mass = np.exp(-(np.where(there, true, np.inf) - nearest) / t.temperature).sum(axis=1) / total
    shown = softmax(np.where(ids >= 0, distances, np.inf), t.temperature)
    variation = 0.0
    for row in range(len(ids)):
        common, mine, theirs = np.intersect1d(ids[row], exact_ids[row], return_indices=True)
        # Sum of |a - b| over the union: what is common, and the rest of each side alone.
        apart = np.abs(shown[row, mine] - weights[row, theirs]).sum()
        rest = shown[row].sum() - shown[row, mine].sum() + weights[row].sum() - weights[row, theirs].sum()
        variation += (apart + rest) / 2 if len(common) else 1.0
    out = {
        "recall": float(recall),
        "mass": float(np.minimum(mass, 1.0).mean()),
        "variation": variation / max(1, len(ids)),
    }
    if k == t.distances.shape[1] and len(ids) == len(t.queries):
        out["perplexity"] = perplexity(t, distances, ids)
    return out
