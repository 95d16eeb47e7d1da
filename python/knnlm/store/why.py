"""Why: what a search did with one entry, and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knnlm import _core
from knnlm.store.arrays import MAX_ID, one_of, to_flag, to_floats, to_integer, to_integers, to_optional, to_threads
from knnlm.store.entries import document_lists


@dataclass(frozen=True)
class Lists:
    """What the search of the lists did with an entry; scores are those of the metric, estimates may be below 0.

    list: number of the entry's list, of `nlist`; list_rank: place of its centroid, 0 = nearest to the query;
    list_distance: score of the centroid; list_entries: entries in it that are not deleted. probed: whether the list was
    scanned. nprobe: lists that the query might scan; lists_scanned: those that it did. reach: score beyond which a
    centroid is out of reach, None where only nprobe counts. first_score: of the entry by its first code; first_limit,
    last_limit: what a first score must not exceed after the nearest lists, and at the end; None: no limit. candidates:
    that the search kept; candidate: whether the entry is one. second_score: by the second-level code, None without.
    rerank: how candidates were scored again.
    """

    nlist: int
    list: int
    list_entries: int
    list_rank: int
    list_distance: float
    probed: bool
    nprobe: int
    lists_scanned: int
    reach: float | None
    first_limit: float | None
    last_limit: float | None
    first_score: float | None
    candidates: int
    candidate: bool
    second_score: float | None
    rerank: str


@dataclass(frozen=True)
class Why:
    """Why an entry is among the k neighbors of a query, or why not.

    reason: "returned", or "unknown_id", "deleted", "excluded", "not_allowed", "denied" (a filter), "list_not_probed",
    "list_out_of_reach", "list_left_out_by_estimate", "score_beyond_limit", "cut_at_rescoring", "beyond_k". rank: among
    the neighbors, 0 = nearest. distance: that it was returned with; kth_distance: of the last neighbor, None where
    fewer were found; exact_distance: by its raw key, where that is kept. scanned_exactly: its raw key was compared, not
    its code. lists: None for an exact search and for an entry in no list.
    """

    id: int
    k: int
    reason: str
    rank: int | None
    distance: float | None
    kth_distance: float | None
    exact_distance: float | None
    scanned_exactly: bool
    lists: Lists | None

    def __str__(self) -> str:
        """In words."""
        return f"{_BEGINNINGS[self.reason].format(w=self, rank=(self.rank or 0) + 1)}{self._details()}"

    def _details(self) -> str:
        parts = []
        if self.kth_distance is not None and self.reason != "returned":
            parts.append(f"neighbor {self.k} is at {self.kth_distance:.4g}")
        if self.exact_distance is not None:
            parts.append(f"by its raw key it is at {self.exact_distance:.4g}")
        found = self.lists
        if found is not None:
            place = f"its list is the {_ordinal(found.list_rank + 1)} nearest of {found.nlist:,}"
            parts.append(place + (", " if found.probed else "; ") + f"{found.lists_scanned:,} were scanned")
            if found.first_score is not None:
                limit = "" if found.last_limit is None else f", limit {found.last_limit:.4g}"
                parts.append(f"first code {found.first_score:.4g}{limit}")
            if found.second_score is not None:
                parts.append(f"second code {found.second_score:.4g}")
        elif self.scanned_exactly:
            parts.append("its raw key was compared")
        return ("; " if parts else "") + "; ".join(parts)


_BEGINNINGS = {
    "returned": "neighbor {rank} of {w.k}, at {w.distance:.4g}",
    "unknown_id": "no entry has this id",
    "deleted": "its document is deleted",
    "excluded": "left out: the very text is in the store",
    "not_allowed": "left out: its document is not among those allowed",
    "denied": "left out: its document is denied",
    "list_not_probed": "not found: its list was not scanned",
    "list_out_of_reach": "not found: its list was passed over, as neighbors are rare so far from a query",
    "list_left_out_by_estimate": "not found: its list is near enough, but an estimate of its distance left it out",
    "score_beyond_limit": "not found: by its first code it is too far",
    "cut_at_rescoring": "not found: {w.k} others are nearer when scored again",
    "beyond_k": "not among the nearest {w.k}",
}


def why(
    core: _core.Datastore,
    query: Any,
    id: int,
    k: int,
    *,
    nprobe: int | None = None,
    recall: float | None = None,
    depth: int | None = None,
    rerank: str | None = None,
    exact: bool = False,
    exclude: Any = None,
    allow: Sequence[Any] | None = None,
    deny: Sequence[Any] | None = None,
    threads: int | None = None,
) -> Why:
    """See `Reader.why`."""
    row = to_floats(query, "query", core.dim).reshape(-1, core.dim).astype(np.float32, copy=False)
    if len(row) != 1:
        raise ValueError(f"query: expected one key, ({core.dim},), found {len(row)}")
    ranges = None
    if exclude is not None:
        ranges = to_integers(exclude, "exclude", np.int64, 0, MAX_ID, "give (start, stop) ids").reshape(-1, 2)
    wanted, most = to_integer(id, "id", 0, MAX_ID), to_integer(k, "k", 1, 2**32)
    found: dict[str, Any] = dict(
        core.explain(
            row,
            min(most, max(core.n, 1)),
            wanted,
            nprobe=to_optional(nprobe, "nprobe"),
            recall=recall,
            depth=to_optional(depth, "depth"),
            rerank=one_of(rerank, "rerank", ("none", "code", "keys", None)),
            exact=to_flag(exact, "exact"),
            exclude=ranges,
            allow=document_lists(allow, "allow", 1),
            deny=document_lists(deny, "deny", 1),
            threads=to_threads(threads),
        )
    )
    lists = found.pop("lists")
    if most > core.n:  # the last that was found is not neighbor k
        found["kth_distance"] = None
    return Why(id=wanted, k=most, lists=None if lists is None else Lists(**lists), **found)


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"
