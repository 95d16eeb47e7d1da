"""Weights of a mixture by expectation maximisation, on the probabilities of validation targets.

p(x) = sum over components c of w_c p_c(x). On held-out tokens, EM (Jelinek & Mercer 1980) repeats
w_c <- mean over tokens of w_c p_c / p, which never raises the perplexity and ends at the best weights: the
log-likelihood is concave in w. A component that does not exist at a token (a cache at the start of a document) gives
its weight to the others there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.probability.mix import mix

Floats = NDArray[np.float64]


def em_weights(
    log_ps: ArrayLike, available: ArrayLike | None = None, *, iterations: int = 500, tolerance: float = 1e-7
) -> Floats:
    """Weights that minimise the perplexity of a mixture on tuning tokens: (c, n) log-probabilities to (c,), sum 1.

    Args:
        log_ps: (c, n) natural log-probability of each of n targets by each of c models; -inf is a probability of 0.
        available: (c, n) where each model exists, or None for everywhere. Tokens that lack a model are left out here.
        iterations: upper bound of the steps.
        tolerance: stop when the mean log-likelihood rises by less.

    Raises:
        ValueError: shapes that do not fit, NaN, or no token that every model covers.
    """
    x = _checked(log_ps, available)
    if available is not None:
        x = x[:, np.asarray(available, dtype=bool).all(axis=0)]
    x = x[:, np.isfinite(x).any(axis=0)]  # tokens that no model can predict say nothing about the weights
    if not x.size:
        raise ValueError("expected tuning tokens with a positive probability under some model, found none")
    top = x.max(axis=0)  # (n,)
    p = np.exp(x - top)  # (c, n)
    weights = np.full(len(p), 1 / len(p))
    before = -np.inf
    for _ in range(iterations):
        total = weights @ p  # (n,)
        now = float(np.log(total).mean())
        if now - before < tolerance:
            break
        before = now
        weights = weights * (p / total).mean(axis=1)
    return np.asarray(weights / weights.sum())


def perplexity_of(mean: float) -> float:
    """exp(-mean) of a mean log p in nats, infinite where it is beyond the numbers."""
    return math.exp(-mean) if -mean < 709 else math.inf


@dataclass(frozen=True)
class JointWeights:
    """Weights of several components, which sum to 1, and the token perplexity of their mixture on the fitted text."""

    weights: dict[str, float]
    perplexity: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def fit_weights(components: Mapping[str, ArrayLike]) -> JointWeights:
    """Weights of LM, kNN, cache, n-gram, ... that maximise the likelihood of validation text, by EM.

    components: name -> (n,) log p of each token in nats; -inf is probability 0, NaN that the component does not exist
    there (p_kNN without neighbors, an empty cache): its weight goes to the others at that token.
    Raises ValueError without components or tokens.
    """
    logs, available = _logs(components)
    weights = em_weights(logs, available)
    fitted = dict(zip(components, weights.tolist(), strict=True))
    return JointWeights(fitted, perplexity_of(float(mix(components, fitted).mean())))


def _logs(components: Mapping[str, ArrayLike]) -> tuple[Floats, NDArray[np.bool_]]:
    if not components:
        raise ValueError("expected at least one component")
    logs = np.stack([np.asarray(log_p, np.float64) for log_p in components.values()])  # (c, n)
    available = ~np.isnan(logs)
    return np.where(available, logs, -np.inf), available


def _checked(log_ps: ArrayLike, available: ArrayLike | None) -> Floats:
    x = np.asarray(log_ps, dtype=np.float64)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"expected log-probabilities (c, n), found shape {x.shape}")
    if np.isnan(x).any() or np.isposinf(x).any():
        raise ValueError("expected log-probabilities, found NaN or +infinity")
    if available is not None and np.shape(available) != x.shape:
        raise ValueError(f"expected available of shape {x.shape}, found {np.shape(available)}")
    return x
