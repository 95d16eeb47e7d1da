"""Stretches: documents stream through model and retriever; out come p_LM, keys, neighbors and features of tokens."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.lm.retriever import Retriever, Span
from knnlm.lm.running_text import RunningText
from knnlm.model.identity import check
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec
from knnlm.model.loaded import Loaded
from knnlm.store.neighbors import Neighbors

QUERIES = 2048
"""Tokens of a stretch at most, which are the queries of one search call."""

OF_THE_MODEL = ("entropy", "max")
"""Features that the model's own distribution gives."""


@dataclass(frozen=True)
class Stretch:
    """Tokens of one document that follow each other, m of them, and what is known of each.

    document: as it was given; index: its number. start: position of the first token. tokens: (m,) uint32; document_
    tokens: (L,), all of the document. log_p_lm: (m,) float32, nats. keys: (m, d) float32. neighbors: (m, k), None
    without a retriever. features: (m,) float32 each. copies: where the store has this document. bad: why the document
    is to be left out, with nothing else then.
    """

    document: Any
    index: int
    start: int
    tokens: NDArray[np.uint32]
    document_tokens: NDArray[np.uint32]
    log_p_lm: NDArray[np.float32]
    keys: NDArray[np.float32]
    neighbors: Neighbors | None = None
    features: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    copies: list[Span] = field(default_factory=list)
    bad: str | None = None
    model_seconds: float = 0.0
    search_seconds: float = 0.0


def stretches(
    loaded: Loaded,
    documents: Iterable[Any],
    retriever: Retriever | None = None,
    *,
    keys: KeySpec | None = None,
    features: Iterable[str] = (),
    running: RunningText | None = None,
    first: int = 0,
    whole: NDArray[np.uint32] | None = None,
    want_keys: bool = False,
    scores: bool = True,
    tolerant: bool = True,
    **options: Any,
) -> Iterator[Stretch]:
    """Every token of documents in corpus order, in stretches of `QUERIES` at most.

    keys: how keys are made; default: as the retriever's store says. features: names, of which those of `OF_THE_MODEL`
    are asked of the model; running: gives the others. first: tokens before this position of each document are read, and
    not looked for. whole: of a single document that is read in part, all tokens. want_keys: also where nothing else
    needs keys. scores: without, log_p_lm is NaN. tolerant: a document whose scores or keys are not finite gives one
    stretch that says so and no more; else it ends the work. options: of `keys.iterate`.

    Raises:
        IdentityError: the store belongs to another model or was made with another arithmetic.
        NotFiniteError: the model gives NaN, where that is not tolerated.
    """
    from knnlm.model.keys import iterate_as

    store = None if retriever is None else retriever.store
    if store is not None:
        check(store, loaded, keys)
    spec = resolve(loaded, keys, store)
    running = running or RunningText()
    model_features = [name for name in OF_THE_MODEL if name in set(features)]
    wanted = {"features": model_features, "scores": scores, "tolerant": tolerant}
    capture = retriever is not None or running.needs_keys or want_keys
    if not capture:
        wanted["captures"] = ()
    chunks = iterate_as(loaded, documents, spec, key_dtype="float32", **wanted, **options)
    failing, copies = -1, list[Span]()
    nothing = np.zeros(0, np.float32)
    while True:
        began = time.perf_counter()
        chunk = next(chunks, None)
        seconds = time.perf_counter() - began
        if chunk is None:
            return
        if chunk.index == failing:
            continue
        empty = chunk.document, chunk.index, chunk.start, chunk.tokens[:0], chunk.all_tokens, nothing
        if chunk.bad is not None and tolerant:
            failing = chunk.index
            running.begin()
            known = copies if chunk.start else []  # at its start these are of the document before
            yield Stretch(*empty, nothing[:, None], copies=known, bad=chunk.bad, model_seconds=seconds)
            continue
        if chunk.start == 0:
            text = chunk.all_tokens if whole is None else whole
            copies = [] if retriever is None else retriever.copies(chunk.document.name, text)
        key = chunk.key if capture else np.zeros((len(chunk.tokens), 0), np.float32)
        columns = running.targets(chunk.start, key, chunk.tokens, chunk.all_tokens) | dict(chunk.features)
        if chunk.last:
            running.begin()
        for at in range(max(0, first - chunk.start), len(chunk.tokens), QUERIES):
            rows = slice(at, at + QUERIES)
            began = time.perf_counter()
            found = None if retriever is None else retriever.find(key[rows], copies, chunk.start + at)
            yield Stretch(
                chunk.document,
                chunk.index,
                chunk.start + at,
                chunk.tokens[rows],
                chunk.all_tokens,
                chunk.log_p[rows],
                key[rows],
                found,
                {name: column[rows] for name, column in columns.items()},
                copies,
                None,
                seconds,
                time.perf_counter() - began,
            )
            seconds = 0.0
