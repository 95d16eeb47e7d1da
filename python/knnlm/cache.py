"""Continuous cache of the running text (Grave, Joulin & Usunier, ICLR 2017): a datastore of the last N tokens.

The cache holds the last N pairs (h_i, x_{i+1}) of the same document, and

    p_cache(w | h_t) ∝ sum over the cached i of 1[x_{i+1} = w] exp(theta h_t·h_i)                      (equation 3)

which is p_kNN over the cache with inner products, k = N and T = 1/theta. Keys that are compared by distance in the
store can be compared so here as well: exp(-theta |h_t - h_i|²), T = 1/theta again. Position t of a document sees the
pairs before it. Position 0 sees none: p_cache does not exist there (NaN), and a mixture gives its weight to the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_BLOCK = 256  # positions per matrix product: one product holds (256, N + 256) floats


def continuous_cache_log_p(
    keys: ArrayLike,
    targets: ArrayLike,
    theta: float | Sequence[float],
    size: int = 2000,
    metric: str = "ip",
) -> Floats:
    """Log p_cache of each target of one document, from the `size` pairs before it.

    Args:
        keys: (L, d) key at each position; any float type, computed in float32.
        targets: (L,) token that follows each key.
        theta: flatness; 0 counts words, large values copy the nearest pair. Several values cost one matrix product.
        size: N, how many pairs are kept.
        metric: "ip" for h_t·h_i as in the paper, "l2" for -|h_t - h_i|².

    Returns:
        (L,) float64, or (len(theta), L) for several: -inf where no cached pair has the target, NaN at position 0.

    Raises:
        ValueError: shapes that do not fit, an unknown metric, negative theta, or size below 1.
    """
    h = np.ascontiguousarray(keys, dtype=np.float32)  # (L, d)
    x = np.asarray(targets)
    thetas = np.atleast_1d(np.asarray(theta, dtype=np.float64))  # (g,)
    if h.ndim != 2 or x.shape != h.shape[:1]:
        raise ValueError(f"expected keys (L, d) and targets (L,), found {h.shape} and {x.shape}")
    if metric not in ("ip", "l2"):
        raise ValueError(f'expected the metric "ip" or "l2", found {metric!r}')
    if thetas.ndim != 1 or not (thetas >= 0).all() or size < 1:
        raise ValueError(f"expected theta >= 0 and a size of at least 1, found {theta} and {size}")
    squares = np.einsum("ld,ld->l", h, h, dtype=np.float64)  # (L,)
    out = np.full((len(thetas), len(h)), np.nan)
    for start in range(0, len(h), _BLOCK):
        stop = min(start + _BLOCK, len(h))
        low = max(0, start - size)
        scores = (h[start:stop] @ h[low:stop].T).astype(np.float64)  # (b, w)
        if metric == "l2":
            scores = 2 * scores - squares[start:stop, None] - squares[None, low:stop]
        age = np.arange(start, stop)[:, None] - np.arange(low, stop)[None, :]  # (b, w)
        cached = (age >= 1) & (age <= size)
        match = cached & (x[None, low:stop] == x[start:stop, None])
        best = np.max(scores, axis=1, keepdims=True, where=cached, initial=-np.inf)  # (b, 1)
        scores -= np.where(np.isfinite(best), best, 0.0)
        for g, value in enumerate(thetas):
            weights = np.exp(value * scores, where=cached, out=np.zeros_like(scores))
            total, hit = weights.sum(axis=1), weights.sum(axis=1, where=match)
            with np.errstate(divide="ignore", invalid="ignore"):
                out[g, start:stop] = np.log(hit / total)  # 0 / 0: nothing is cached
    return out if np.ndim(theta) else out[0]
