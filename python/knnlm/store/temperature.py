"""Temperature: T for a store that was not tuned."""

from __future__ import annotations

from typing import Any

import numpy as np

from knnlm.store.protocols import has_documents
from knnlm.store.recall_sample import spread_ids


def stored_temperature(store: Any) -> float | None:
    """The T that a store proposes, None where it proposes none (no index yet, a cache)."""
    return store.default_temperature if has_documents(store) else None


def default_temperature(store: Any) -> float:
    """T for a store that was not tuned: what it proposes, else the same rule on a sample of its keys, else 1.

    The rule is median(d_k - d_1) / 6 over stored keys with their own entries left out, k = n / 10 up to 1024: the last
    neighbor then weighs exp(-6) of the first.
    """
    proposed = stored_temperature(store)
    n = len(store)
    if proposed is not None or n < 2 or not has_documents(store):
        return proposed or 1.0
    ids = spread_ids(store, 64)
    queries = store.reconstruct(ids)
    near = store.search(queries, max(1, min(1024, n // 10)), exclude=np.stack([ids, ids + 1], axis=1))
    return temperature_of(near.distances)


def temperature_of(distances: Any) -> float:
    """The rule of the default temperature: median(d_k - d_1) / 6 over rows (q, k) of neighbors, 1 where that is 0.

    `rust/index/defaults.rs` has it too, for the value that `build` leaves in a store. Rows with a missing neighbor
    do not count.
    """
    d = np.asarray(distances, np.float64)
    d = d[np.isfinite(d).all(axis=1)]
    gap = float(np.median(np.abs(d[:, -1] - d[:, 0]))) if d.size else 0.0
    return gap / 6 if gap > 0 else 1.0
