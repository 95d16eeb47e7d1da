"""Fixed: one weight for all tokens, as in the paper (Khandelwal et al. 2020, equation 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from knnlm.probability.combiner import Feature, Floats, combined
from knnlm.store.neighbors import Neighbors


@dataclass(frozen=True)
class Fixed:
    """p = lambda p_kNN + (1 - lambda) p_LM, with p_kNN of the nearest k at temperature T.

    lambda_: a number between 0 and 1, or (...) of them, one for each row. k: None: all neighbors that it is given.
    """

    lambda_: float | Any
    temperature: float
    k: int | None = None
    features: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Refuse what is no weight."""
        if not ((weight := np.asarray(self.lambda_)) >= 0).all() or not (weight <= 1).all():
            raise ValueError(f"lambda_: expected a weight between 0 and 1, found {self.lambda_}")

    def log_p(
        self,
        log_p_lm: ArrayLike,
        neighbors: Neighbors | None,
        features: Mapping[str, Feature],
        targets: ArrayLike | None = None,
    ) -> Floats:
        """As `Combiner.log_p`."""
        weight = np.asarray(self.lambda_, np.float64)
        weights = {"lm": 1 - weight, "knn": weight}
        if not weight.any():
            neighbors = None  # what weighs nothing is not looked at
        return combined(weights, log_p_lm, neighbors, self.temperature, self.k, {}, targets)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"lambda_": self.lambda_, "temperature": self.temperature, "k": self.k}
