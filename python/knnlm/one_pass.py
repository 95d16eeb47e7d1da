"""One pass: text becomes an indexed store without a raw key on disk; killed at any moment, it goes on where it was.

The quantiser is learnt from the keys of a sample of the text. Then the documents go through the model in parts of a
fixed number of tokens; each part is encoded into files of its own, by this process or by a worker, and committed in
document order by this one, which holds the lock. A part is computed by itself, so that the store has the same bytes
whether it was interrupted or not, and whichever process computed which part. Exact neighbours of some keys (`truth`)
are kept on the way: at the end the recall of the codes is measured against them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from knnlm import _core
from knnlm.arrays import to_json
from knnlm.datastore import Datastore
from knnlm.identity import KeySpec, Loaded
from knnlm.keys import TokenDocument, iterate_as
from knnlm.truth import Found, Truth

PART_TOKENS = 1 << 16
"""Tokens of a part at least: what a crash can cost."""

SAMPLE_CUT = 4096
"""Tokens that a document gives to the sample at most, so that no long one dominates it."""

TRAINED = 2
"""Generation of a store whose quantiser is learnt and that has no part yet: it is created, then trained."""

PARTS = "parts"
"""Folder in the store, while it is built, for what no manifest names: parts that wait for their turn, and the truth."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Part:
    """Consecutive documents: their place among the parts, and the id of their first entry."""

    number: int
    first_id: int
    documents: list[TokenDocument]

    @property
    def tokens(self) -> int:
        """Number of its entries."""
        return sum(len(document.tokens) for document in self.documents)


Encoded = tuple[str, Found]
"""Files of an encoded part, as JSON, and its nearest keys to the queries of the truth."""


@dataclass(frozen=True)
class OnePassResult:
    """What a run did: parts that an earlier run had committed are counted as resumed."""

    tokens: int
    parts: int
    resumed_parts: int
    sample_tokens: int
    seconds: float


def parts_of(documents: Iterable[TokenDocument], part_tokens: int = PART_TOKENS) -> Iterator[Part]:
    """Cut documents into parts of at least `part_tokens` tokens (the last one may have fewer)."""
    part: list[TokenDocument] = []
    tokens = number = first_id = 0
    for document in documents:
        if len(document.tokens) == 0:
            continue
        part.append(document)
        tokens += len(document.tokens)
        if tokens >= part_tokens:
            yield Part(number, first_id, part)
            number, first_id = number + 1, first_id + tokens
            part, tokens = [], 0
    if part:
        yield Part(number, first_id, part)


