"""Exact neighbors for the search benchmark, by FAISS in float32 and then again in float64: neither side's own code."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from engine_sets import Array, KeySet

SPARE = 32  # more candidates than k, so that rounding cannot lose one
BATCH = 131_072


def exact(key_set: KeySet, queries: Array, k: int, work: Path) -> tuple[Array, Array]:
    """Squared L2 distances (q, k) float32 and ids (q, k), equal distances by id; kept in the work folder."""
    import faiss

    name = hashlib.sha256(np.ascontiguousarray(queries).tobytes()).hexdigest()[:12]
    path = work / f"exact-{name}-{k}.npz"
    if not path.is_file():
        wide = min(k + SPARE, len(key_set.keys))
        best = np.full((len(queries), wide), np.inf, np.float32), np.full((len(queries), wide), -1)
        for at in range(0, len(key_set.keys), BATCH):
            keys = np.asarray(key_set.keys[at : at + BATCH], np.float32)
            distances, ids = faiss.knn(queries, keys, min(wide, len(keys)))
            both = np.concatenate([best[0], distances], 1), np.concatenate([best[1], ids + at], 1)
            near = np.argpartition(both[0], wide - 1, axis=1)[:, :wide]
            best = np.take_along_axis(both[0], near, 1), np.take_along_axis(both[1], near, 1)
        k = min(k, wide)
        out = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for row, (query, ids) in enumerate(zip(queries.astype(np.float64), best[1], strict=True)):
            distances = np.square(key_set.keys[ids].astype(np.float64) - query).sum(1)
            order = np.lexsort((ids, distances))[:k]
            out[0][row], out[1][row] = distances[order], ids[order]
        np.savez(path, distances=out[0], ids=out[1])
    saved = np.load(path)
    return saved["distances"], saved["ids"]
