"""What found neighbors are worth: recall, mass of the weights, total variation, perplexity, all against exact search.

All scores use true distances of the returned ids where the truth is meant, and the returned distances where the user of
an index would see them: recall and mass say which neighbors came back, total variation and perplexity what p_kNN makes
of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from engine_sets import KeySet
from numpy.typing import NDArray

from knnlm.evaluate.tune import tune
from knnlm.lm.retrieved_text import RetrievedText
from knnlm.probability.fixed import Fixed

Array = NDArray[Any]


PAIRS = 32_768  # distances that are computed at once


def pair_distances(keys: Array, queries: Array, rows: Array, ids: Array) -> NDArray[np.float32]:
    """Squared L2 of query rows[i] and key ids[i]: (m,)."""
    out = np.empty(len(rows), np.float32)
    order = np.argsort(ids, kind="stable")  # the keys are a mapped file
    for at in range(0, len(rows), PAIRS):
        part = order[at : at + PAIRS]
        apart = keys[ids[part]].astype(np.float32) - queries[rows[part]]  # (m, d)
        out[part] = np.einsum("ij,ij->i", apart, apart)
    return out


def softmax(distances: Array, temperature: float) -> NDArray[np.float64]:
    """Weights of the neighbors: (q, k)."""
    x = -distances.astype(np.float64) / temperature
    x -= np.where(np.isfinite(x), x, -np.inf).max(axis=1, keepdims=True, initial=-1e300)
    weights = np.exp(np.where(np.isfinite(x), x, -np.inf))
    total: NDArray[np.float64] = weights.sum(axis=1, keepdims=True)
    return weights / np.maximum(total, 1e-300)


@dataclass(frozen=True)
class Truth:
    """Exact neighbors of the queries and what is tuned on them."""

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

    def part(self, count: int) -> Truth:
        """Of `count` queries at equal distances."""
        rows = np.linspace(0, len(self.queries) - 1, min(count, len(self.queries))).astype(int)
        some = {
            name: None if (array := getattr(self, name)) is None or name == "values" else array[rows]
            for name in ("queries", "distances", "ids", "targets", "log_p_lm")
        }
        part = replace(self, **some)
        if part.log_p_lm is None:
            return part
        exact, lm = perplexity(part, part.distances, part.ids), float(np.exp(-part.log_p_lm.mean()))
        return replace(part, perplexity=exact, lm_perplexity=lm)


def truth(key_set: KeySet, neighbors: tuple[Array, Array], tuning: tuple[Array, Array], rows: Array) -> Truth:
    """Tunes lambda, T and k on exact neighbors of the tuning queries, and scores the measured ones (`rows`)."""
    distances, ids = neighbors
    if key_set.values is None or key_set.targets is None or key_set.log_p_lm is None:
        gap = float(np.median(distances[:, -1] - distances[:, 0]))
        return Truth(key_set.queries[rows], distances, ids, max(gap / 6, 1e-6), None, None, None)
    count = len(tuning[0])
    cached = RetrievedText(
        log_p_lm=key_set.log_p_lm[:count].astype(np.float32),
        distances=tuning[0],
        match=key_set.values[tuning[1]] == key_set.targets[:count, None],
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
    return out.part(len(rows))


def perplexity(t: Truth, distances: Array, ids: Array) -> float:
    """Of the mixture at the tuned lambda, T and k, from returned distances."""
    if t.values is None or t.targets is None or t.log_p_lm is None:
        return float("nan")
    k = min(t.k, ids.shape[1])
    match = (t.values[np.maximum(ids, 0)] == t.targets[:, None]) & (ids >= 0)
    near = np.where(ids >= 0, distances, np.inf).astype(np.float32)
    text = RetrievedText(log_p_lm=t.log_p_lm.astype(np.float32), distances=near, match=match)
    mixed = text.log_p_of(Fixed(t.lambda_, t.temperature, k))
    return float(np.exp(-np.mean(mixed, dtype=np.float64)))


@dataclass(frozen=True)
class Matched:
    """Returned ids beside the exact ones, each (q, k)."""

    true: NDArray[np.float32]  # squared L2 of each returned id; +inf for what is missing or was there before
    found: NDArray[np.bool_]  # is one of the exact ids
    partner: NDArray[np.int64]  # its place among them


def match(t: Truth, keys: Array, ids: Array, k: int) -> Matched:
    """Where the returned ids are in the exact answer; distances are computed only of those that are not."""
    q, n = len(ids), len(keys)
    rows = np.broadcast_to(np.arange(q)[:, None], ids.shape)
    order = np.argsort(t.ids[:q, :k], axis=1, kind="stable")
    sorted_ids = (np.take_along_axis(t.ids[:q, :k], order, 1) + np.arange(q)[:, None] * n).ravel()
    flat = (rows * n + ids).ravel()
    at = np.minimum(np.searchsorted(sorted_ids, flat), len(sorted_ids) - 1)
    there = (ids >= 0).ravel()
    first = np.zeros(len(flat), bool)
    first[np.unique(flat, return_index=True)[1]] = True  # an id that comes twice counts once
    there &= first
    found = (sorted_ids[at] == flat) & there
    place = order.ravel()[at]
    exact = t.distances[:q, :k]
    true = np.full(len(flat), np.inf, np.float32)
    true[found] = exact[rows.ravel()[found], place[found]]
    other = np.flatnonzero(there & ~found)
    true[other] = pair_distances(keys, t.queries, rows.ravel()[other], ids.ravel()[other])
    return Matched(true.reshape(ids.shape), found.reshape(ids.shape), place.reshape(ids.shape))


def judge(t: Truth, keys: Array, found: tuple[Array, Array], k: int) -> dict[str, float]:
    """Recall (ties count), mass recall and total variation at k; at the full k the perplexity too."""
    distances, ids = found[0].astype(np.float32), found[1].astype(np.int64)
    q = len(ids)
    exact = t.distances[:q, :k]
    m = match(t, keys, ids, k)
    bound = exact[:, -1:] * (1 + 1e-5) + 1e-6  # equal keys, summed in another order
    recall = np.minimum((m.true <= bound).sum(axis=1), k).mean() / k
    weights = softmax(exact, t.temperature)
    nearest = exact[:, :1].astype(np.float64)
    total = np.exp(-(exact - nearest) / t.temperature).sum(axis=1)
    mass = np.exp(-(m.true - nearest) / t.temperature).sum(axis=1) / total
    shown = softmax(np.where(ids >= 0, distances, np.inf), t.temperature)
    # Sum of |a - b| over the union: what is common, and the rest of each side alone.
    theirs = np.take_along_axis(weights, m.partner, 1)
    apart = np.where(m.found, np.abs(shown - theirs), shown).sum(axis=1)
    rest = weights.sum(axis=1) - np.where(m.found, theirs, 0).sum(axis=1)
    out = {
        "recall": float(recall),
        "mass": float(np.minimum(mass, 1.0).mean()),
        "variation": float((apart + rest).mean() / 2),
    }
    if k == t.distances.shape[1] and q == len(t.queries):
        out["perplexity"] = perplexity(t, distances, ids)
    return out
