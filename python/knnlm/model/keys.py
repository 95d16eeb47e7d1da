"""Keys: documents stream through the model in windows; out come tokens, their log-probabilities and their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.model.capture import CaptureName
from knnlm.model.forward import Chunk, Job, NotFiniteError, Runner, check_tokens
from knnlm.model.key_spec import KeySpec
from knnlm.model.loaded import Loaded
from knnlm.model.modules import token_limit, unwrapped
from knnlm.model.windows import check_window, plan
from knnlm.text.inputs import encoded

BATCH_TOKENS = 4096
"""Positions of a forward pass, or one window if that is longer; `head.py` bounds their logits."""

POOL_BYTES = 1 << 28
"""Keys and scores that wait for the end of their pool, as far as one batch of them is not more by itself."""

Progress = Callable[[str, int, int], None]

__all__ = [
    "Chunk",
    "NotFiniteError",
    "batch_size",
    "batch_tokens_of",
    "document_tokens",
    "iterate",
    "iterate_as",
]


def iterate(
    loaded: Loaded,
    documents: Iterable[Any],
    *,
    captures: Sequence[CaptureName] = (("ffn-input", -1),),
    window: int | None = None,
    context: int | None = None,
    key_dtype: str = "float16",
    batch_tokens: int | None = None,
    pool_batches: int = 8,
    features: Sequence[str] = (),
    scores: bool = True,
    tolerant: bool = False,
    autocast: str | None = None,
    progress: Progress | None = None,
    total: int = 0,
) -> Iterator[Chunk]:
    """Score documents and capture their keys; chunks come in corpus order, a long document in several.

    documents: objects with `name`, `metadata` and `text` (or `tokens`, (L,) integers); context never crosses their
    borders, and an empty one gives nothing. window, context: tokens; defaults: the model's context up to
    `key_spec.DEFAULT_WINDOW`, and half of that. captures: none, one or several (representation, layer), all from one
    forward pass. batch_tokens: positions per forward pass; default: `batch_size`. pool_batches: so many batches at most
    are run before their chunks come, fewer where their keys are many bytes (`POOL_BYTES`). scores: whether log p_LM is
    wanted; without it the model stops at the last key, before its head. tolerant: a document whose scores or keys are
    not finite does not end the work: its chunks say so (`Chunk.bad`). autocast: arithmetic of the model, as in
    `KeySpec`. progress(stage, done, total) counts tokens, after each forward pass. Memory: one pool of batches, and
    `head.LOGITS` logits, whatever the corpus holds and the model reads.

    Raises:
        NotFiniteError: a score or a key that is not finite, with the document and what to do.
        ValueError: a window that the model cannot read; a token that it does not have, with the document.
    """
    window, context = _windows(loaded, window, context)
    if key_dtype not in ("float16", "float32"):
        raise ValueError(f"key_dtype: expected float16 or float32, found {key_dtype!r}")
    if unknown := set(features) - {"entropy", "max"}:
        raise ValueError(f"features: expected 'entropy' or 'max', found {sorted(unknown)}")
    batch_tokens = batch_size(window) if batch_tokens is None else batch_tokens
    if not scores and (features or not captures):
        raise ValueError("scores=False gives keys only: expected captures and no features")
    run = Runner(loaded, captures, key_dtype, features, autocast, scores, tolerant)
    done = 0

    def passed(tokens: int) -> None:
        nonlocal done
        done += tokens
        if progress is not None:
            progress("model", done, total)

    with run:
        pool: list[Job] = []
        waiting = 0
        limit = batch_tokens  # the first batch shows how wide a key is
        for job in _jobs(loaded, documents, window, context):
            pool.append(job)
            waiting += job.window.stop - job.window.start
            if waiting >= limit:
                yield from run.pool(pool, batch_tokens, passed)
                pool, waiting = [], 0
                limit = max(batch_tokens, min(pool_batches * batch_tokens, POOL_BYTES // max(1, run.token_bytes)))
        yield from run.pool(pool, batch_tokens, passed)


def iterate_as(loaded: Loaded, documents: Iterable[Any], spec: KeySpec, **options: Any) -> Iterator[Chunk]:
    """`iterate` with keys made as a resolved `spec` says; options of `iterate` stand above it."""
    made = {
        "captures": [(spec.representation, spec.layer)],
        "window": spec.window,
        "context": spec.context,
        "key_dtype": spec.key_dtype,
        "autocast": spec.autocast,
    }
    return iterate(loaded, documents, **(made | options))


def batch_size(window: int) -> int:
    """Positions of a forward pass: `BATCH_TOKENS`, at least one window."""
    return max(window, BATCH_TOKENS)


def batch_tokens_of(batch_size: int | None, keys: KeySpec, loaded: Loaded) -> int | None:
    """Positions of a forward pass of `batch_size` windows; None for None, the default."""
    if batch_size is None:
        return None
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least one window, found {batch_size}")
    return batch_size * _windows(loaded, keys.window, keys.context)[0]


def _windows(loaded: Loaded, window: int | None, context: int | None) -> tuple[int, int]:
    spec = KeySpec(window=window, context=context).resolved(loaded.context)
    assert spec.window is not None
    assert spec.context is not None
    check_window(spec.window, spec.context, loaded.context)
    return spec.window, spec.context


def document_tokens(loaded: Loaded, document: Any) -> NDArray[np.uint32]:
    """The tokens of a document, (L,) uint32: its own, or its text encoded."""
    tokens = getattr(document, "tokens", None)
    return np.asarray(encoded(loaded.tokenizer, document) if tokens is None else tokens, np.uint32)


def _jobs(loaded: Loaded, documents: Iterable[Any], window: int, context: int) -> Iterator[Job]:
    limit = token_limit(unwrapped(loaded.model))
    for index, document in enumerate(documents):
        tokens = document_tokens(loaded, document)
        if limit is not None:
            check_tokens(loaded.tokenizer, f"document {document.name!r}", tokens, limit)
        windows = plan(len(tokens), window, context)
        for w in windows:
            yield Job(document, index, tokens, w, w is windows[-1])
