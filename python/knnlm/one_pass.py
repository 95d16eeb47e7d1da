"""One pass: text becomes an indexed store without a raw key on disk; killed at any moment, it goes on where it was.

The quantiser is learnt from the keys of a sample of the text. Then the documents go through the model in parts of a
fixed number of tokens; each part is encoded in memory and committed. A part is computed by itself, so that the store
has the same bytes whether it was interrupted or not, and whichever process computed which part.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from knnlm._core import plan_index
from knnlm.datastore import Datastore
from knnlm.identity import KeySpec, Loaded
from knnlm.keys import TokenDocument, iterate

PART_TOKENS = 1 << 16
"""Tokens of a part at least: what a crash can cost."""

SAMPLE_CUT = 4096
"""Tokens that a document gives to the sample at most, so that no long one dominates it."""

TRAINED = 2
"""Generation of a store whose quantiser is learnt and that has no part yet: it is created, then trained."""

Progress = Callable[[str, int, int], None]
Part = list[tuple[str, Any, NDArray[np.uint32], NDArray[Any]]]
"""Documents of a part: name, metadata, tokens (L,), keys (L, d)."""


@dataclass(frozen=True)
class OnePassResult:
    """What a run did: parts that an earlier run had committed are counted as resumed."""

    tokens: int
    parts: int
    resumed_parts: int
    sample_tokens: int
    seconds: float


def parts_of(documents: Iterable[TokenDocument], part_tokens: int = PART_TOKENS) -> Iterator[list[TokenDocument]]:
    """Consecutive documents, cut into parts of at least `part_tokens` tokens (the last one may have fewer)."""
    part: list[TokenDocument] = []
    tokens = 0
    for document in documents:
        if len(document.tokens) == 0:
            continue
        part.append(document)
        tokens += len(document.tokens)
        if tokens >= part_tokens:
            yield part
            part, tokens = [], 0
    if part:
        yield part


def sample_keys(
    loaded: Loaded,
    documents: Callable[[], Iterable[TokenDocument]],
    keys: KeySpec,
    wanted: int,
    total: int,
    seed: int,
    **options: Any,
) -> NDArray[np.float32]:
    """Keys `(n, d)` of about `wanted` of `total` tokens: of the starts of documents drawn at random."""
    share = min(1.0, 1.25 * wanted / max(1, total))
    rng = np.random.default_rng(seed)

    def drawn() -> Iterator[TokenDocument]:
        for document in documents():
            # A document of L tokens gives min(L, cut): long ones are drawn more often, so that the share is kept.
            length = len(document.tokens)
            cut = max(SAMPLE_CUT, int(share * length)) if length > SAMPLE_CUT else length
            if length and rng.random() < share * length / cut:
                yield TokenDocument(document.name, document.tokens[:cut], None)

    rows = [chunk.key for chunk in _chunks(loaded, drawn(), keys, **options)]
    if not rows:
        return sample_keys(loaded, documents, keys, total, total, seed, **options)  # chance drew nothing: take all
    found = np.concatenate(rows).astype(np.float32, copy=False)  # (n, d)
    if len(found) > wanted:
        found = found[np.sort(rng.permutation(len(found))[:wanted])]
    return np.ascontiguousarray(found)


def _chunks(loaded: Loaded, documents: Iterable[TokenDocument], keys: KeySpec, **options: Any) -> Iterator[Any]:
    return iterate(
        loaded,
        documents,
        captures=[(keys.representation, keys.layer)],
        window=keys.window,
        context=keys.context,
        key_dtype=keys.key_dtype,
        scores=False,
        **options,
    )


def compute_part(loaded: Loaded, part: Sequence[TokenDocument], keys: KeySpec, **options: Any) -> Part:
    """The keys of a part; depends on nothing but its documents."""
    found: Part = []
    for chunk in _chunks(loaded, part, keys, **options):
        if chunk.start == 0:
            found.append((chunk.document.name, chunk.document.metadata, chunk.tokens, chunk.key))
        else:
            name, metadata, tokens, key = found[-1]
            joined = np.concatenate([tokens, chunk.tokens]), np.concatenate([key, chunk.key])
            found[-1] = (name, metadata, *joined)
    return found


def build_in_one_pass(
    path: str | Path,
    loaded: Loaded,
    documents: Callable[[], Iterable[TokenDocument]],
    *,
    keys: KeySpec,
    dim: int,
    attributes: dict[str, Any],
    code: Any = None,
    nlist: int | None = None,
    metric: Literal["l2", "ip"] = "l2",
    seed: int = 0,
    threads: int | None = None,
    workers: int = 0,
    load: Callable[[], Loaded] | None = None,
    part_tokens: int = PART_TOKENS,
    progress: Progress | None = None,
    **options: Any,
) -> OnePassResult:
    """Make the store at `path`, or go on with one that an interrupted run of the same text left there.

    documents: gives the text from its start whenever it is called (it is read twice: to count, and to encode); names
    must be unique. attributes: what the store remembers. workers: processes that compute parts, each with the model
    that `load` (which must pickle) returns; 0 computes them here. options: of `iterate` (batch_tokens, dtype). The
    bytes of the store depend on the text, the model, its device and threads, and `part_tokens`; on nothing else. Raises
    ValueError for a store at `path` that was made otherwise, and for a text without tokens.
    """
    started = time.perf_counter()
    keys = keys.resolved(loaded.context)
    report = progress or (lambda stage, done, total: None)
    total = 0
    for document in documents():
        total += len(document.tokens)
        report("count tokens", total, 0)
    if total == 0:
        raise ValueError("expected text with at least one token, found none")
    path = Path(path)
    fresh = not any(path.glob("manifest-*.json")) if path.is_dir() else True
    marks = {**attributes, "one_pass": {"tokens": total, "part_tokens": part_tokens, "seed": seed}}
    store = (
        Datastore.create(path, dim=dim, metric=metric, max_value=int(loaded.tokenizer.vocab_size) - 1, attributes=marks)
        if fresh
        else Datastore.open(path)
    )
    with store:
        if store.attributes != marks:
            raise ValueError(f"{path}: expected a store of this text and model to go on with, found another; remove it")
        sampled = 0
        if not store.is_built:
            wanted = plan_index(total, dim, nlist)[1]
            report("sample", 0, 0)
            sample = sample_keys(loaded, documents, keys, min(wanted, total), total, seed, **options)
            sampled = len(sample)
            store.train(sample, expected=total, seed=seed, nlist=nlist, code=code, threads=threads, progress=progress)
        resumed = done = store.generation - TRAINED
        waiting = islice(parts_of(documents(), part_tokens), done, None)
        tokens = len(store)
        with _computed(loaded, waiting, keys, workers, load, options) as computed:
            for part in computed:
                for name, metadata, values, rows in part:
                    store.add(rows, values, document=name, metadata=metadata)
                    tokens += len(values)
                store.commit()
                done += 1
                report("encode", tokens, total)
        store.compact(progress=progress)
    return OnePassResult(total, done, resumed, sampled, time.perf_counter() - started)


@contextmanager
def _computed(
    loaded: Loaded,
    parts: Iterator[list[TokenDocument]],
    keys: KeySpec,
    workers: int,
    load: Callable[[], Loaded] | None,
    options: dict[str, Any],
) -> Iterator[Iterator[Part]]:
    """Parts with their keys, in order: computed here, or by processes that are at most two parts each ahead."""
    if workers < 1:
        yield (compute_part(loaded, part, keys, **options) for part in parts)
        return
    if load is None:
        raise ValueError("workers need `load`, a function that gives each of them the model")
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with context.Pool(workers, _start_worker, (load, keys, options)) as pool:

        def ahead() -> Iterator[Part]:
            pending = [pool.apply_async(_work, (part,)) for part in islice(parts, 2 * workers)]
            while pending:
                ready = pending.pop(0).get()
                pending += [pool.apply_async(_work, (part,)) for part in islice(parts, 1)]
                yield ready

        yield ahead()


_worker: tuple[Loaded, KeySpec, dict[str, Any]]


def _start_worker(load: Callable[[], Loaded], keys: KeySpec, options: dict[str, Any]) -> None:
    global _worker
    _worker = (load(), keys, options)


def _work(part: list[TokenDocument]) -> Part:
    loaded, keys, options = _worker
    return compute_part(loaded, part, keys, **options)
