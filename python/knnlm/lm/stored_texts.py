"""Stored texts: whether a text that is scored is itself in the store, and the ids to leave out of its search then."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.store.protocols import has_documents

EXCLUDE = ("document", "entry", "none")


HASHED = 1 << 20
"""Values that are hashed at a time."""

COLUMNS = 1 << 12
"""Values of a document that are hashed with multipliers of their own; the next as many take them again."""

_MULTIPLIERS = np.random.default_rng(0).integers(0, 2**64, COLUMNS, np.uint64) | np.uint64(1)
_STEP = np.uint64(0x9E3779B97F4A7C15)


class StoredTexts:
    """Finds whether a text is itself in a store: a document whose values are its tokens. Reads the document table once.

    Documents of one length, of which a corpus in pieces has many, are told apart by hashes of their values. Those are
    computed the first time that a text of the length is looked for, and what they find is compared with the text.
    """

    def __init__(self, store: Any) -> None:
        """Index the documents of `store` by length; a store without a document table holds nothing."""
        self._store = weakref.ref(store) if _can_be_weak(store) else lambda: store
        spans = store.document_spans() if has_documents(store) else np.empty((0, 2), np.int64)  # (D, 2)
        lengths = spans[:, 1] - spans[:, 0]
        self._order = np.argsort(lengths, kind="stable")  # (D,), documents of one length by id
        self._lengths, self._starts = lengths[self._order], spans[self._order, 0]
        self._hashes: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64]]] = {}

    def find(self, name: str, tokens: NDArray[np.uint32]) -> tuple[int, int] | None:
        """The range of ids that holds exactly these tokens, None if there is none; that of the same name first."""
        return next(iter(self.find_all(name, tokens)), None)

    def find_all(self, name: str, tokens: NDArray[np.uint32]) -> list[tuple[int, int]]:
        """Every range of ids that holds exactly these tokens: a text may be in the store more than once.

        Those of documents with this name come first, then by id.
        """
        store, length = self._store(), len(tokens)
        if store is None or not length:
            return []
        first, last = np.searchsorted(self._lengths, [length, length + 1])
        if first == last:
            return []
        hashes, places = self._hashed(store, length, first, last)
        wanted = content_hashes(np.asarray(tokens)[None])
        low, high = np.searchsorted(hashes, wanted)[0], np.searchsorted(hashes, wanted, "right")[0]
        copies = []
        for place in np.sort(places[low:high]):
            start = int(self._starts[place])
            if np.array_equal(store.values(start, start + length), tokens):
                named = store.documents()[int(self._order[place])].name == name if high - low > 1 else True
                copies.append((not named, start))
        return [(start, start + length) for _, start in sorted(copies)]

    def _hashed(self, store: Any, length: int, first: int, last: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes, ascending, of the documents of a length, which are those from `first` to `last` by length; and these
        places."""
        known = self._hashes.get(length)
        if known is None:
            starts = self._starts[first:last]
            most = max(1, HASHED // length)
            # Documents that follow each other are read at once.
            ends = np.flatnonzero(np.append(np.diff(starts) != length, True)) + 1
            parts, at = [], 0
            for end in ends.tolist():
                while at < end:
                    stop = min(end, at + most)
                    values = store.values(int(starts[at]), int(starts[stop - 1]) + length)
                    parts.append(content_hashes(np.asarray(values).reshape(-1, length)))
                    at = stop
            hashes = np.concatenate(parts)
            order = np.argsort(hashes, kind="stable")
            known = self._hashes[length] = hashes[order], first + order
        return known


def content_hashes(rows: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint64]:
    """A hash of each row (m, L), (m,): sums of values times random multipliers, modulo 2^64 (multilinear hashing,
    Carter and Wegman 1979)."""
    hashes = np.zeros(len(rows), np.uint64)
    for at in range(0, rows.shape[1], COLUMNS):
        block = rows[:, at : at + COLUMNS].astype(np.uint64)
        hashes = hashes * _STEP + np.einsum("ij,j->i", block, _MULTIPLIERS[: block.shape[1]])
    return hashes


_KNOWN: weakref.WeakKeyDictionary[Any, tuple[Any, StoredTexts]] = weakref.WeakKeyDictionary()


def stored_texts(store: Any) -> StoredTexts:
    """`StoredTexts` of a store, made once for each of its generations."""
    if not has_documents(store) or not _can_be_weak(store):
        return StoredTexts(store)
    generation = store.generation
    found = _KNOWN.get(store)
    if found is None or found[0] != generation:
        found = _KNOWN[store] = (generation, StoredTexts(store))
    return found[1]


def _can_be_weak(store: Any) -> bool:
    return hasattr(store, "__weakref__") and type(store).__hash__ is not None