def sample_keys(
    loaded: Loaded,
    documents: Callable[[], Iterable[TokenDocument]],
    keys: KeySpec,
    wanted: int,
    total: int,
    seed: int,
    **options: Any,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Keys `(n, d)` of about `wanted` of `total` tokens, of the starts of documents drawn at random; and their ids."""
    share = min(1.0, 1.25 * wanted / max(1, total))
    rng = np.random.default_rng(seed)

    def drawn() -> Iterator[TokenDocument]:
        first_id = 0
        for document in documents():
            # A document of L tokens gives min(L, cut): long ones are drawn more often, so that the share is kept.
            length = len(document.tokens)
            cut = max(SAMPLE_CUT, int(share * length)) if length > SAMPLE_CUT else length
            if length and rng.random() < share * length / cut:
                yield TokenDocument(document.name, document.tokens[:cut], {"first_id": first_id})
            first_id += length

    rows, ids = [], []
    for chunk in iterate_as(loaded, drawn(), keys, scores=False, **options):
        rows.append(chunk.key)
        ids.append(chunk.document.metadata["first_id"] + chunk.start + np.arange(len(chunk.key), dtype=np.int64))
    if not rows:
        return sample_keys(loaded, documents, keys, total, total, seed, **options)  # chance drew nothing: take all
    found, places = np.concatenate(rows).astype(np.float32, copy=False), np.concatenate(ids)  # (n, d), (n,)
    if len(found) > wanted:
        chosen = np.sort(rng.permutation(len(found))[:wanted])
        found, places = found[chosen], places[chosen]
    return np.ascontiguousarray(found), places


@dataclass(frozen=True)
class Encoder:
    """Computes and encodes parts: a model, and the store whose codebook it uses without writing to it."""

    loaded: Loaded
    keys: KeySpec
    store: Datastore
    folder: Path
    truth: Truth
    threads: int | None
    options: dict[str, Any]

    def encode(self, part: Part) -> Encoded:
        """Write the codes of a part to files of the folder; depends on nothing but its documents and first id."""
        chunks = [
            chunk.key for chunk in iterate_as(self.loaded, part.documents, self.keys, scores=False, **self.options)
        ]
        keys = np.ascontiguousarray(np.concatenate(chunks))  # (n, d)
        stem = f"lists-{part.number:08}"
        core = self.store._core
        files = _core.encode_part(core, keys, os.fsdecode(self.folder), stem, threads=self.threads)
        return files, self.truth.nearest(keys, part.first_id, self.threads)


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
    total = count = 0
    for part in parts_of(documents(), part_tokens):
        total, count = total + part.tokens, count + 1
        report("count tokens", total, 0)
    if total == 0:
        raise ValueError("expected text with at least one token, found none")
    if nlist is not None and total < nlist:
        raise ValueError(
            f"expected at least as many tokens as lists, found {total:,} for {nlist:,} lists: ask for fewer"
        )
    path = Path(path)
    chosen = {"tokens": total, "part_tokens": part_tokens, "seed": seed, "nlist": nlist, "code": code}
    marks = json.loads(to_json({**attributes, "one_pass": chosen}, "attributes"))
    most = int(loaded.tokenizer.vocab_size) - 1
    store = _begun(path, marks) or Datastore.create(path, dim=dim, metric=metric, max_value=most, attributes=marks)
    folder = path / PARTS
    with store:
        sampled = 0
        if not store.is_built:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            wanted = _core.plan_index(total, dim, nlist)[1]
            report("sample", 0, 0)
            sample, ids = sample_keys(loaded, documents, keys, min(wanted, total), total, seed, **options)
            sampled = len(sample)
            Truth.choose(sample, ids, total, metric).save(folder, 0)
            store.train(sample, expected=total, seed=seed, nlist=nlist, code=code, threads=threads, progress=progress)
            del sample
        # Compaction and calibration are generations after the last part.
        resumed = done = min(store.generation - TRAINED, count)
        truth = Truth.load(folder, done)
        if truth is None and done < count:
            raise ValueError(f"{path}: expected {folder} of an interrupted build, found none; remove the store")
        if truth is not None:
            for leftover in folder.glob("lists-*"):
                leftover.unlink()
            encoder = Encoder(loaded, keys, store, folder, truth, threads, options)
            waiting = islice(parts_of(documents(), part_tokens), done, None)
            with _encoded(encoder, waiting, workers, load) as encoded:
                for part, (files, found) in encoded:
                    truth = truth.merged(found)
                    truth.save(folder, part.number + 1)
                    _commit(store, folder, part, files)
                    Truth.forget(folder, part.number)
                    done = part.number + 1
                    report("encode", part.first_id + part.tokens, total)
            store.compact(progress=progress)
            if not store.info()["calibration"]:
                _core.calibrate(store._core, truth.queries, truth.own, truth.ids, threads=threads, progress=progress)
        shutil.rmtree(folder, ignore_errors=True)
    return OnePassResult(total, done, resumed, sampled, time.perf_counter() - started)


def _begun(path: Path, marks: dict[str, Any]) -> Datastore | None:
    """Open what an interrupted run left; None if there is nothing, or nothing that cost much."""
    if not (path.is_dir() and any(path.glob("manifest-*.json"))):
        return None
    store = Datastore.open(path)
    if store.attributes == marks:
        return store
    built = store.is_built
    store.close()
    if built:
        raise ValueError(
            f"{path}: expected a store of this text and model with these settings to go on with, found another; "
            "remove it"
        )
    shutil.rmtree(path)
    return None


def _commit(store: Datastore, folder: Path, part: Part, files: str) -> None:
    """Publish an encoded part."""
    documents = [
        (d.name, None if d.metadata is None else to_json(d.metadata, "metadata"), len(d.tokens)) for d in part.documents
    ]
    values = np.concatenate([d.tokens for d in part.documents]).astype(np.uint32, copy=False)  # (n,)
    _core.add_part(store._core, os.fsdecode(folder), files, documents, values)
    store._core.commit()


@contextmanager
def _encoded(
    encoder: Encoder, parts: Iterator[Part], workers: int, load: Callable[[], Loaded] | None
) -> Iterator[Iterator[tuple[Part, Encoded]]]:
    """Encoded parts, in order: encoded here, or by processes that are at most two parts each ahead."""
    if workers < 1:
        yield ((part, encoder.encode(part)) for part in parts)
        return
    if load is None:
        raise ValueError("workers need `load`, a function that gives each of them the model")
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    threads = max(1, (encoder.threads or os.cpu_count() or 1) // workers)
    given = (load, encoder.store.path, encoder.keys, encoder.folder, encoder.truth, threads, encoder.options)
    with context.Pool(workers, _start_worker, given) as pool:

        def ahead() -> Iterator[tuple[Part, Encoded]]:
            pending = [(part, pool.apply_async(_work, (part,))) for part in islice(parts, 2 * workers)]
            while pending:
                part, result = pending.pop(0)
                ready = result.get()
                pending += [(after, pool.apply_async(_work, (after,))) for after in islice(parts, 1)]
                yield part, ready

        yield ahead()


_worker: Encoder


def _start_worker(
    load: Callable[[], Loaded],
    path: str,
    keys: KeySpec,
    folder: Path,
    truth: Truth,
    threads: int,
    options: dict[str, Any],
) -> None:
    global _worker
    _worker = Encoder(load(), keys, Datastore.open(path), folder, truth, threads, options)


def _work(part: Part) -> Encoded:
    return _worker.encode(part)
