"""The whole method in exact NumPy, one query at a time: the oracle of the tests (Khandelwal et al. 2020, section 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.store.neighbors import Neighbors

Vector = NDArray[np.float64]


class StoredDocument(NamedTuple):
    """A contiguous range of ids with a name."""

    name: str
    start: int
    stop: int
    metadata: dict[str, Any] | None = None


class BruteForceStore:
    """A datastore in memory that compares each query with each key."""

    def __init__(self, dim: int, metric: str = "l2", value_dtype: str = "uint32") -> None:
        """Start empty."""
        self.dim, self.metric = dim, metric
        self.attributes: dict[str, Any] = {}
        self.path = ""
        self.default_temperature: float | None = None
        self._keys = np.zeros((0, dim), np.float32)
        self._values = np.zeros(0, value_dtype)
        self._documents: list[StoredDocument] = []

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._values)

    def add(
        self, keys: ArrayLike, values: ArrayLike, document: str | None = None, metadata: dict[str, Any] | None = None
    ) -> range:
        """Append entries (m, d), (m,); the name of the last document extends that document. Returns their ids."""
        keys, values = np.asarray(keys, np.float32), np.asarray(values).astype(self._values.dtype)
        if keys.shape != (len(values), self.dim) or not np.isfinite(keys).all():
            raise ValueError(f"keys: expected ({len(values)}, {self.dim}) finite numbers, found {keys.shape}")
        start, stop = len(self), len(self) + len(values)
        self._keys, self._values = np.concatenate([self._keys, keys]), np.concatenate([self._values, values])
        last = self._documents[-1] if self._documents else None
        if last is not None and document is not None and last.name == document:
            self._documents[-1] = last._replace(stop=stop)
        else:
            self._documents.append(
                StoredDocument(document or f"document-{len(self._documents)}", start, stop, metadata)
            )
        return range(start, stop)

    def search(
        self,
        queries: ArrayLike,
        k: int = 1024,
        *,
        nprobe: int | None = None,
        rerank: str | None = None,
        exact: bool = False,
        exclude: ArrayLike | None = None,
        threads: int | None = None,
    ) -> Neighbors:
        """The k nearest by (distance, id); distances summed in float64. Always exact: the knobs change nothing."""
        queries = np.asarray(queries, np.float64)
        if k < 1:
            raise ValueError(f"k: expected at least 1, found {k}")
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries: expected (q, {self.dim}), found {queries.shape}")
        worst = np.inf if self.metric == "l2" else -np.inf
        distances = np.full((len(queries), k), worst, np.float32)
        values = np.full((len(queries), k), np.iinfo(self._values.dtype).max, self._values.dtype)
        ids = np.full((len(queries), k), -1, np.int64)
        keys, all_ids = self._keys.astype(np.float64), np.arange(len(self))
        for row, query in enumerate(queries):
            d = ((keys - query) ** 2).sum(1) if self.metric == "l2" else keys @ query
            d = d.astype(np.float32)
            start, stop = (0, 0) if exclude is None else np.asarray(exclude)[row]
            allowed = all_ids[(all_ids < start) | (all_ids >= stop)]
            order = np.argsort(d[allowed] if self.metric == "l2" else -d[allowed], kind="stable")[:k]
            best = allowed[order]
            distances[row, : len(best)], values[row, : len(best)], ids[row, : len(best)] = (
                d[best],
                self._values[best],
                best,
            )
        return Neighbors(distances, values, ids, self.metric)

    def reconstruct(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Keys of ids, (...) to (..., d)."""
        return self._keys[np.asarray(ids, np.int64)]

    def values(self, start: int, stop: int) -> NDArray[Any]:
        """Values of a range of ids."""
        return self._values[start:stop]

    def documents(self) -> Sequence[StoredDocument]:
        """The document table."""
        return self._documents

    def document_spans(self) -> NDArray[np.int64]:
        """Half-open ranges of ids, (D, 2)."""
        return np.array([(document.start, document.stop) for document in self._documents], np.int64).reshape(-1, 2)

    @property
    def next_id(self) -> int:
        """Nothing is ever deleted."""
        return len(self)

    @property
    def generation(self) -> int:
        """Entries are only added."""
        return len(self)

    def document_of(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Index of the document of each id, -1 for a missing one."""
        ids = np.asarray(ids, np.int64)
        starts = np.array([document.start for document in self._documents], np.int64)
        return np.where(ids < 0, -1, np.searchsorted(starts, ids, side="right") - 1)

    def set_attributes(self, attributes: dict[str, Any]) -> None:
        """Replace what Python wants remembered."""
        self.attributes = dict(attributes)


def p_knn(distances: ArrayLike, values: ArrayLike, vocabulary: int, temperature: float, metric: str = "l2") -> Vector:
    """p_kNN over the whole vocabulary for one query (equation 2); all zero if nothing was found."""
    scores = np.asarray(distances, np.float64) * ((1.0 if metric == "ip" else -1.0) / temperature)
    found = [(score, value) for score, value in zip(scores, np.asarray(values), strict=True) if np.isfinite(score)]
    top = max((score for score, _ in found), default=0.0)
    total = sum(math.exp(score - top) for score, _ in found)
    p = np.zeros(vocabulary)
    for score, value in found:
        p[value] += math.exp(score - top) / total
    return p


def mixture(p_lm: ArrayLike, p_neighbors: ArrayLike, lambda_: float) -> Vector:
    """lambda p_kNN + (1 - lambda) p_LM over the vocabulary (equation 3); p_LM where p_kNN is all zero."""
    p_lm, p_neighbors = np.asarray(p_lm, np.float64), np.asarray(p_neighbors, np.float64)
    return lambda_ * p_neighbors + (1 - lambda_) * p_lm if p_neighbors.any() else p_lm


def perplexity(log_p: ArrayLike, units: int | None = None) -> float:
    """exp(-sum of log p / units); units = number of tokens (default), or of words for word-level perplexity."""
    log_p = np.asarray(log_p, np.float64)
    return math.exp(-log_p.sum() / (len(log_p) if units is None else units))


def continuous_cache(keys: ArrayLike, targets: ArrayLike, vocabulary: int, theta: float, size: int) -> Vector:
    """p_cache(w) ~ sum over the last `size` steps i < t with w_i = w of exp(theta h_t . h_i) (Grave et al. 2017).

    keys (L, d), targets (L,) of one document. Returns (L, v); row 0, which has no past, is zero.
    """
    keys, targets = np.asarray(keys, np.float64), np.asarray(targets)
    p = np.zeros((len(keys), vocabulary))
    for t in range(1, len(keys)):
        past = slice(max(0, t - size), t)
        p[t] = p_knn(keys[past] @ keys[t], targets[past], vocabulary, 1.0 / theta, "ip")
    return p
