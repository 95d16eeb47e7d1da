"""Sampler: draws a token from log-probabilities; no vocabulary is sorted to find its largest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]

FEW = 256
"""Tokens that are sorted at first; more of them only where their mass is not enough."""


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn, by the names of Hugging Face's `GenerationConfig`; greedily unless do_sample.

    temperature reshapes the mixture before a token is drawn (the T of p_kNN is in `Settings`); top_k and top_p
    (Holtzman et al. 2020) cut the tail after that. None of the three has a meaning without do_sample.
    """

    do_sample: bool = False

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no distribution can be cut by."""
        if not self.temperature > 0 or not np.isfinite(self.temperature):
            raise ValueError(
                f"temperature: expected a positive number, found {self.temperature}; for the likeliest token leave "
                "do_sample out"
            )
        if not self.do_sample and (self.temperature != 1.0 or self.top_k is not None or self.top_p is not None):
            raise ValueError("temperature, top_k and top_p: expected do_sample=True with them, found do_sample=False")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected at least 1, found {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a share above 0 and up to 1, found {self.top_p}")


GREEDY = Sampling()


def kept(log_p: ArrayLike, sampling: Sampling) -> tuple[NDArray[np.int64], Vector]:
    """The tokens that may be drawn, best first (ties by id), and their probabilities, which sum to 1.

    log_p: (v,). top_k and top_p count in that order; top_p keeps the fewest tokens whose mass reaches it. Raises
    ValueError for NaN, and where no token has a positive probability.
    """
    scores = _scores(log_p)
    if not sampling.do_sample:
        return np.array([int(np.argmax(scores))], np.int64), np.ones(1)
    if sampling.top_k is None and sampling.top_p is not None:
        return _nucleus(scores, sampling.temperature, sampling.top_p)
    order = best(scores, len(scores) if sampling.top_k is None else sampling.top_k)
    p = _weights(scores[order], scores[order[0]], sampling.temperature)
    p /= p.sum()
    return _cut(order, p, sampling.top_p) if sampling.top_p is not None else (order, p)


def draw(log_p: ArrayLike, sampling: Sampling, rng: np.random.Generator) -> int:
    """One token from (v,) log-probabilities; a function of the generator's state only."""
    if not sampling.do_sample or sampling.top_k is not None or sampling.top_p is not None:
        tokens, p = kept(log_p, sampling)
        if len(tokens) == 1:
            return int(tokens[0])
        return int(tokens[min(len(tokens) - 1, int(np.searchsorted(np.cumsum(p), rng.random(), side="right")))])
    scores = _scores(log_p)
    total = _weights(scores, scores.max(), sampling.temperature).sum()
    if np.count_nonzero(np.isfinite(scores)) == 1:
        return int(np.argmax(scores))
    wanted = rng.random()
    for count in _counts(len(scores)):
        order = best(scores, count)
        mass = np.cumsum(_weights(scores[order], scores[order[0]], sampling.temperature) / total)
        at = int(np.searchsorted(mass, wanted, side="right"))
        if at < len(order):
            break
    return int(order[min(at, len(order) - 1)])


def best(scores: Vector, count: int) -> NDArray[np.int64]:
    """Indices of the `count` largest scores (v,), largest first, ties by index; -inf is none of them."""
    n = len(scores)
    if count < n:
        limit = scores[np.argpartition(scores, n - count)[n - count]]
        above = np.flatnonzero(scores > limit)
        chosen = np.concatenate([above, np.flatnonzero(scores == limit)[: count - len(above)]])  # equal ones by index
    else:
        chosen = np.arange(n)
    chosen = chosen[np.isfinite(scores[chosen])]
    return np.asarray(chosen[np.argsort(-scores[chosen], kind="stable")], np.int64)


def _nucleus(scores: Vector, temperature: float, top_p: float) -> tuple[NDArray[np.int64], Vector]:
    total = _weights(scores, scores.max(), temperature).sum()
    for count in _counts(len(scores)):
        order = best(scores, count)
        p = _weights(scores[order], scores[order[0]], temperature) / total
        if float(p.sum()) >= top_p or count >= len(scores):
            break
    return _cut(order, p, top_p)


def _cut(order: NDArray[np.int64], p: Vector, top_p: float) -> tuple[NDArray[np.int64], Vector]:
    """The fewest of sorted tokens whose mass reaches top_p; a rounding error does not ask for one more."""
    count = int(np.searchsorted(np.cumsum(p), top_p * (1 - 1e-12))) + 1
    return order[:count], p[:count] / p[:count].sum()


def _counts(n: int) -> list[int]:
    return [*(FEW * 16**i for i in range(8) if FEW * 16**i < n), n]


def _weights(scores: Vector, top: float, temperature: float) -> Vector:
    """Probabilities up to a factor; the best has 1."""
    return np.exp(scores / temperature - top / temperature)


def _scores(log_p: ArrayLike) -> Vector:
    scores = np.asarray(log_p, np.float64)
    top = scores.max(initial=-np.inf)
    if np.isnan(top):
        raise ValueError("expected log-probabilities, found NaN among them: the model's output is damaged")
    if not np.isfinite(top):
        raise ValueError("expected a token with a positive probability, found none")
    return scores
