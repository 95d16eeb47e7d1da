"""Combiner: what makes one probability of p_LM, neighbors and whatever else was seen of a text.

Every way to mix is one class in one file of this room, with the members of `Combiner`; scoring, generation, explanation
and tuning know no other way to a probability. To add one: write the class, give its weights to `combined`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.probability.knn import SparseProbabilities, log_p_knn, sparse_p_knn
from knnlm.probability.mix import LM, mix, mix_vocabulary
from knnlm.store.neighbors import Neighbors

Floats = NDArray[np.floating[Any]]
Feature = ArrayLike | SparseProbabilities


class Combiner(Protocol):
    """(log p_LM, neighbors, features) -> log p. The weight of a component may differ by row."""

    @property
    def k(self) -> int | None:
        """Neighbors that it looks at; None: all that it is given."""
        ...

    @property
    def temperature(self) -> float:
        """T of p_kNN."""
        ...

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that it needs.

        "entropy" and "max" are numbers of p_LM, (...). "ngram" and those of `cache_name` are components: log p of the
        target, (...), or without targets of all words, (..., v) or sparse.
        """
        ...

    def log_p(
        self,
        log_p_lm: ArrayLike,
        neighbors: Neighbors | None,
        features: Mapping[str, Feature],
        targets: ArrayLike | None = None,
    ) -> Floats:
        """log p in nats: of each target, (...), from their log p_LM (...); or of all words, (..., v), from (..., v).

        neighbors: (..., k); None where nothing was looked for. Over all words p sums to 1 if p_LM does.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """Its settings as JSON."""
        ...


def combined(
    weights: Mapping[str, ArrayLike],
    log_p_lm: ArrayLike,
    neighbors: Neighbors | None,
    temperature: float,
    k: int | None,
    components: Mapping[str, Feature],
    targets: ArrayLike | None,
) -> Floats:
    """The weighted mixture of p_LM, p_kNN of the nearest k, and further components; see `Combiner.log_p`.

    weights: by name, "lm" and "knn" among them, a number or (...) each. Row sums of float32 weights are added in pairs,
    so that p_kNN of 1,024 neighbors is right to about 1e-7.
    """
    near = neighbors if neighbors is None or k is None or k >= neighbors.k else neighbors.first(k)
    if targets is None:
        parts: dict[str, Any] = dict(components)
        if near is not None:
            parts["knn"] = sparse_p_knn(near, temperature)
        else:
            rows = int(np.prod(np.shape(log_p_lm)[:-1], dtype=np.int64))
            nothing = np.zeros(0, np.int64), np.zeros(0), np.zeros(rows + 1, np.int64)
            parts["knn"] = SparseProbabilities(*nothing)
        return mix_vocabulary(log_p_lm, parts, weights)
    knn = np.full(np.shape(log_p_lm), np.nan)
    if near is not None and near.k:
        knn = log_p_knn(near, targets, temperature, np.float32)
    return mix({LM: log_p_lm, "knn": knn, **components}, weights)
