"""Encoding parts: the model's keys become codes in files, here or in worker processes; raw keys too if they are kept.

A part depends on nothing but its own documents, the codebook and the model, so that it has the same bytes whoever
computes it, as long as the model runs on as many threads: on others its sums may be rounded in another order.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from knnlm.build.parts import Part
from knnlm.model.key_spec import KeySpec
from knnlm.model.keys import iterate_as
from knnlm.model.loaded import Loaded
from knnlm.store.builder import StoreBuilder
from knnlm.store.datastore import Datastore
from knnlm.store.recall_sample import Found, Truth
from knnlm.system.own_files import remove, written

BLOCK_NUMBERS = 1 << 26
"""Numbers of the keys that are encoded at once, in one file: 256 MiB of float32, however long a document is."""


TOLD_SECONDS = 1.0
"""Between two looks at how far workers are."""


@dataclass(frozen=True)
class Encoded:
    """What is in the folder of a part.

    files: what `StoreBuilder` is told of them. raw: file of raw keys `(n, d)`, if they are kept. found: its nearest
    keys to the queries of the truth. failed: names of documents with keys that are not finite, and why; such keys are
    zeros in the files.
    """

    files: list[Any]
    raw: str | None
    found: Found
    failed: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Encoder:
    """Computes and encodes parts: a model, a store that is not written to, and what becomes of the keys.

    codebook: a staged one of the folder, as `StoreBuilder` tells of it; None = that of the store. keeps: whether raw
    keys are wanted. tolerant: whether a document with keys that are not finite is reported, or ends the work.
    """

    loaded: Loaded
    keys: KeySpec
    store: Datastore
    folder: Path
    truth: Truth
    threads: int | None
    options: dict[str, Any]
    codebook: Any = None
    keeps: bool = False
    tolerant: bool = False

    def encode(self, part: Part, passed: Callable[[int], None] | None = None) -> Encoded:
        """Write the codes of a part, and its raw keys, to files of the folder.

        passed: told the tokens of the part that the model has run over, batch by batch.
        """
        files: list[Any] = []
        ids = part.ids  # (n,)
        truth, at, start = self.truth.empty(), 0, part.start
        failed: dict[str, str] = {}
        with self._raw(part) as raw:
            for number, keys in enumerate(self._blocks(part, failed, passed)):
                own = ids[at : at + len(keys)]
                if raw is not None:
                    raw.write(np.ascontiguousarray(keys, self.keys.key_dtype).data.cast("B"))
                at += len(keys)
                stop = part.stop if at == len(ids) else int(own[-1]) + 1
                files += self._write(keys, own, (start, stop), f"lists-{part.number:08}-{number}")
                right = keys.any(axis=1) if failed else np.ones(len(keys), bool)
                truth = truth.merged(truth.nearest(keys[right], own[right], self.threads))
                start = stop
        raw_name = _raw_name(part) if self.keeps else None
        return Encoded(files, raw_name, (truth.distances, truth.ids), list(failed.items()))

    @contextmanager
    def _raw(self, part: Part) -> Iterator[BinaryIO | None]:
        """A file for the raw keys of a part, with its header, if they are kept: never sparse, so that a full disk is an
        error of a write."""
        if not self.keeps:
            yield None
            return
        kind = np.dtype(self.keys.key_dtype)
        shape = (part.tokens, self.store.dim)
        with written(self.folder / _raw_name(part)) as file:
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            yield file

    def _write(self, keys: NDArray[Any], ids: NDArray[np.int64], span: tuple[int, int], stem: str) -> list[Any]:
        builder = StoreBuilder(self.store)
        if self.codebook is None:
            return builder.encode_part(keys, self.folder, stem, self.threads)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(ids) != 1) + 1, [len(ids)]])
        runs = [(int(ids[a]), int(b - a)) for a, b in pairwise(starts)]
        name = f"{stem}.seg"
        return [builder.stage_lists(self.folder, self.codebook, keys, runs, span, name, self.threads)]

    def _blocks(
        self, part: Part, failed: dict[str, str], passed: Callable[[int], None] | None
    ) -> Iterator[NDArray[Any]]:
        """The keys of a part `(n, d)`, in blocks of a number of rows that only the last one falls short of.

        failed: gets the documents with keys that are not finite, which become zeros.
        """
        most = max(1, BLOCK_NUMBERS // self.store.dim)
        waiting: list[NDArray[Any]] = []
        rows = 0
        for chunk in iterate_as(
            self.loaded,
            part.documents,
            self.keys,
            scores=False,
            tolerant=self.tolerant,
            progress=None if passed is None else lambda _, done, __: passed(done),
            **self.options,
        ):
            key = chunk.key
            if chunk.bad is not None:
                failed.setdefault(chunk.document.name, chunk.bad)
                key = np.where(np.isfinite(key).all(axis=1, keepdims=True), key, key.dtype.type(0))
            waiting.append(key)
            rows += len(key)
            while rows >= most:
                keys = np.concatenate(waiting)
                yield np.ascontiguousarray(keys[:most])
                waiting, rows = [keys[most:]], rows - most
        if rows:
            yield np.ascontiguousarray(np.concatenate(waiting))


def _raw_name(part: Part) -> str:
    return f"keys-{part.number:08}.npy"


@contextmanager
def encoded(
    encoder: Encoder,
    parts: Iterator[Part],
    workers: int,
    load: Callable[[], Loaded] | None,
    passed: Callable[[int], None] | None = None,
) -> Iterator[Iterator[tuple[Part, Encoded]]]:
    """Encoded parts, in order: encoded here, or by processes that are at most two parts each ahead.

    workers: processes, each with the model that `load` (which must pickle) returns; 0 encodes here. passed: told, at
    least each second, the tokens that models have run over beside those of the parts that were given out. Raises
    ValueError for workers without `load`; RuntimeError where one dies or cannot load.
    """
    if workers < 1:
        yield ((part, encoder.encode(part, passed)) for part in parts)
        return
    if load is None:
        raise ValueError("workers need `load`, a function that gives each of them the model")
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    cores = os.cpu_count() or 1
    threads = max(1, (encoder.threads or cores) // workers)
    # Threads that were asked for are those of each model; without, all models together take the cores.
    model_threads = encoder.threads or max(1, cores // workers)
    watched, alive = context.Pipe(duplex=False)
    running = context.RawArray("q", 2 * workers)  # tokens done of each part that is given out: no lock for the dead
    given = (load, encoder.store.path, encoder.keys, encoder.folder, encoder.truth, threads, encoder.options)
    pool = ProcessPoolExecutor(
        workers,
        context,
        _start_worker,
        (watched, running, model_threads, *given, encoder.codebook, encoder.keeps, encoder.tolerant),
    )

    def ahead() -> Iterator[tuple[Part, Encoded]]:
        pending = [(part, pool.submit(_work, part)) for part in islice(parts, 2 * workers)]
        while pending:
            part, result = pending[0]
            while not wait((result,), timeout=TOLD_SECONDS).done:
                if passed is not None:
                    passed(sum(running))
            files, raw = result.result()
            del pending[0]
            running[part.number % len(running)] = 0
            ready = Encoded(files, raw, *_told(encoder.folder, part))
            pending += [(after, pool.submit(_work, after)) for after in islice(parts, 1)]
            yield part, ready

    try:
        yield ahead()
    except BrokenProcessPool as error:
        _unblock(pool)
        raise RuntimeError(
            "expected worker processes to live until the end, found that one died (killed, or out of memory?): what is "
            "done so far stays; do the same again, with fewer workers (in commands --workers) if memory is short"
        ) from error
    except BaseException:
        alive.close()  # workers end at once, whatever they are doing
        _unblock(pool)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        alive.close()
        watched.close()


def _unblock(pool: ProcessPoolExecutor) -> None:
    """Let the thread that sends parts see that nobody reads them; Python does it itself from 3.11.5 on, in a thread."""
    if sys.version_info >= (3, 11, 5):
        return  # closed by both at once, a descriptor may be another's by then
    queue = getattr(pool, "_call_queue", None)
    if queue is not None:
        queue._reader.close()


_worker: Encoder | Exception
_running: Any  # tokens done of each part that is given out


def _start_worker(
    watched: Connection,
    running: Any,
    model_threads: int,
    load: Callable[[], Loaded],
    path: str,
    keys: KeySpec,
    folder: Path,
    truth: Truth,
    threads: int,
    options: dict[str, Any],
    codebook: Any,
    keeps: bool,
    tolerant: bool,
) -> None:
    global _worker, _running
    _running = running
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that commits, which then ends this one
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    try:
        torch.set_num_threads(model_threads)
        loaded = load()
        torch.set_num_threads(min(torch.get_num_threads(), model_threads))  # `load` may have asked for fewer
        _worker = Encoder(
            loaded, keys, Datastore.open(path), folder, truth, threads, options, codebook, keeps, tolerant
        )
    except Exception as error:
        _worker = error


def _end_with(watched: Connection) -> None:
    """End this process when the one that started it closes its end, or dies."""
    with suppress(EOFError, OSError):
        watched.recv()
    os._exit(1)


def _work(part: Part) -> tuple[list[Any], str | None]:
    if isinstance(_worker, Exception):
        raise RuntimeError(f"a worker process cannot start: {type(_worker).__name__}: {_worker}") from _worker
    slot = part.number % len(_running)

    def passed(tokens: int) -> None:
        _running[slot] = tokens

    done = _worker.encode(part, passed)
    # By a file: a process that dies while it sends more than a pipe takes at once would leave the other one waiting.
    with written(_worker.folder / _found_name(part)) as file:
        failed = np.frombuffer(json.dumps(done.failed).encode(), np.uint8)
        np.savez(file, distances=done.found[0], ids=done.found[1], failed=failed)
    return done.files, done.raw


def _told(folder: Path, part: Part) -> tuple[Found, list[tuple[str, str]]]:
    """What a worker found for a part; its file goes."""
    with np.load(folder / _found_name(part), allow_pickle=False) as saved:
        found = saved["distances"], saved["ids"]
        failed = [(name, reason) for name, reason in json.loads(saved["failed"].tobytes())]
    remove(folder / _found_name(part))
    return found, failed


def _found_name(part: Part) -> str:
    return f"found-{part.number:08}.npz"
