"""Tune lambda, T and k on validation text, and weights of more than two components, from neighbors found once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.lm.retrieved_text import RetrievedText
from knnlm.probability.mix import mix
from knnlm.probability.weights import perplexity_of
from knnlm.store.protocols import attributes_of

Vector = NDArray[np.float64]

__all__ = [
    "Curve",
    "Tuned",
    "best_lambda",
    "powers_of_two",
    "save_tuned",
    "tune",
]

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Curve:
    """Perplexity against one setting; the others are at their best, or as named in `fixed`."""

    name: str
    x: list[float]
    perplexity: list[float]
    lambda_: list[float]
    fixed: dict[str, float]


@dataclass(frozen=True)
class Tuned:
    """The best settings on the text, and how perplexity moves around them (token perplexity)."""

    lambda_: float
    temperature: float
    k: int
    perplexity: float
    lm_perplexity: float
    tokens: int
    curves: dict[str, Curve] = field(default_factory=dict, repr=False)

    def to_dict(self, curves: bool = False) -> dict[str, Any]:
        """As JSON, as it is saved in a store's attributes."""
        plain = asdict(self)
        if not curves:
            del plain["curves"]
        return plain


def best_lambda(log_p_lm: ArrayLike, log_p_knn: ArrayLike, most: float = 1.0) -> tuple[float, float]:
    """The weight of p_kNN that maximises the likelihood, and the mean log p there (nats).

    log p is concave in lambda: Newton steps on its derivative, kept inside a shrinking bracket. Rows whose log_p_knn is
    NaN (no neighbors) are the LM's whatever lambda is. Returns 0 where no weight helps. most: the largest weight.
    """
    lm, knn = np.asarray(log_p_lm, np.float64), np.asarray(log_p_knn, np.float64)
    if not len(lm):
        return 0.0, 0.0
    # p = p_LM (1 + lambda r) with r = p_kNN / p_LM - 1; the clip only keeps exp finite.
    r = np.expm1(np.minimum(np.where(np.isnan(knn), lm, knn) - lm, 700.0))
    base = float(lm.mean())

    def gain(x: float) -> float:
        with np.errstate(divide="ignore"):
            return float(np.log1p(x * r).mean())

    if r.mean() <= 0:
        return 0.0, base
    low, high, x = 0.0, most, min(0.25, most / 2)
    for _ in range(60):
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            ratio = r / (1.0 + x * r)
            slope, bend = float(ratio.mean()), -float((ratio * ratio).mean())
        if slope > 0:
            low = x
        else:
            high = x
        step = x - slope / bend if math.isfinite(bend) and bend < 0 else math.nan
        new = step if low < step < high else (low + high) / 2
        if abs(new - x) < 1e-9:
            break
        x = new
    if high == most and gain(most) >= gain(x):
        x = most
    return x, base + gain(x)


def powers_of_two(k: int) -> list[int]:
    """1, 2, 4, ... and k itself."""
    return [*(2**i for i in range(k.bit_length()) if 2**i < k), k] if k else []


