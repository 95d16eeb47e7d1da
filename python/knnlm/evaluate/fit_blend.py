"""Fit a blend: weights, and theta of the cache, of the least perplexity on validation text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from knnlm.probability.blend import CACHE_SIZE, ORDER, Blend
from knnlm.probability.weights import fit_weights


def cache_thetas(temperature: float) -> list[float]:
    """Values of theta to try: distances of a document's own keys are of the scale of the store's, theta is 1/T."""
    return [2.0**i / temperature for i in range(-4, 5)]


def fit_blend(
    log_p_lm: ArrayLike,
    log_p_knn: ArrayLike,
    caches: Mapping[float, ArrayLike] | None = None,
    ngram: ArrayLike | None = None,
    *,
    size: int = CACHE_SIZE,
    metric: str = "ip",
    order: int = ORDER,
) -> Blend:
    """Weights, and theta, of the least perplexity on validation tokens.

    log_p_lm, log_p_knn, ngram: (n,) log p of each target.  caches: theta -> (n,) log p_cache; each is tried.
    """
    fixed: dict[str, ArrayLike] = {"lm": log_p_lm, "knn": log_p_knn}
    if ngram is not None:
        fixed["ngram"] = ngram
    shared: dict[str, Any] = {"size": size, "metric": metric, "order": None if ngram is None else order}
    found = []
    tried: list[tuple[float | None, dict[str, ArrayLike]]] = [(None, fixed)]
    if caches:
        tried = [(theta, {**fixed, "cache": column}) for theta, column in caches.items()]
    for theta, own in tried:
        # Where no token at all has neighbors there is no p_kNN to weigh.
        joint = fit_weights({name: log_p for name, log_p in own.items() if not np.isnan(np.asarray(log_p)).all()})
        weights = {name: joint.weights.get(name, 0.0) for name in own}
        found.append(Blend(weights, theta, perplexity=joint.perplexity, **shared))
    return min(found, key=lambda blend: blend.perplexity)
