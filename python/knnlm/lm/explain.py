"""Inspection: where each prediction came from, as arrays, as rows for HTML and as a terminal table. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.lm.settings import Settings
from knnlm.model.identity import check
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec
from knnlm.model.loaded import Loaded
from knnlm.probability.interpolate import knn_weights, log_p_knn, mix
from knnlm.store.neighbors import Neighbors
from knnlm.store.protocols import Searchable

if TYPE_CHECKING:
    pass

OUTSIDE = -1
"""A context position outside of the document."""


@dataclass(frozen=True)
class Explanation:
    """A text's tokens, each one's probability three ways, and the neighbors that made it.

    tokens: (L,) uint32.  log_p_lm: (L,) float32; log_p_knn, log_p: (L,) float64, nats; log_p_knn is NaN where nothing
    was found.  neighbors: (L, k).  weights: (L, k) share of p_kNN.  documents: (L, k) int64, index into the store's
    documents, -1 for missing.  start: position of the first of these tokens in the text.  text_tokens: all of it, (N,).
    """

    tokens: NDArray[np.uint32]
    log_p_lm: NDArray[np.float32]
    log_p_knn: NDArray[np.float64]
    log_p: NDArray[np.floating[Any]]
    neighbors: Neighbors
    weights: NDArray[np.float64]
    documents: NDArray[np.int64]
    name: str
    settings: Settings
    store: Any = field(repr=False)
    start: int = 0
    text_tokens: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32), repr=False)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @property
    def p_lm(self) -> NDArray[np.float64]:
        """p_LM of each token, (L,)."""
        return np.exp(self.log_p_lm.astype(np.float64))

    @property
    def p_knn(self) -> NDArray[np.float64]:
        """p_kNN of each token, (L,); NaN without neighbors."""
        return np.exp(self.log_p_knn)

    @property
    def p(self) -> NDArray[np.float64]:
        """p of each token under the mixture, (L,)."""
        return np.exp(self.log_p.astype(np.float64))

    def document_name(self, index: int) -> str:
        """Name of a document by its index; "" for a missing neighbor, "#index" for a document without a name."""
        if index < 0:
            return ""
        name = self.store.documents()[index].name
        return f"#{index}" if name is None else str(name)

    def contexts(self, neighbors: int = 8, left: int = 12, right: int = 4) -> NDArray[np.int64]:
        """Stored tokens around the nearest neighbors, (L, neighbors, left + 1 + right); see `source_contexts`."""
        return source_contexts(self.store, self.neighbors.ids[:, :neighbors], left, right)


def source_contexts(store: Any, ids: ArrayLike, left: int = 12, right: int = 4) -> NDArray[np.int64]:
    """Values around entries, in their own document: position `left` is the entry's value, its target.

    ids: (...) int64, -1 = missing. Returns (..., left + 1 + right) int64, -1 where the document ends or is missing.
    """
    wanted = np.asarray(ids, np.int64)
    flat = wanted.ravel()
    out = np.full((len(flat), left + 1 + right), OUTSIDE, np.int64)
    documents = store.documents()
    for row, (id_, index) in enumerate(zip(flat.tolist(), store.document_of(flat).tolist(), strict=True)):
        if id_ < 0:
            continue
        start, stop = int(documents[index].start), int(documents[index].stop)
        a, b = max(start, id_ - left), min(stop, id_ + right + 1)
        out[row, a - (id_ - left) : b - (id_ - left)] = store.values(a, b)
    return out.reshape(*wanted.shape, left + 1 + right)


def explain(
    loaded: Loaded,
    store: Searchable,
    document: Any,
    settings: Settings,
    *,
    keys: KeySpec | None = None,
    exclude: str = "document",
    start: int = 0,
    stop: int | None = None,
    dtype: Any = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Explanation:
    """Neighbors of each token of one document; settings as `settings_of` gives them, with T and k.

    document: has `name` and `text` or `tokens`. exclude: as in `neighbors_of`. start, stop: explain these tokens only;
    the model reads up to `stop`, and what it and the store say of them is the same. Memory: some 32 k bytes for each
    explained token. Raises IdentityError if the store belongs to another model, ValueError if T or k is None or
    start < 0.
    """
    from knnlm.lm.stored_texts import search_without, stored_texts
    from knnlm.model.keys import arithmetic, document_tokens, iterate_as
    from knnlm.text.inputs import TokenDocument

    if settings.k is None or settings.temperature is None:
        raise ValueError("settings: expected k and temperature; take them from settings_of(store)")
    if start < 0:
        raise ValueError(f"start: expected a position in the text, at least 0, found {start}")
    check(store, loaded, keys)
    spec = resolve(loaded, keys, store)
    tokens = document_tokens(loaded, document)
    copies = stored_texts(store).find_all(document.name, tokens) if exclude != "none" else []
    stop = len(tokens) if stop is None else max(0, min(stop, len(tokens)))
    start = min(start, stop)
    parts: list[Neighbors] = []
    log_p: list[NDArray[np.float32]] = []
    for chunk in iterate_as(
        loaded,
        [TokenDocument(document.name, tokens[:stop])],  # not tokenised again; a token sees only those before it
        spec,
        key_dtype="float32",
        dtype=arithmetic(store, spec, dtype),
    ):
        skipped = max(0, start - chunk.start)
        log_p.append(chunk.log_p[skipped:])
        wanted = chunk.key[skipped:]  # (m, d)
        if len(wanted):
            found = search_without(
                store,
                wanted,
                settings.k,
                copies,
                exclude,
                chunk.start + skipped,
                nprobe=settings.nprobe,
                rerank=settings.rerank,
                exact=settings.exact,
                threads=settings.threads,
            )
            parts.append(found)
        if progress is not None:
            progress("explain", chunk.start + len(chunk.tokens), stop)
    if not parts:
        parts = [store.search(np.zeros((0, store.dim), np.float32), settings.k)]
    found = Neighbors(
        np.concatenate([p.distances for p in parts]),
        np.concatenate([p.values for p in parts]),
        np.concatenate([p.ids for p in parts]),
        store.metric,
    )
    log_p_lm = np.concatenate(log_p) if log_p else np.zeros(0, np.float32)
    explained = tokens[start:stop]
    knn = log_p_knn(found, explained, settings.temperature)
    document_of = getattr(store, "document_of", None)
    return Explanation(
        tokens=explained,
        log_p_lm=log_p_lm,
        log_p_knn=knn,
        log_p=mix(log_p_lm, knn, settings.lambda_),
        neighbors=found,
        weights=knn_weights(found.distances, settings.temperature, found.metric),
        documents=document_of(found.ids) if callable(document_of) else np.full(found.ids.shape, -1, np.int64),
        name=document.name,
        settings=settings,
        store=store,
        start=start,
        text_tokens=tokens,
    )
