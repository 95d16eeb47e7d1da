"""Blend: LM and p_kNN together with a continuous cache of the text itself and an n-gram model of the store's text.

    p = w_lm p_LM + w_knn p_kNN + w_cache p_cache + w_ngram p_ngram

The cache (Grave et al. 2017) holds the last pairs of the document that is read; the n-gram model is fitted on the
store's own values, document by document. Weights and theta come from validation text, by EM, and are saved with the
store under the names of what is blended: "cache", "ngram", "cache+ngram".
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from knnlm.lm.settings import DEFAULT_LAMBDA
from knnlm.probability.mixture import fit_weights
from knnlm.probability.ngram import KneserNey
from knnlm.store.attributes import check_attributes
from knnlm.store.entries import values_of_documents

if TYPE_CHECKING:
    from knnlm.probability.continuous_cache import Theta

CACHE_SIZE = 8000
"""Pairs that the cache keeps: the best of 500, 2,000 and 8,000 on WikiText-2 (`benches/record/`)."""

ORDER = 5


@dataclass(frozen=True)
class Blend:
    """Weights of "lm", "knn" and, as chosen, "cache" and "ngram", which sum to 1, and what the last two are.

    theta, size, metric: of the cache, theta None without one, "auto" for `cache.theta_of`
    each query. order: of the n-gram model, None without one.
    perplexity: of the text that the weights were fitted to.
    """

    weights: Mapping[str, float]
    theta: Theta | None = None
    size: int = CACHE_SIZE
    metric: str = "ip"
    order: int | None = None
    perplexity: float = float("nan")

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def blend_name(cache: bool, ngram: bool) -> str:
    """The name that a blend is saved under; "" for none."""
    return "+".join(name for name, wanted in (("cache", cache), ("ngram", ngram)) if wanted)


def saved_blends(store: Any) -> dict[str, Any]:
    """Blends that `tune` saved in a store, by name; ValueError for attributes that knnlm did not write."""
    check_attributes(store)
    return ((getattr(store, "attributes", None) or {}).get("tuned") or {}).get("blends") or {}


def blend_of(store: Any, cache: bool, ngram: bool) -> Blend | None:
    """The blend that `tune` saved in a store, None if none is asked for.

    Raises ValueError where none was saved: weights cannot be guessed.
    """
    name = blend_name(cache, ngram)
    if not name:
        return None
    saved = saved_blends(store)
    if name not in saved:
        options = " ".join(f"--{part}" for part in name.split("+"))
        raise ValueError(
            f"expected weights of {name} that were tuned on validation text, found "
            f"{', '.join(saved) or 'none'} in the store: run knnlm tune STORE TEXT {options}"
        )
    return Blend(**saved[name])


def untuned_cache(lambda_: float | None = None, temperature: float | None = None) -> Blend:
    """The LM with a continuous cache alone, for want of tuned weights: lambda 0.25, theta = 1/T or "auto".

    Raises ValueError for a lambda outside 0 to 1 or a T that is not positive.
    """
    weight = DEFAULT_LAMBDA if lambda_ is None else lambda_
    if not 0 <= weight <= 1:
        raise ValueError(f"lambda_: expected a weight between 0 and 1, found {weight}")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, found {temperature}")
    theta: Theta = "auto" if temperature is None else 1 / temperature
    return Blend({"lm": 1 - weight, "knn": 0.0, "cache": weight}, theta, metric="l2")


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


_FITTED: weakref.WeakKeyDictionary[Any, tuple[tuple[int, int, int], KneserNey]] = weakref.WeakKeyDictionary()


def ngram_of(store: Any, order: int, vocab_size: int) -> KneserNey:
    """The n-gram model of a store's documents, fitted once for each of its generations.

    Raises ValueError for something that has no documents to count.
    """
    if not callable(getattr(store, "documents", None)):
        raise ValueError(f"expected a store with documents to count n-grams of, found {type(store).__name__}")
    generation = getattr(store, "generation", None)
    key = (generation or 0, order, vocab_size)
    known = _FITTED.get(store) if generation is not None else None
    if known is not None and known[0] == key:
        return known[1]
    model = KneserNey(order).fit(values_of_documents(store), vocab_size)
    if generation is not None:
        _FITTED[store] = (key, model)
    return model
