"""Perplexity against the size of the store, as in the figure of the paper: its first entries only, λ chosen anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.evaluate.tune import Curve, best_lambda
from knnlm.lm.retriever import Retriever
from knnlm.lm.score import score
from knnlm.lm.settings import Settings
from knnlm.model.identity import check
from knnlm.model.key_choice import resolve
from knnlm.model.loaded import Loaded
from knnlm.probability.knn import log_p_knn
from knnlm.probability.weights import perplexity_of
from knnlm.store.protocols import next_id_of
from knnlm.store.recall_sample import ids_at

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def size_curve(
    loaded: Loaded,
    documents: Iterable[Any],
    store: Any,
    settings: Settings,
    *,
    shares: Sequence[float] = SHARES,
    progress: Callable[[str, int, int], None] | None = None,
) -> Curve:
    """Perplexity of documents with the first `shares` of a store's entries, T and k as in `settings`.

    The entries after the part are left out inside the search, so that the index stays the same. The documents must not
    be in the store. A store whose documents are in random order gives a fair curve; otherwise it says what would have
    been known after so much of the text. progress(stage, done, total) counts tokens over all parts.
    """
    if settings.temperature is None:
        raise ValueError("settings: expected k and temperature; take them from settings_of(store)")
    retriever = Retriever(store, settings, exclude="none")
    check(store, loaded)
    # A document that fails is named where it is scored.
    text = score(loaded, documents, keys=resolve(loaded, store=store), keep_keys=True)
    queries = np.zeros((0, store.dim), np.float32) if text.keys is None else text.keys
    tokens, log_p_lm, n = text.tokens, text.log_p_lm, len(store)
    counts = sorted({math.ceil(share * n) for share in shares if share > 0})
    perplexity, weights = [], []
    for i, count in enumerate(counts):
        columns = []
        bounds = _after(store, count)
        for at in range(0, len(queries), 512):
            rows = slice(at, at + 512)
            rest = np.tile(bounds, (len(queries[rows]), 1))  # (q, 2)
            found = retriever.find(queries[rows], k=min(retriever.k, count), exclude=rest)
            columns.append(log_p_knn(found, tokens[rows], settings.temperature))
            if progress is not None:
                progress("sizes", i * len(queries) + min(at + 512, len(queries)), len(counts) * len(queries))
        lambda_, mean = best_lambda(log_p_lm, np.concatenate(columns or [np.zeros(0)]))
        perplexity.append(perplexity_of(mean))
        weights.append(lambda_)
    fixed = {"temperature": settings.temperature, "k": float(retriever.k), "tokens": float(len(tokens))}
    fixed["lm_perplexity"] = perplexity_of(float(log_p_lm.mean(dtype=np.float64))) if len(tokens) else float("nan")
    return Curve("size", [float(count) for count in counts], perplexity, weights, fixed)


def _after(store: Any, count: int) -> NDArray[np.int64]:
    """The range of ids (2,) behind the first `count` entries: those of deleted documents are not counted."""
    stop = next_id_of(store)
    bound = count if stop == len(store) else int(ids_at(store, np.array([count - 1]))[0]) + 1
    return np.array([bound, stop], np.int64)
