"""Paired bootstrap by document: is one system's perplexity really lower (Koehn 2004; Efron & Tibshirani 1993, ch. 13).

Tokens of one document are not independent, documents nearly are, so whole documents are drawn with replacement and
both systems are scored on the same draw. The percentiles of the resampled figure are its interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class PairedInterval:
    """Perplexities of systems a and b, and the intervals of b - a and of b / a."""

    perplexity_a: float
    perplexity_b: float
    difference: float
    difference_low: float
    difference_high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    level: float
    documents: int
    samples: int
    seed: int

    @property
    def significant(self) -> bool:
        """Whether the interval of the difference leaves out 0; never with fewer than two documents."""
        return self.documents > 1 and (self.difference_high < 0 or self.difference_low > 0)


def paired_bootstrap(
    nll_a: ArrayLike,
    nll_b: ArrayLike,
    tokens: ArrayLike,
    *,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedInterval:
    """Interval of the perplexity difference and ratio of two systems on the same documents.

    Args:
        nll_a: (D,) summed negative natural log-likelihood of each document under system a.
        nll_b: (D,) the same under system b.
        tokens: (D,) scored tokens of each document (words, for word-level perplexity).
        samples: resamples.
        seed: of the draws; the same seed gives the same interval.
        level: mass of the interval.

    Raises:
        ValueError: shapes that differ, no documents, sums that are not finite, or a document without tokens.
    """
    a, b, n = (np.asarray(array, dtype=np.float64) for array in (nll_a, nll_b, tokens))
    if a.ndim != 1 or not a.shape == b.shape == n.shape or not len(a):
        raise ValueError(f"expected three arrays with one entry per document, found {a.shape}, {b.shape}, {n.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("expected finite log-likelihoods: a token of probability 0 (lambda = 1?) has no interval")
    if not (n > 0).all():
        raise ValueError(f"expected documents with tokens, found {int((n <= 0).sum())} without: leave them out")
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"expected samples >= 1 and a level between 0 and 1, found {samples} and {level}")
    rng = np.random.default_rng(seed)
    table = np.stack([a, b, n], axis=1)  # (D, 3)
    sums = np.empty((samples, 3))
    rows = max(1, (1 << 22) // len(a))  # 32 MiB of counts at a time
    for start in range(0, samples, rows):
        stop = min(start + rows, samples)
        counts = rng.multinomial(len(a), np.full(len(a), 1 / len(a)), size=stop - start)  # (s, D) times each was drawn
        sums[start:stop] = counts @ table
    ppl_a, ppl_b = np.exp(sums[:, 0] / sums[:, 2]), np.exp(sums[:, 1] / sums[:, 2])  # (samples,)
    tails = [(1 - level) / 2, (1 + level) / 2]
    difference, ratio = np.quantile(ppl_b - ppl_a, tails), np.quantile(ppl_b / ppl_a, tails)
    point_a, point_b = float(np.exp(a.sum() / n.sum())), float(np.exp(b.sum() / n.sum()))
    return PairedInterval(
        perplexity_a=point_a,
        perplexity_b=point_b,
        difference=point_b - point_a,
        difference_low=float(difference[0]),
        difference_high=float(difference[1]),
        ratio=point_b / point_a,
        ratio_low=float(ratio[0]),
        ratio_high=float(ratio[1]),
        level=level,
        documents=len(a),
        samples=samples,
        seed=seed,
    )
