"""What a build will take: a short part of it is done in a temporary folder, timed, and scaled up."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from knnlm.cli.work import count_tokens, key_width, open_store

if TYPE_CHECKING:
    from knnlm.documents import Document
    from knnlm.identity import KeySpec
    from knnlm.models import LoadedModel
    from knnlm.progress import Progress

SAMPLE_SECONDS = 5.0  # of running the model
SAMPLE_ENTRIES = 20_000  # indexed for the estimate of a dumped store
TRAINING_BYTES = 1 << 30  # most that the index keeps of sampled keys, float32
KEYS_PER_LIST = 64  # sampled for learning the lists


def of_text(
    loaded: LoadedModel,
    documents: Sequence[Document],
    spec: KeySpec,
    kept: str,
    index: dict[str, Any],
    batch_tokens: int | None,
    threads: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Tokens exactly; seconds, disk and memory estimated from the keys of some seconds."""
    from knnlm.keys import iterate

    total = count_tokens(loaded, documents, progress)
    spec = spec.resolved(loaded.context)
    keys, values = [], []
    tokens = 0
    started = time.perf_counter()
    task = progress.track("sample", int(SAMPLE_SECONDS), "s")
    for chunk in iterate(
        loaded,
        _spread(documents),
        captures=[(spec.representation, spec.layer)],
        window=spec.window,
        context=spec.context,
        key_dtype=spec.key_dtype,
        batch_tokens=batch_tokens,
    ):
        keys.append(chunk.key)
        values.append(chunk.tokens)
        tokens += len(chunk.tokens)
        seconds = time.perf_counter() - started
        task.update(min(int(seconds), int(SAMPLE_SECONDS)))
        if seconds > SAMPLE_SECONDS:
            break
    dump_seconds = (time.perf_counter() - started) / max(1, tokens) * total
    sample = np.concatenate(keys) if keys else np.zeros((0, key_width(loaded, spec)), np.float32)  # (m, d)
    targets = np.concatenate(values) if values else np.zeros(0, np.uint32)
    return {
        "tokens": total,
        "documents": len(documents),
        "sample_tokens": tokens,
        "dump_seconds": dump_seconds,
        **_index(sample, targets, total, kept, index, threads, dump_seconds, _model_bytes(loaded)),
    }


def of_store(path: Path, index: dict[str, Any], threads: int | None) -> dict[str, Any]:
    """The same for a store that has its keys."""
    with open_store(path) as store:
        n = len(store)
        info = store.info()
        if info["entries_with_keys"] < n:
            raise ValueError(
                f"expected raw keys in {path}, found {info['entries_with_keys']:,} of {n:,}: dump it again"
            )
        size = min(n, SAMPLE_ENTRIES)
        keys, values = store.keys(0, size), store.values(0, size)
        found = _index(keys, values, n, info["keep_keys"] or "none", index, threads, 0.0, 0)
        return {"tokens": n, "documents": info["documents"], "sample_tokens": size, "dump_seconds": 0.0, **found}


def _index(
    keys: Any, values: Any, n: int, kept: str, index: dict[str, Any], threads: int | None, dump: float, model_bytes: int
) -> dict[str, Any]:
    from knnlm.datastore import Datastore

    d = keys.shape[1]
    raw = n * d * (2 if keys.dtype == np.float16 else 4)
    searched, seconds, lists = 0.0, 0.0, 1
    if len(keys):
        with (
            tempfile.TemporaryDirectory(prefix="knnlm-") as folder,
            Datastore.create(Path(folder) / "sample", dim=d, keep_keys="float32") as store,
        ):
            store.add(keys, values)
            nlist = None if index["nlist"] is None else max(1, min(index["nlist"], len(keys) // KEYS_PER_LIST))
            started = time.perf_counter()
            store.build(nlist=nlist, code=index["code"], threads=threads)
            seconds = time.perf_counter() - started
            info = store.info()
            lists = info["nlist"]
            searched = float(info["search_bytes_per_entry"])
        # Each entry is compared with each centroid, and there are more of both in the whole.
        seconds *= max(1.0, n / len(keys)) * max(1.0, (index["nlist"] or lists_for(n)) / lists)
    nlist_all = index["nlist"] or lists_for(n)
    training = min(TRAINING_BYTES, min(n, KEYS_PER_LIST * nlist_all) * d * 4)
    disk = n * (searched + 4) + (0 if kept == "none" else raw)
    return {
        "build_seconds": seconds,
        "seconds": dump + seconds,
        "disk_bytes": int(disk),
        "peak_disk_bytes": int(n * (searched + 4) + raw),
        "memory_bytes": int(model_bytes + 2 * training + nlist_all * d * 4 + 12 * n),
        "free_bytes": shutil.disk_usage(Path.cwd()).free,
        "nlist": nlist_all,
    }


def lists_for(n: int) -> int:
    """About how many lists the index makes for n entries (64 entries each at first, 0.18 √n later)."""
    return 1 if n < 2048 else math.ceil(n / max(64.0, 0.18 * math.sqrt(n)))


def _spread(documents: Sequence[Document]) -> Iterator[Document]:
    """Documents from all over the corpus, cut so that several are seen in the time."""
    order = np.random.default_rng(0).permutation(len(documents))
    for i in order.tolist():
        yield replace(documents[i], text=documents[i].text[:20_000])


def _model_bytes(loaded: LoadedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in loaded.model.parameters())