def tune(
    text: RetrievedText,
    *,
    temperatures: ArrayLike | None = None,
    ks: list[int] | None = None,
    temperature: float | None = None,
    refine: int = 10,
) -> Tuned:
    """Find lambda, T and k of the least perplexity on text validation neighbors.

    temperatures: grid; default: factors of 2 over 2^-6 ... 2^6 around the store's default, and on while the best is at
    an edge. ks: default: powers of two up to the text k. For each (T, k) lambda is solved exactly; log T is then
    refined by `refine` golden-section steps around the best grid point. temperature: fixes T. Never worse than the LM:
    lambda is 0 where nothing helps, and n / (n + 1) at most: n tokens cannot tell that the model is never needed, and
    with a lambda of 1 one token that is not among its neighbors has p = 0. Raises ValueError for an empty cache, or
    one with NaN.
    """
    if not len(text):
        raise ValueError("tune: expected at least one scored token; give validation text")
    lm = np.asarray(text.log_p_lm, np.float64)
    if np.isnan(lm).any():
        raise ValueError("tune: expected the model's log-probabilities, found NaN among them")
    lm_mean = float(lm.mean())
    ks = powers_of_two(text.k) if ks is None else sorted({min(k, text.k) for k in ks})
    centre = text.temperature
    if temperature is not None:
        grid = [float(temperature)]
    elif temperatures is not None:
        grid = sorted(float(t) for t in np.asarray(temperatures, np.float64).ravel())
    else:
        grid = [centre * 2.0**i for i in range(-6, 7)]
    if not ks:
        return Tuned(0.0, grid[0], 1, perplexity_of(lm_mean), perplexity_of(lm_mean), len(lm))

    solved: dict[tuple[float, int], tuple[float, float]] = {}

    def solve(t: float, of: list[int]) -> None:
        for k, knn in zip(of, text.log_p_knn_by_k(t, of), strict=True):
            solved[t, k] = best_lambda(lm, knn, len(lm) / (len(lm) + 1))

    for t in grid:
        solve(t, ks)

    def best() -> tuple[float, int]:
        # Equal likelihoods go to the smaller k, then to the smaller T.
        return max(sorted(solved, key=lambda tk: (tk[1], tk[0])), key=lambda tk: solved[tk][1])

    if temperature is None and temperatures is None:
        # The scale was a guess: follow the optimum over the edge of the grid while that pays.
        before = -math.inf
        while (t0 := best()[0]) in (grid[0], grid[-1]) and solved[best()][1] > before + 1e-5:
            before = solved[best()][1]
            new = t0 / 2 if t0 == grid[0] else t0 * 2
            solve(new, ks)
            grid = sorted([*grid, new])
    if len(grid) > 1 and refine > 0:
        t0, k0 = best()
        at = grid.index(t0)
        _golden(grid[max(0, at - 1)], grid[min(len(grid) - 1, at + 1)], refine, lambda t: _gain(t, k0, solve, solved))
        t0, _ = best()
        solve(t0, ks)
    else:
        t0, _ = best()
    k0 = max(ks, key=lambda k: solved[t0, k][1])  # the smaller k where likelihoods are equal
    lambda_, mean = solved[t0, k0]

    weights = sorted({round(0.05 * i, 2) for i in range(21)} | {lambda_})
    knn = text.log_p_knn(t0, k0)
    curves = {
        "lambda_": Curve(
            "lambda_", weights, [_perplexity(lm, knn, w) for w in weights], weights, {"temperature": t0, "k": k0}
        ),
        "temperature": _curve(
            "temperature", sorted(t for t, k in solved if k == k0), lambda t: solved[t, k0], {"k": k0}
        ),
        "k": _curve("k", [float(k) for k in ks], lambda k: solved[t0, int(k)], {"temperature": t0}),
    }
    return Tuned(lambda_, t0, k0, perplexity_of(mean), perplexity_of(lm_mean), len(lm), curves)


def _gain(t: float, k: int, solve: Any, solved: dict[tuple[float, int], tuple[float, float]]) -> float:
    solve(t, [k])
    return solved[t, k][1]


def _golden(low: float, high: float, steps: int, f: Any) -> None:
    """Golden-section search for the largest f on a log scale; f remembers what it was asked."""
    a, b = math.log(low), math.log(high)
    c, d = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
    fc, fd = f(math.exp(c)), f(math.exp(d))
    for _ in range(max(0, steps - 2)):
        if fc >= fd:
            b, d, fd = d, c, fc
            c = b - GOLDEN * (b - a)
            fc = f(math.exp(c))
        else:
            a, c, fc = c, d, fd
            d = a + GOLDEN * (b - a)
            fd = f(math.exp(d))


def _curve(name: str, xs: list[float], at: Any, fixed: dict[str, float]) -> Curve:
    points = [at(x) for x in xs]
    return Curve(name, xs, [perplexity_of(mean) for _, mean in points], [weight for weight, _ in points], fixed)


def _perplexity(lm: Vector, knn: Vector, weight: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(-np.mean(mix({"lm": lm, "knn": knn}, {"lm": 1 - weight, "knn": weight}))))


def save_tuned(store: Any, tuned: Tuned, **search: Any) -> None:
    """Remember tuned settings, and the search settings they hold for, in the store's attributes.

    A perplexity that is infinite is left out: it is no JSON. Raises ValueError for settings that are not finite.
    """
    settings = tuned.to_dict()
    if wrong := [name for name in ("lambda_", "temperature") if not math.isfinite(settings[name])]:
        raise ValueError(f"expected finite settings to save, found {wrong[0]} {settings[wrong[0]]}")
    found = {name: value for name, value in settings.items() if math.isfinite(value)}
    if blends := search.get("blends"):
        search["blends"] = {name: {n: v for n, v in blend.items() if not _endless(v)} for name, blend in blends.items()}
    attributes = dict(attributes_of(store))
    attributes["tuned"] = {**found, **{name: value for name, value in search.items() if value is not None}}
    store.set_attributes(attributes)


def _endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
