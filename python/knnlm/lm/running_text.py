"""Running text: what a document says of its own next token, a continuous cache of it and an n-gram model's view of it.

A document that is scored comes in chunks (`targets`), one that is generated a token at a time (`next` and `add`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.probability.blend import CACHE_SIZE, cache_name
from knnlm.probability.combiner import Feature
from knnlm.probability.continuous_cache import ContinuousCache, Theta, theta_of
from knnlm.probability.knn import sparse_p_knn


class NGram(Protocol):
    """Any n-gram model."""

    def log_probs(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """log p of each token of a document, (L,)."""
        ...

    def distribution(self, history: Sequence[int]) -> NDArray[np.float64]:
        """p of every word after a document so far, (v,)."""
        ...


class RunningText:
    """The features of one document after the other: `cache_name` of each theta, and "ngram" if there is a model.

    thetas: flatness of the cache of `size` pairs, of which the keys are compared by `metric`; none: no cache.
    """

    def __init__(
        self,
        thetas: Sequence[Theta] = (),
        size: int = CACHE_SIZE,
        metric: str = "ip",
        ngram: NGram | None = None,
    ) -> None:
        self.thetas, self.size, self.metric, self.ngram = tuple(thetas), size, metric, ngram
        self.begin()

    @classmethod
    def of(cls, texts: Sequence[RunningText]) -> RunningText:
        """One that gives the features of all of these. Raises ValueError for caches of several sizes or metrics."""
        caches = {(text.size, text.metric) for text in texts if text.thetas}
        if len(caches) > 1:
            raise ValueError(f"expected combiners with the same continuous cache, found sizes and metrics {caches}")
        size, metric = next(iter(caches), (CACHE_SIZE, "ip"))
        thetas = list(dict.fromkeys(theta for text in texts for theta in text.thetas))
        return cls(thetas, size, metric, next((text.ngram for text in texts if text.ngram is not None), None))

    @property
    def needs_keys(self) -> bool:
        """Whether it looks at keys."""
        return bool(self.thetas)

    def begin(self) -> None:
        """Begin another document."""
        self._cache: ContinuousCache | None = None
        self._log_p_ngram: NDArray[np.float64] | None = None  # of all tokens of the document
        self._history: list[int] = []

    def targets(
        self, start: int, keys: NDArray[np.float32], targets: NDArray[np.unsignedinteger[Any]], document: ArrayLike
    ) -> dict[str, NDArray[np.float32]]:
        """Features of the targets (m,) from position `start` of a document, (m,) each; the next chunk follows them.

        keys: (m, d). document: all of its tokens, (L,).
        """
        found: dict[str, NDArray[np.float32]] = {}
        if self.thetas:
            log_p = self._cache_for(keys.shape[1]).log_p_and_add(keys, targets, self.thetas)  # (thetas, m)
            found.update(zip(map(cache_name, self.thetas), log_p.astype(np.float32), strict=True))
        if self.ngram is not None:
            if self._log_p_ngram is None:
                self._log_p_ngram = self.ngram.log_probs(document)
            found["ngram"] = self._log_p_ngram[start : start + len(targets)].astype(np.float32)
        return found

    def add(self, keys: NDArray[np.float32] | None, tokens: Sequence[int] | NDArray[Any]) -> None:
        """Read on: tokens (m,) that followed keys (m, d); None where the cache is not to see them."""
        if self.thetas and keys is not None:
            self._cache_for(keys.shape[1]).add(keys, np.asarray(tokens))
        self._history.extend(int(token) for token in tokens)

    def next(self, key: NDArray[np.float32] | None, vocabulary: int) -> dict[str, Feature]:
        """Features of every word at the next position, whose key is (1, d): a row each, v words."""
        found: dict[str, Feature] = {}
        for theta in self.thetas:
            assert key is not None
            cache = self._cache_for(key.shape[1])
            near = cache.search(key, max(1, len(cache)))
            flatness = theta
            if theta == "auto":
                scores = near.distances[0] if cache.metric == "ip" else -near.distances[0]
                flatness = theta_of(scores[near.found[0]])
            # theta 0 counts words: T without end
            found[cache_name(theta)] = sparse_p_knn(near, 1 / max(float(flatness), 1e-9))
        if self.ngram is not None:
            p = np.zeros(vocabulary)
            known = self.ngram.distribution(self._history)
            p[: len(known)] = known  # a model may have more words than its tokenizer
            with np.errstate(divide="ignore"):
                found["ngram"] = np.log(p)[None]
        return found

    def _cache_for(self, dim: int) -> ContinuousCache:
        if self._cache is None:
            self._cache = ContinuousCache(dim, self.size, self.metric)
        return self._cache
