"""How much of a text the store already holds: the share of its tokens inside a 13-gram that the store has too.

Perplexity on text that is in the store measures copying. The evaluated text is small and the store large, so the
64-bit hashes of the *evaluated* n-grams are sorted once and the store is streamed past them in chunks; memory does
not grow with the store. A hash that hits is checked token by token, so no collision with the store is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.lm.scored_text import ScoredText
from knnlm.store.entries import values_of_documents
from knnlm.store.protocols import DocumentStore

Words = NDArray[np.uint64]

_CHUNK = 1 << 20  # store tokens hashed at a time
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so multiplying loses nothing modulo 2^64


@dataclass(frozen=True)
class Overlap:
    """Evaluated tokens, and those covered by an n-gram of the store, in all and per document (D,)."""

    n: int
    tokens: int
    covered: int
    document_tokens: NDArray[np.int64]
    document_covered: NDArray[np.int64]

    @property
    def fraction(self) -> float:
        """Share of the evaluated tokens that are covered; 0 for an empty text."""
        return self.covered / self.tokens if self.tokens else 0.0


def overlap(documents: Sequence[ArrayLike], store_documents: Iterable[ArrayLike], n: int = 13) -> Overlap:
    """Counts the tokens of `documents` that lie in an n-gram which also occurs in `store_documents`.

    Args:
        documents: evaluated texts as token ids; n-grams never cross their borders.
        store_documents: token sequences of the store, one document after another; read once.
        n: length of the n-grams; shorter documents cannot be covered.

    Raises:
        ValueError: n below 1, or ids that are not non-negative integers.
    """
    if n < 1:
        raise ValueError(f"expected n-grams of at least 1 token, found {n}")
    x, ends = _concatenate(documents)
    starts = _gram_starts(ends, n)  # positions where a whole n-gram begins
    hashes = _hashes(x, starts, n)
    wanted, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    found = np.zeros(len(wanted), dtype=bool)
    if len(wanted):
        for chunk in _chunks(store_documents, n):
            _mark(found, wanted, x, starts[first], chunk, n)
    edges = np.zeros(len(x) + 1, dtype=np.int64)
    hits = starts[found[inverse.reshape(-1)]] if len(wanted) else starts
    np.add.at(edges, hits, 1)
    np.add.at(edges, hits + n, -1)
    covered = np.concatenate([[0], np.cumsum(np.cumsum(edges)[: len(x)] > 0)])
    bounds = np.concatenate([[0], ends])
    per_document = np.diff(covered[bounds])
    return Overlap(n, len(x), int(per_document.sum()), np.diff(bounds), per_document)


def overlap_13gram(documents: Sequence[ArrayLike], store_documents: Iterable[ArrayLike]) -> float:
    """Share (0 to 1) of evaluated tokens that lie in a 13-gram of the store; see `overlap`."""
    return overlap(documents, store_documents, 13).fraction


def _mark(
    found: NDArray[np.bool_], wanted: Words, x: Words, example: NDArray[np.int64], chunk: Sequence[Words], n: int
) -> None:
    """Sets `found` for the wanted hashes whose n-gram (at x[example]) occurs in the chunk."""
    y, ends = _concatenate(chunk)
    starts = _gram_starts(ends, n)
    hashes = _hashes(y, starts, n)
    at = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
    candidates = np.flatnonzero((wanted[at] == hashes) & ~found[at])
    for part in np.array_split(candidates, max(1, len(candidates) // 65536)):
        grams = np.arange(n)[None, :]
        same = (y[starts[part, None] + grams] == x[example[at[part], None] + grams]).all(axis=1)  # (c, n)
        found[at[part[same]]] = True


def _chunks(documents: Iterable[ArrayLike], n: int) -> Iterable[list[Words]]:
    """Groups small documents and cuts large ones (with n - 1 tokens repeated) so that a chunk stays near `_CHUNK`."""
    group: list[Words] = []
    size = 0
    for document in documents:
        tokens = _checked(document)
        for start in range(0, max(1, len(tokens) - n + 1), _CHUNK):
            piece = tokens[start : start + _CHUNK + n - 1]
            group.append(piece)
            size += len(piece)
            if size >= _CHUNK:
                yield group
                group, size = [], 0
    if group:
        yield group


def _hashes(x: Words, starts: NDArray[np.int64], n: int) -> Words:
    """Polynomial hash modulo 2^64 of the n tokens at each start, each token mixed first (splitmix64)."""
    z = x + _BASE
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    h = np.zeros(len(starts), dtype=np.uint64)
    for j in range(n):
        h = h * _BASE + z[starts + j]
    return h


def _gram_starts(ends: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    lengths = np.diff(np.concatenate([[0], ends]))
    position = np.arange(int(ends[-1]) if len(ends) else 0)
    return np.flatnonzero(position + n <= np.repeat(ends, lengths))


def _concatenate(documents: Sequence[ArrayLike]) -> tuple[Words, NDArray[np.int64]]:
    parts = [_checked(document) for document in documents]
    ends = np.cumsum(np.array([len(part) for part in parts], dtype=np.int64))
    return (np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)), ends


def _checked(tokens: ArrayLike) -> Words:
    x = np.asarray(tokens)
    if x.size == 0:
        return np.zeros(0, dtype=np.uint64)
    if x.ndim != 1 or x.dtype.kind not in "iu" or (x.dtype.kind == "i" and int(x.min()) < 0):
        raise ValueError(f"expected a one-dimensional array of token ids, found {x.dtype} of shape {x.shape}")
    return x.astype(np.uint64)


def overlap_share(
    text: ScoredText, store: DocumentStore, progress: Callable[[str, int, int], None] | None = None
) -> float:
    """Share (0 to 1) of scored tokens that lie in a 13-gram of the store.

    progress: called with ("overlap", entries of the store that are read, all). Reads every value of the store.
    """
    scored = [text.tokens[rows] for rows in text.documents()]
    total = len(store)
    return overlap_13gram(
        scored,
        values_of_documents(store, lambda at: None if progress is None else progress("overlap", at, total)),
    )
