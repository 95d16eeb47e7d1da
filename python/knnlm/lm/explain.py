"""Explain: where each prediction came from, as arrays. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.lm.combiners import running_text
from knnlm.lm.retriever import Retriever, Span
from knnlm.lm.stretches import Stretch, stretches
from knnlm.model.identity import check
from knnlm.model.key_spec import KeySpec
from knnlm.model.loaded import Loaded
from knnlm.probability.combiner import Combiner
from knnlm.probability.knn import knn_weights, log_p_knn
from knnlm.store.neighbors import Neighbors, joined
from knnlm.store.protocols import document_indices
from knnlm.store.why import Why
from knnlm.text.inputs import TokenDocument

OUTSIDE = -1
"""A context position outside of the document."""


@dataclass(frozen=True)
class Explanation:
    """A text's tokens, each one's probability three ways, and the neighbors that made it.

    tokens: (L,) uint32.  log_p_lm: (L,) float32; log_p_knn, log_p: (L,) float64, nats; log_p_knn is NaN where nothing
    was found.  neighbors: (L, k).  weights: (L, k) share of p_kNN.  documents: (L, k) int64, index into the store's
    documents, -1 for missing.  start: position of the first of these tokens in the text.  text_tokens: all of it, (N,).
    combiner: what made p; features: what else it looked at, (L,) each, log p of a cache or an n-gram model among them.
    keys: (L, d) float32; retriever, copies: how they were looked for, for `why`.
    """

    tokens: NDArray[np.uint32]
    log_p_lm: NDArray[np.float32]
    log_p_knn: NDArray[np.float64]
    log_p: NDArray[np.floating[Any]]
    neighbors: Neighbors
    weights: NDArray[np.float64]
    documents: NDArray[np.int64]
    name: str
    combiner: Combiner
    store: Any = field(repr=False)
    start: int = 0
    text_tokens: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32), repr=False)
    features: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    keys: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32), repr=False)
    retriever: Retriever | None = field(default=None, repr=False)
    copies: list[Span] = field(default_factory=list, repr=False)

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

    def why(self, position: int, id: int) -> Why:
        """Why an entry is a neighbor of the token at a position of the text, or why not.

        Raises IndexError for a position that is not explained, TypeError for a store that cannot say it.
        """
        t = position - self.start
        if self.retriever is None or not 0 <= t < len(self):
            end = self.start + len(self)
            raise IndexError(f"position: expected one from {self.start} to {end - 1}, found {position}")
        return self.retriever.why(self.keys[t : t + 1], id, self.copies, position)

    def to_dict(self, neighbors: int = 8) -> dict[str, Any]:
        """As JSON: settings, and of each token its position, id, p_LM, p_kNN (None without neighbors), p and neighbors.

        neighbors: of each the nearest so many: id, value, distance, share of p_kNN, name of the document and position
        in it.
        """
        known: dict[int, Any] = {-1: None}
        documents = self.store.documents() if len(self) else ()
        near = self.neighbors
        p_lm, p_knn, p = self.p_lm, self.p_knn, self.p  # each of the whole text

        def source(t: int, i: int) -> dict[str, Any]:
            index = int(self.documents[t, i])
            first = int(documents[index].start) if index >= 0 else 0
            known.setdefault(index, self.document_name(index))
            return {
                "id": int(near.ids[t, i]),
                "value": int(near.values[t, i]),
                "distance": float(near.distances[t, i]),
                "share": float(self.weights[t, i]),
                "document": known[index],
                "position": int(near.ids[t, i]) - first,
            }

        return {
            "name": self.name,
            "combiner": self.combiner.to_dict(),
            "tokens": [
                {
                    "position": self.start + t,
                    "token": int(self.tokens[t]),
                    "p_lm": float(p_lm[t]),
                    "p_knn": None if np.isnan(p_knn[t]) else float(p_knn[t]),
                    "p": float(p[t]),
                    "neighbors": [source(t, i) for i in range(min(neighbors, near.k)) if near.ids[t, i] >= 0],
                }
                for t in range(len(self))
            ],
        }

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
    retriever: Retriever,
    combiner: Combiner,
    document: Any,
    *,
    keys: KeySpec | None = None,
    start: int = 0,
    stop: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Explanation:
    """Neighbors of each token of one document, and what a combiner makes of them and of what it needs beside them.

    document: has `name` and `text` or `tokens`. start, stop: explain these tokens only; the model reads up to `stop`,
    and what it and the store say of them is the same. Memory: some 32 k bytes for each explained token. Raises
    IdentityError if the store belongs to another model, ValueError for start < 0.
    """
    from knnlm.model.keys import document_tokens

    if start < 0:
        raise ValueError(f"start: expected a position in the text, at least 0, found {start}")
    store = retriever.store
    check(store, loaded, keys)
    tokens = document_tokens(loaded, document)
    stop = len(tokens) if stop is None else max(0, min(stop, len(tokens)))
    start = min(start, stop)
    read = TokenDocument(document.name, tokens[:stop])  # not tokenised again; a token sees only those before it
    parts: list[tuple[Stretch, NDArray[np.floating[Any]]]] = []
    for stretch in stretches(
        loaded,
        [read],
        retriever,
        keys=keys,
        features=combiner.features,
        running=running_text(combiner, store, int(loaded.tokenizer.vocab_size)),
        first=start,
        whole=tokens,
        tolerant=False,
    ):
        log_p = combiner.log_p(stretch.log_p_lm, stretch.neighbors, stretch.features, stretch.tokens)
        parts.append((stretch, log_p))
        if progress is not None:
            progress("explain", stretch.start + len(stretch.tokens), stop)
    found = joined([stretch.neighbors for stretch, _ in parts if stretch.neighbors is not None])
    if found is None:
        found = retriever.find(np.zeros((0, store.dim), np.float32))
    nothing = np.zeros(0, np.float32)
    return explanation_of(
        tokens[start:stop],
        np.concatenate([nothing, *(stretch.log_p_lm for stretch, _ in parts)]),
        np.concatenate([log_p for _, log_p in parts] or [nothing]),
        np.concatenate([np.zeros((0, store.dim), np.float32), *(stretch.keys for stretch, _ in parts)]),
        found,
        {
            name: np.concatenate([stretch.features[name] for stretch, _ in parts] or [nothing])
            for name in combiner.features
        },
        combiner,
        retriever,
        name=document.name,
        start=start,
        text_tokens=tokens,
        copies=parts[0][0].copies if parts else [],
    )


def explanation_of(
    tokens: NDArray[np.uint32],
    log_p_lm: NDArray[np.float32],
    log_p: NDArray[np.floating[Any]],
    keys: NDArray[np.float32],
    found: Neighbors,
    features: dict[str, NDArray[np.float32]],
    combiner: Combiner,
    retriever: Retriever,
    *,
    name: str,
    start: int,
    text_tokens: NDArray[np.uint32],
    copies: list[Span] | None = None,
) -> Explanation:
    """The explanation of tokens (m,) by the neighbors (m, k) that were found for their keys (m, d)."""
    near = found if combiner.k is None or combiner.k >= found.k else found.first(combiner.k)
    return Explanation(
        tokens=tokens,
        log_p_lm=log_p_lm,
        log_p_knn=log_p_knn(near, tokens, combiner.temperature, np.float32),
        log_p=log_p,
        neighbors=near,
        weights=knn_weights(near.distances, combiner.temperature, near.metric),
        documents=document_indices(retriever.store, near.ids),
        name=name,
        combiner=combiner,
        store=retriever.store,
        start=start,
        text_tokens=text_tokens,
        features=features,
        keys=keys,
        retriever=retriever,
        copies=copies or [],
    )
