"""Stored texts: whether a text that is scored is itself in the store, and the ids to leave out of its search then."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXCLUDE = ("document", "entry", "none")


class StoredTexts:
    """Finds whether a text is itself in a store, by name first, then by content.

    A text matches a document whose values are its tokens. Reads the document table once.
    """

    def __init__(self, store: Any) -> None:
        """Index the documents of `store` by name and by length; a store without a document table holds nothing."""
        self._store = weakref.ref(store) if _can_be_weak(store) else lambda: store
        self._named: dict[str, list[tuple[int, int]]] = {}
        self._long: dict[int, list[tuple[int, int]]] = {}
        documents = getattr(store, "documents", None)
        for info in documents() if callable(documents) else ():
            span = (int(info.start), int(info.stop))
            self._named.setdefault(info.name, []).append(span)
            self._long.setdefault(span[1] - span[0], []).append(span)

    def find(self, name: str, tokens: NDArray[np.uint32]) -> tuple[int, int] | None:
        """The range of ids that holds exactly these tokens, None if there is none."""
        store = self._store()
        if store is None:
            return None
        spans = [s for s in self._named.get(name, ()) if s[1] - s[0] == len(tokens)]
        for start, stop in (*spans, *self._long.get(len(tokens), ())):
            # The first values settle nearly every comparison.
            head = min(stop, start + 32)
            if np.array_equal(store.values(start, head), tokens[: head - start]) and np.array_equal(
                store.values(start, stop), tokens
            ):
                return start, stop
        return None


_KNOWN: weakref.WeakKeyDictionary[Any, tuple[int, StoredTexts]] = weakref.WeakKeyDictionary()


def stored_texts(store: Any) -> StoredTexts:
    """`StoredTexts` of a store, made once for each of its generations."""
    generation = getattr(store, "generation", None)
    if generation is None or not _can_be_weak(store):
        return StoredTexts(store)
    found = _KNOWN.get(store)
    if found is None or found[0] != generation:
        found = _KNOWN[store] = (generation, StoredTexts(store))
    return found[1]


def _can_be_weak(store: Any) -> bool:
    return hasattr(store, "__weakref__") and type(store).__hash__ is not None


def excluded_ranges(span: tuple[int, int] | None, exclude: str, start: int, count: int) -> NDArray[np.int64] | None:
    """Id ranges (q, 2) to leave out for the tokens start:start+count of a document stored at span."""
    if span is None:
        return None
    if exclude == "document":
        return np.tile(np.array(span, np.int64), (count, 1))
    own = span[0] + start + np.arange(count, dtype=np.int64)
    return np.stack([own, own + 1], axis=1)
