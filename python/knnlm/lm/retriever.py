"""Retriever: neighbors of keys in a store, searched as its settings say, without the text that is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.lm.settings import Settings
from knnlm.lm.stored_texts import EXCLUDE, stored_texts
from knnlm.store.neighbors import MISSING, Neighbors, missing_value
from knnlm.store.protocols import Searchable
from knnlm.store.search import Reader
from knnlm.store.why import Why

Span = tuple[int, int]


class Retriever:
    """The one way from keys to neighbors: scoring, generation, explanation, export and size curves search by it.

    settings: k, nprobe, rerank, exact and threads of each search. exclude: where a text is in the store itself (same
    tokens), leave out its whole "document", its own "entry" only, or "none". Raises ValueError for another exclude and
    for settings without k (`settings_of` fills it in).
    """

    def __init__(self, store: Searchable, settings: Settings, exclude: str = "document") -> None:
        if exclude not in EXCLUDE:
            raise ValueError(f"exclude: expected one of {', '.join(EXCLUDE)}, found {exclude!r}")
        if settings.k is None:
            raise ValueError("settings: expected k; take them from settings_of(store)")
        self.store, self.settings, self.exclude, self.k = store, settings, exclude, settings.k

    def copies(self, name: str, tokens: NDArray[Any]) -> list[Span]:
        """Where the store holds this very text (L,), as ranges of ids that `find` leaves out; of the same name first.

        Looks into the store's document table, not into an index.
        """
        return [] if self.exclude == "none" else stored_texts(self.store).find_all(name, tokens)

    def find(
        self,
        keys: ArrayLike,
        copies: Sequence[Span] = (),
        start: int = 0,
        *,
        k: int | None = None,
        exclude: NDArray[np.int64] | None = None,
    ) -> Neighbors:
        """The k nearest entries of keys (q, d), (q, k).

        copies: of the document whose tokens from `start` on follow these keys (`copies`). exclude: other ranges of ids
        to leave out, (q, 2), where there are no copies. k: fewer or more than the settings say.
        """
        k, count = self.k if k is None else k, len(np.asarray(keys))
        if self.exclude == "none" or not copies:
            return self._search(keys, k, exclude=exclude)
        if exclude is not None:
            raise ValueError("expected copies of a document or ranges to leave out, found both")
        # A search leaves out one range of ids a query by itself; further copies are documents that a store of ours can
        # deny, and else more neighbors are asked for and those of the copies dropped.
        own, *others = (excluded_ranges(span, self.exclude, start, count) for span in copies)  # (q, 2) each
        if not others:
            return self._search(keys, k, exclude=own)
        if self.exclude == "document" and isinstance(self.store, Reader):
            return self._search(keys, k, exclude=own, deny=_documents(self.store, copies[1:]))
        more = sum(b - a for a, b in copies[1:]) if self.exclude == "document" else len(others)
        return _without(self._search(keys, self._wider(k, more), exclude=own), others, k)

    def why(self, key: ArrayLike, id: int, copies: Sequence[Span] = (), start: int = 0) -> Why:
        """Why an entry is among what `find` finds for one key, (1, d), or why not.

        Raises TypeError for a store that cannot say it.
        """
        if not isinstance(self.store, Reader):
            raise TypeError(f"why: expected a Datastore, found a {type(self.store).__name__}, which cannot say it")
        s, k = self.settings, self.k
        options: dict[str, Any] = {"nprobe": s.nprobe, "rerank": s.rerank, "exact": s.exact, "threads": s.threads}
        if self.exclude == "none" or not copies:
            return self.store.why(key, id, k, **options)
        own, *others = (excluded_ranges(span, self.exclude, start, 1) for span in copies)  # (1, 2) each
        if not others:
            return self.store.why(key, id, k, exclude=own, **options)
        is_other = any(a <= id < b for span in others for a, b in span)
        if self.exclude == "document":  # as `find` leaves them out
            return self.store.why(
                key,
                id,
                k,
                exclude=[[id, id + 1]] if is_other else own,
                deny=_documents(self.store, copies),
                **options,
            )
        told = self.store.why(key, id, self._wider(k, len(others)), exclude=own, **options)
        found = self.find(key, copies, start)  # of more than k, without the other copies: who is among them, it knows
        rank = next(iter(np.flatnonzero(found.ids[0] == id).tolist()), None)
        return replace(
            told,
            k=k,
            reason="excluded" if is_other else "beyond_k" if rank is None and told.rank is not None else told.reason,
            rank=rank,
            distance=None if rank is None else told.distance,
            kth_distance=None if found.ids[0, -1] == MISSING else float(found.distances[0, -1]),
        )

    def _wider(self, k: int, more: int) -> int:
        """What to ask for so that k neighbors are left without `more` entries."""
        return min(k + more, max(k, len(self.store)))

    def _search(self, keys: ArrayLike, k: int, **options: Any) -> Neighbors:
        s = self.settings
        return self.store.search(keys, k, nprobe=s.nprobe, rerank=s.rerank, exact=s.exact, threads=s.threads, **options)


def _documents(store: Reader, spans: Sequence[Span]) -> list[int]:
    """Indices of the documents that begin where the spans do."""
    return [int(index) for index in store.document_of(np.array([start for start, _ in spans], np.int64))]


def excluded_ranges(span: Span, exclude: str, start: int, count: int) -> NDArray[np.int64]:
    """Id ranges (q, 2) to leave out for the tokens start:start+count of a document stored at span."""
    if exclude == "document":
        return np.tile(np.array(span, np.int64), (count, 1))
    own = span[0] + start + np.arange(count, dtype=np.int64)
    return np.stack([own, own + 1], axis=1)


def _without(found: Neighbors, ranges: Sequence[NDArray[np.int64]], k: int) -> Neighbors:
    """The first k neighbors of each query that lie in none of its ranges."""
    drop = np.zeros(found.ids.shape, bool)
    for span in ranges:
        drop |= (found.ids >= span[:, :1]) & (found.ids < span[:, 1:])
    order = np.argsort(drop, axis=-1, kind="stable")[:, :k]  # what stays comes first, in its order
    gone = np.take_along_axis(drop, order, -1)
    nowhere = np.inf if found.metric == "l2" else -np.inf
    return Neighbors(
        np.where(gone, np.float32(nowhere), np.take_along_axis(found.distances, order, -1)),
        np.where(gone, np.array(missing_value(found.values.dtype), found.values.dtype),
                 np.take_along_axis(found.values, order, -1)),
        np.where(gone, MISSING, np.take_along_axis(found.ids, order, -1)),
        found.metric,
    )  # fmt: skip
