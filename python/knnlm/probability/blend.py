"""Blend: p_LM and p_kNN together with a continuous cache of the text itself and an n-gram model of the store's text.

    p = w_lm p_LM + w_knn p_kNN + w_cache p_cache + w_ngram p_ngram

The cache (Grave et al. 2017) holds the last pairs of the document that is read; the n-gram model is fitted on the
store's own values, document by document. Weights and theta come from validation text, by EM (`weights.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import ArrayLike

from knnlm.probability.combiner import Feature, Floats, combined
from knnlm.probability.continuous_cache import Theta
from knnlm.store.neighbors import Neighbors

CACHE_SIZE = 8000
"""Pairs that the cache keeps: the best of 500, 2,000 and 8,000 on WikiText-2 (`benches/record/`)."""

ORDER = 5


@dataclass(frozen=True)
class Blend:
    """Weights of "lm", "knn" and, as chosen, "cache" and "ngram", which sum to 1, and what the last two are.

    theta, size, metric: of the cache, theta None without one, "auto" for `continuous_cache.theta_of` each query. order:
    of the n-gram model, None without one. perplexity: of the text that the weights were fitted to. temperature, k: of
    p_kNN, at which the weights were fitted; they are saved beside a blend, not with it.
    """

    weights: Mapping[str, float]
    theta: Theta | None = None
    size: int = CACHE_SIZE
    metric: str = "ip"
    order: int | None = None
    perplexity: float = float("nan")
    temperature: float = 1.0
    k: int | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """Those of its parts."""
        cache = () if self.theta is None else (cache_name(self.theta),)
        return (*cache, *(() if self.order is None else ("ngram",)))

    def log_p(
        self,
        log_p_lm: ArrayLike,
        neighbors: Neighbors | None,
        features: Mapping[str, Feature],
        targets: ArrayLike | None = None,
    ) -> Floats:
        """As `Combiner.log_p`."""
        parts: dict[str, Feature] = {}
        if self.theta is not None:
            parts["cache"] = features[cache_name(self.theta)]
        if self.order is not None:
            parts["ngram"] = features["ngram"]
        if not self.weights.get("knn"):
            neighbors = None  # what weighs nothing is not looked at
        return combined(self.weights, log_p_lm, neighbors, self.temperature, self.k, parts, targets)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, as it is saved in a store's attributes."""
        return {name: value for name, value in asdict(self).items() if name not in ("temperature", "k")}


def cache_name(theta: float | str) -> str:
    """Name of the feature that holds log p of the continuous cache with this theta."""
    return f"cache theta={theta if isinstance(theta, str) else format(theta, 'g')}"
