"""Stored texts: whether a text that is scored is itself in the store, and the ids to leave out of its search then."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from knnlm.neighbours import MISSING, Neighbours, missing_value

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
        """The range of ids that holds exactly these tokens, None if there is none; that of the same name first."""
        return next(iter(self.find_all(name, tokens)), None)

    def find_all(self, name: str, tokens: NDArray[np.uint32]) -> list[tuple[int, int]]:
        """Every range of ids that holds exactly these tokens: a text may be in the store more than once."""
        store = self._store()
        if store is None or not len(tokens):
            return []
        spans = [s for s in self._named.get(name, ()) if s[1] - s[0] == len(tokens)]
        copies = []
        for start, stop in dict.fromkeys((*spans, *self._long.get(len(tokens), ()))):
            # The first values settle nearly every comparison.
            head = min(stop, start + 32)
            if np.array_equal(store.values(start, head), tokens[: head - start]) and np.array_equal(
                store.values(start, stop), tokens
            ):
                copies.append((start, stop))
        return copies


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


def search_without(
    store: Any,
    queries: Any,
    k: int,
    copies: Sequence[tuple[int, int]],
    exclude: str,
    start: int,
    **options: Any,
) -> Neighbours:
    """`store.search` for the tokens from `start` on of a document that is stored at each of `copies`, left out.

    queries: (q, d). exclude: as in `excluded_ranges`. A search leaves out one range of ids a query by itself; further
    copies are documents that a store can deny, and else more neighbours are asked for and those of the copies dropped.
    """
    count = len(queries)
    if exclude == "none" or not copies:
        return cast(Neighbours, store.search(queries, k, exclude=None, **options))
    own = excluded_ranges(copies[0], exclude, start, count)
    others = copies[1:]
    if not others:
        return cast(Neighbours, store.search(queries, k, exclude=own, **options))
    if exclude == "document" and "deny" in inspect.signature(store.search).parameters:
        deny = [int(index) for index in store.document_of(np.array([a for a, _ in others], np.int64))]
        return cast(Neighbours, store.search(queries, k, exclude=own, deny=deny, **options))
    ranges = [cast("NDArray[np.int64]", excluded_ranges(span, exclude, start, count)) for span in others]  # (q, 2) each
    more = sum(b - a for a, b in others) if exclude == "document" else len(others)
    found = store.search(queries, min(k + more, max(k, len(store))), exclude=own, **options)
    drop = np.zeros(found.ids.shape, bool)
    for span in ranges:
        drop |= (found.ids >= span[:, :1]) & (found.ids < span[:, 1:])
    order = np.argsort(drop, axis=-1, kind="stable")[:, :k]  # what stays comes first, in its order
    gone = np.take_along_axis(drop, order, -1)
    nowhere = np.inf if found.metric == "l2" else -np.inf
    return Neighbours(
        np.where(gone, np.float32(nowhere), np.take_along_axis(found.distances, order, -1)),
        np.where(gone, np.array(missing_value(found.values.dtype), found.values.dtype),
                 np.take_along_axis(found.values, order, -1)),
        np.where(gone, MISSING, np.take_along_axis(found.ids, order, -1)),
        found.metric,
    )  # fmt: skip
