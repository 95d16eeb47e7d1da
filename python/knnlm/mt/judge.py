"""Judge: BLEU and chrF of translations by sacrebleu, with the signature that says how, and their differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knnlm.system.extras import module


def judged(found: Sequence[str], true: Sequence[str]) -> dict[str, Any]:
    """BLEU and chrF of translations against one reference each, with sacrebleu's signatures."""
    metrics: Any = module("sacrebleu.metrics", "BLEU and chrF")
    scores: dict[str, Any] = {}
    for name, metric in (("BLEU", metrics.BLEU()), ("chrF", metrics.CHRF())):
        scores[name] = round(float(metric.corpus_score(list(found), [list(true)]).score), 2)
        scores[f"{name} signature"] = str(metric.get_signature())
    return scores


@dataclass(frozen=True)
class Difference:
    """A metric of two systems on the same sentences, with the 95 % interval of the difference (paired bootstrap)."""

    metric: str
    base: float
    system: float
    low: float
    high: float


def differences(
    base: Sequence[str], system: Sequence[str], true: Sequence[str], *, samples: int = 1000, seed: int = 0
) -> list[Difference]:
    """BLEU and chrF of two systems, and how they differ (Koehn 2004), from sentences drawn with replacement."""
    metrics: Any = module("sacrebleu.metrics", "BLEU and chrF")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(true), (samples, len(true)))
    found = []
    for name, metric in (("BLEU", metrics.BLEU()), ("chrF", metrics.CHRF())):
        few, many = _sums(metric, base, true), _sums(metric, system, true)
        apart = [_score(metric, many[rows].sum(0)) - _score(metric, few[rows].sum(0)) for rows in drawn]
        low, high = np.quantile(apart, (0.025, 0.975))
        found.append(Difference(name, _score(metric, few.sum(0)), _score(metric, many.sum(0)), float(low), float(high)))
    return found


def _sums(metric: Any, found: Sequence[str], true: Sequence[str]) -> Any:
    """The counts of each sentence that a metric adds up, (n, m)."""
    return np.array(metric._extract_corpus_statistics(list(found), [list(true)]))


def _score(metric: Any, sums: Any) -> float:
    return float(metric._compute_score_from_stats([int(x) for x in sums]).score)
