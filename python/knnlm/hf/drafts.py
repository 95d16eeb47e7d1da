"""Drafts: what followed the neighbors in the store is guessed to follow here, and the model checks it in one pass.

The entry after `id` in its document is `id + 1` (as in REST, He et al. 2024, and NEST, Li et al. 2024, whose drafts
come from a datastore, too). Hugging Face's own assisted decoding verifies them with the mixture's probabilities, so
that greedy text is that of decoding token by token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knnlm.store.neighbors import Neighbors
from knnlm.store.protocols import DocumentStore

NEAREST = 64
"""Neighbors whose continuations are looked at."""


@dataclass
class DraftCounts:
    """passes: forward passes after the prompt's. drafted, accepted: tokens that were guessed, and those that stayed."""

    passes: int = 0
    drafted: int = 0
    accepted: int = 0


def draft(store: DocumentStore, found: Neighbors, weights: NDArray[Any], token: int, most: int) -> NDArray[np.int64]:
    """What may follow `token`, the value that the neighbors (k,) of one query were asked about: at most `most` tokens.

    weights: (k,), how much each neighbor counts. The continuations of the neighbors with this value vote on one token
    after the other; those that were outvoted have no say any more.
    """
    near = np.flatnonzero((found.values[:NEAREST] == token) & found.found[:NEAREST])
    if not len(near) or most < 1:
        return np.zeros(0, np.int64)
    spans = store.document_spans()
    rows: list[NDArray[Any]] = []
    for id_, index in zip(found.ids[near].tolist(), store.document_of(found.ids[near]).tolist(), strict=True):
        rows.append(store.values(id_ + 1, min(id_ + 1 + most, int(spans[index, 1]))))
    votes, out = weights[near].astype(np.float64), list[int]()
    for t in range(most):
        said = [(int(row[t]), vote) for row, vote in zip(rows, votes, strict=True) if len(row) > t]
        if not said:
            break
        totals: dict[int, float] = {}
        for word, vote in said:
            totals[word] = totals.get(word, 0.0) + vote
        best = max(totals, key=lambda word: totals[word])
        out.append(best)
        stay = [len(row) > t and int(row[t]) == best for row in rows]
        rows = [row for row, kept in zip(rows, stay, strict=True) if kept]
        votes = votes[stay]
    return np.array(out, np.int64)


class StoreCandidates:
    """What Hugging Face's assisted decoding asks for candidates: continuations of the neighbors of the last key.

    memory: whose last pass found the neighbors. most: tokens drafted at most; fewer after a draft that was not right.
    """

    requires_model_outputs = False

    def __init__(self, memory: Any, most: int, room: int, counts: DraftCounts) -> None:
        self.memory, self.most, self.counts = memory, most, counts
        self.room = room  # length that the sequence may have at most
        self._accepted: int | None = None  # position of the last pass where the last token was decided

    def get_candidates(self, input_ids: Tensor) -> tuple[Tensor, None]:
        """input_ids (1, L) with the draft behind them, (1, L + m)."""
        found, weights = self.memory.last(self._accepted)
        drafted = np.zeros(0, np.int64)
        if found is not None:
            room = self.room - input_ids.shape[1] - 1
            drafted = draft(self.memory.datastore, found, weights, int(input_ids[0, -1]), min(self.most, room))
        self.counts.drafted += len(drafted)
        more = torch.from_numpy(drafted)[None].to(input_ids.device)
        return torch.cat([input_ids, more.to(input_ids.dtype)], dim=1), None

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Hears how many candidates stayed: the token after them was decided at that position of the pass."""
        if self._accepted is not None:
            self.counts.passes += 1
            self.counts.accepted += int(num_matches)
        self._accepted = int(num_matches)


@contextmanager
def drafting(memory: Any, most: int, room: int) -> Iterator[DraftCounts]:
    """While it lasts, assisted decoding (`prompt_lookup_num_tokens`) of the model has its candidates from the store."""
    counts, module = DraftCounts(), memory.module
    module._get_candidate_generator = lambda *_, **__: StoreCandidates(memory, most, room, counts)
    memory.keeps_last = True
    try:
        yield counts
    finally:
        del module._get_candidate_generator
        memory.keeps_last = False
