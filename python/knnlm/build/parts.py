"""Parts of a text: whole documents with the ids of their entries, and a sample of the keys of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from knnlm.model.key_spec import KeySpec
from knnlm.model.keys import NotFiniteError, iterate_as
from knnlm.model.loaded import Loaded
from knnlm.text.inputs import TokenDocument

PART_TOKENS = 1 << 16
"""Tokens of a part at least: what a crash can cost."""

SAMPLE_CUT = 4096
"""Tokens that a document gives to the sample at most, so that no long one dominates it."""


class Placed(NamedTuple):
    """A document and the id of its first entry; the others follow it."""

    first_id: int
    document: TokenDocument


@dataclass(frozen=True)
class Part:
    """Consecutive documents: their place among the parts, and the first id that the part stands for."""

    number: int
    start: int
    placed: list[Placed]

    @property
    def documents(self) -> list[TokenDocument]:
        """Its documents."""
        return [document for _, document in self.placed]

    @property
    def tokens(self) -> int:
        """Number of its entries."""
        return sum(len(document.tokens) for document in self.documents)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Ids of its entries, `(n,)` ascending; ids between documents may be gone."""
        return np.concatenate([at + np.arange(len(document.tokens), dtype=np.int64) for at, document in self.placed])

    @property
    def stop(self) -> int:
        """The id after its last."""
        first_id, document = self.placed[-1]
        return first_id + len(document.tokens)


def placed(documents: Iterable[TokenDocument]) -> Iterator[Placed]:
    """Documents of a new store: their ids follow each other from 0."""
    first_id = 0
    for document in documents:
        yield Placed(first_id, document)
        first_id += len(document.tokens)


def parts_of(documents: Iterable[Placed], part_tokens: int = PART_TOKENS) -> Iterator[Part]:
    """Cut documents into parts of at least `part_tokens` tokens (the last one may have fewer)."""
    waiting: list[Placed] = []
    tokens = number = start = 0
    for place in documents:
        if len(place.document.tokens) == 0:
            continue
        waiting.append(place)
        tokens += len(place.document.tokens)
        if tokens >= part_tokens:
            part = Part(number, start, waiting)
            yield part
            waiting, tokens, number, start = [], 0, number + 1, part.stop
    if waiting:
        yield Part(number, start, waiting)


def share_of(wanted: int, total: int) -> float:
    """Share of `total` tokens that is drawn for a sample of `wanted`: some more, as chance may give less."""
    return min(1.0, 1.25 * wanted / max(1, total))


def sample_keys(
    loaded: Loaded,
    documents: Callable[[], Iterable[Placed]],
    keys: KeySpec,
    wanted: int,
    total: int,
    seed: int,
    tolerant: bool = False,
    **options: Any,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Keys `(n, d)` of about `wanted` of `total` tokens and their ids, from documents drawn at random: all of a short
    one, a random stretch of a long one. A stretch begins where a window does, so that its keys are those of the whole.
    """
    window, context = keys.window, keys.context
    assert window is not None
    assert context is not None
    share = share_of(wanted, total)
    rng = np.random.default_rng(seed)

    def drawn() -> Iterator[TokenDocument]:
        for first_id, document in documents():
            # A document of L tokens gives min(L, cut): long ones are drawn more often, so that the share is kept.
            length = len(document.tokens)
            cut = max(SAMPLE_CUT, int(share * length)) if length > SAMPLE_CUT else length
            if length and rng.random() < share * length / cut:
                stride = window - context
                start = stride * int(rng.integers(1 + max(0, length - cut - context) // stride))
                lead = context if start else 0  # the window before scores these
                tokens = document.tokens[start : start + lead + cut]
                yield TokenDocument(document.name, tokens, {"first_id": first_id + start, "lead": lead})

    rows, ids = [], []
    reason = None
    for chunk in iterate_as(loaded, drawn(), keys, scores=False, tolerant=tolerant, **options):
        if chunk.bad is not None:
            reason = chunk.bad
            continue
        skipped = max(0, chunk.document.metadata["lead"] - chunk.start)
        if skipped < len(chunk.key):
            places = np.arange(skipped, len(chunk.key), dtype=np.int64)
            rows.append(chunk.key[skipped:])
            ids.append(chunk.document.metadata["first_id"] + chunk.start + places)
    if not rows and share < 1:  # chance drew nothing: take all
        return sample_keys(loaded, documents, keys, total, total, seed, tolerant, **options)
    if not rows:
        raise NotFiniteError(reason or "expected text with tokens, found none")
    found, places = np.concatenate(rows).astype(np.float32, copy=False), np.concatenate(ids)  # (n, d), (n,)
    if len(found) > wanted:
        chosen = np.sort(rng.permutation(len(found))[:wanted])
        found, places = found[chosen], places[chosen]
    return np.ascontiguousarray(found), places
