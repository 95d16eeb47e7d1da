"""Fair samples for the demo: the scored text from many documents, and the first part of a store as a store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from knnlm.datastore import Datastore
from knnlm.documents import Document
from knnlm.neighbours import Neighbours
from knnlm.tokens import Tokenizer

PARTS = 16
"""Documents at least, if there are so many, that validation and test tokens are taken from."""


def first_tokens(documents: Sequence[Document], tokenizer: Tokenizer, count: int) -> list[Document]:
    """The beginnings of documents, `count` tokens in all, of at least `PARTS` documents if there are so many.

    Few whole documents would be a poor sample: one that resembles the store would decide the result.
    """
    encoded = [tokenizer.encode_with_offsets(document.text) for document in documents]
    lengths = np.array([len(tokens) for tokens, _ in encoded])
    most = math.ceil(count / PARTS)
    while np.minimum(lengths, most).sum() < min(count, lengths.sum()):
        most = math.ceil(1.1 * most)
    chosen, left = [], count
    for document, (tokens, offsets) in zip(documents, encoded, strict=True):
        take = min(most, left, len(tokens))
        if take < len(tokens):
            document = replace(document, text=document.text[: int(offsets[take - 1, 1])])
        if take > 0:
            chosen.append(document)
        left -= take
        if left <= 0:
            break
    return chosen


class FirstEntries:
    """The first entries of a store as a store of their own; documents are in random order, so they are a fair part."""

    def __init__(self, store: Datastore, count: int) -> None:
        self.metric, self.dim, self.attributes = store.metric, store.dim, store.attributes
        self._store, self._count, self._all = store, count, len(store)

    def __len__(self) -> int:
        return self._count

    def search(self, queries: Any, k: int, *, exclude: Any = None, **options: Any) -> Neighbours:
        """The `k` nearest of the first entries; the rest is left out inside the search, whatever `exclude` says."""
        rest = np.tile(np.array([self._count, self._all], np.int64), (len(queries), 1))  # (q, 2)
        return self._store.search(queries, k, exclude=rest, **options)
