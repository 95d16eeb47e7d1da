"""Perplexity against the size of the store, as in the figure of the paper: its first entries only, λ chosen anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.evaluate.tune import Curve, best_lambda
from knnlm.lm.settings import Settings
from knnlm.model.identity import check
from knnlm.model.key_choice import resolve
from knnlm.model.loaded import Loaded
from knnlm.probability.interpolate import log_p_knn
from knnlm.probability.mixture import perplexity_of
from knnlm.store.recall_sample import ids_at

PARTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def size_curve(
    loaded: Loaded,
    documents: Iterable[Any],
    store: Any,
    settings: Settings,
    *,
    parts: Sequence[float] = PARTS,
    dtype: Any = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Curve:
    """Perplexity of documents with the first `parts` of a store's entries, T and k as in `settings`.

    The entries after the part are left out inside the search, so that the index stays the same. The documents must not
    be in the store. A store whose documents are in random order gives a fair curve; otherwise it says what would have
    been known after so much of the text. progress(stage, done, total) counts tokens over all parts.
    """
    from knnlm.model.keys import arithmetic, iterate_as

    if settings.k is None or settings.temperature is None:
        raise ValueError("settings: expected k and temperature; take them from settings_of(store)")
    check(store, loaded)
    spec = resolve(loaded, store=store)
    keys: list[NDArray[np.float32]] = [np.zeros((0, store.dim), np.float32)]
    targets, lm = [np.zeros(0, np.uint32)], [np.zeros(0, np.float32)]
    for chunk in iterate_as(
        loaded,
        documents,
        spec,
        key_dtype="float32",
        tolerant=True,
        dtype=arithmetic(store, spec, dtype),
    ):
        if chunk.bad is not None:  # such a document is named where it is scored
            continue
        keys.append(chunk.key)
        targets.append(chunk.tokens)
        lm.append(chunk.log_p)
    queries, tokens, log_p_lm = np.concatenate(keys), np.concatenate(targets), np.concatenate(lm)
    n = len(store)
    counts = sorted({math.ceil(part * n) for part in parts if part > 0})
    perplexity, weights = [], []
    for i, count in enumerate(counts):
        columns = []
        bounds = _after(store, count)
        for at in range(0, len(queries), 512):
            rows = slice(at, at + 512)
            rest = np.tile(bounds, (len(queries[rows]), 1))  # (q, 2)
            found = store.search(
                queries[rows],
                min(settings.k, count),
                nprobe=settings.nprobe,
                rerank=settings.rerank,
                exact=settings.exact,
                exclude=rest,
                threads=settings.threads,
            )
            columns.append(log_p_knn(found, tokens[rows], settings.temperature))
            if progress is not None:
                progress("sizes", i * len(queries) + min(at + 512, len(queries)), len(counts) * len(queries))
        lambda_, mean = best_lambda(log_p_lm, np.concatenate(columns or [np.zeros(0)]))
        perplexity.append(perplexity_of(mean))
        weights.append(lambda_)
    fixed = {"temperature": settings.temperature, "k": float(settings.k), "tokens": float(len(tokens))}
    fixed["lm_perplexity"] = perplexity_of(float(log_p_lm.mean(dtype=np.float64))) if len(tokens) else float("nan")
    return Curve("size", [float(count) for count in counts], perplexity, weights, fixed)


def _after(store: Any, count: int) -> NDArray[np.int64]:
    """The range of ids (2,) behind the first `count` entries: those of deleted documents are not counted."""
    stop = int(getattr(store, "next_id", len(store)))
    bound = count if stop == len(store) else int(ids_at(store, np.array([count - 1]))[0]) + 1
    return np.array([bound, stop], np.int64)
