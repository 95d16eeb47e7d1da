"""What a build will take: a short part of it is done in a temporary folder, timed, and scaled up."""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from knnlm import _core
from knnlm.build.from_text import check_lists, key_width, resolved
from knnlm.build.parts import SAMPLE_CUT, share_of
from knnlm.build.retrain import spec_of, stored_documents
from knnlm.model.key_spec import KeySpec
from knnlm.model.keys import batch_size, iterate_as
from knnlm.model.loaded import Loaded
from knnlm.model.windows import plan
from knnlm.store.datastore import Datastore
from knnlm.store.recall_sample import Truth
from knnlm.text.inputs import TokenDocument
from knnlm.text.texts import Progress, Texts

SAMPLE_SECONDS = 5.0  # of running the model
SAMPLE_ENTRIES = 20_000  # indexed for the estimate of a dumped store
SAMPLE_DOCUMENTS = 64  # kept of a text, each cut to SAMPLE_TOKENS
SAMPLE_TOKENS = 5000
KEYS_PER_LIST = 64  # at least, in the sample's index
CODEBOOK = ("Centroids", "ListOffsets")  # sections that grow with the number of lists
CODED = "Derived"  # and the one of coded centroids, which come in blocks of
CODED_BLOCK = 32
FIXED = ("Parameters", "Words")  # and those that do not grow at all
LEARN = ("sample", "lists", "words", "calibrate")  # stages of a build that grow with the number of lists
MEASURE = "measure recall"  # and the one that grows with neither
TRUTH_KEYS = 20_000  # compared with the queries of the truth, to time it
READINGS = 3  # of the text: it is counted, sampled and encoded, tokenised each time
BUFFERS = 64 << 20  # of the writer and of the search threads


def of_text(
    loaded: Loaded,
    texts: Texts,
    spec: KeySpec,
    kept: str,
    index: dict[str, Any],
    batch_tokens: int | None,
    threads: int | None,
    progress: Progress | None,
    out: Path | None,
) -> dict[str, Any]:
    """What `build_from_text` would take: tokens exactly; seconds, disk and memory from the keys of some seconds.

    kept: type of the raw keys that are kept, or "none". index: nlist and code. out: where the store would be.
    progress: called with (stage, done, total): "count tokens", and "sample", which counts seconds.
    """
    spec = resolved(loaded, spec)
    lengths: Counter[int] = Counter()

    def counted() -> Iterator[TokenDocument]:
        for document in texts.tokenised(loaded.tokenizer):
            if progress is not None:
                progress("count tokens", texts.tokens, texts.expected_tokens())
            lengths[len(document.tokens)] += 1
            yield document

    started = time.perf_counter()
    sampled = _some_of(counted())
    text_seconds = READINGS * (time.perf_counter() - started)
    total, count = texts.tokens, texts.report.documents
    check_lists(total, index["nlist"])
    keys, values, per_token = _sample_keys(loaded, sampled, spec, batch_tokens, progress)
    passes = _passes(lengths, spec, _core.plan_index(total, key_width(loaded, spec), index["nlist"])[1], per_token)
    tokens = sum(len(part) for part in values)
    sample = np.concatenate(keys) if keys else np.zeros((0, key_width(loaded, spec)), np.float32)  # (m, d)
    targets = np.concatenate(values) if values else np.zeros(0, np.uint32)
    raw = 0 if kept == "none" else total * sample.shape[1] * np.dtype(spec.key_dtype).itemsize
    found, listed = _index(sample, targets, total, index, threads)
    disk = int(4 * total + listed + raw)
    return {
        "tokens": total,
        "documents": count,
        "sample_tokens": tokens,
        **passes,
        "text_seconds": text_seconds,
        "seconds": sum(passes.values())
        + text_seconds
        + found["build_seconds"]
        + _truth_seconds(sample, total, threads),
        "disk_bytes": disk,
        "peak_disk_bytes": 2 * disk,  # parts are joined at the end
        "free_bytes": free_bytes(Path.cwd() / "store" if out is None else out),
        **found,
    }


def of_retraining(
    store: Datastore,
    loaded: Loaded,
    index: dict[str, Any],
    batch_tokens: int | None,
    threads: int | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """The same for a store whose keys the model computes again."""
    spec, total, info = spec_of(store, loaded), len(store), store.info()
    sampled = _some_of(document for _, document in stored_documents(store, int(loaded.tokenizer.vocab_size)))
    keys, values, per_token = _sample_keys(loaded, sampled, spec, batch_tokens, progress)
    lengths = Counter(document.stop - document.start for document in store.documents())
    passes = _passes(lengths, spec, _core.plan_index(total, store.dim, index["nlist"])[1], per_token)
    sample, targets = np.concatenate(keys), np.concatenate(values)  # (m, d), (m,)
    found, listed = _index(sample, targets, total, index, threads)
    return {
        "tokens": total,
        "documents": info["documents"],
        "sample_tokens": len(targets),
        **passes,
        "seconds": sum(passes.values()) + found["build_seconds"] + _truth_seconds(sample, total, threads),
        "disk_bytes": int(np.dtype(info["value_dtype"]).itemsize * total + listed),
        "peak_disk_bytes": int(info["bytes"] + 2 * listed),  # the old index, what is staged, and the same joined
        "free_bytes": free_bytes(Path(store.path)),
        **found,
    }


def _sample_keys(
    loaded: Loaded, documents: list[TokenDocument], spec: KeySpec, batch_tokens: int | None, progress: Progress | None
) -> tuple[list[Any], list[Any], float]:
    """Keys and targets of as much text as some `SAMPLE_SECONDS` allow, and seconds a token that the model reads.

    One window comes first, which also warms the model up: where a whole batch would take longer than all the time
    there is, the rest goes window by window as well.
    """
    keys: list[Any] = []
    values: list[Any] = []
    began = started = time.perf_counter()
    passed = 0

    def tick(_: str, done: int, __: int) -> None:
        nonlocal passed
        passed = done
        if progress is not None:
            limit = max(1, int(SAMPLE_SECONDS))
            progress("sample", min(int(time.perf_counter() - began), limit), limit)

    def chunks(batch: int) -> Generator[Any]:
        yield from iterate_as(
            loaded,
            documents,
            spec,
            batch_tokens=batch,
            pool_batches=1,
            scores=False,
            tolerant=True,  # as the build is
            progress=tick,
        )

    assert spec.window is not None  # it is resolved
    with closing(chunks(spec.window)) as first:
        next(first, None)
    batch = batch_size(spec.window) if batch_tokens is None else batch_tokens
    if (time.perf_counter() - began) / max(1, passed) * batch > SAMPLE_SECONDS:
        batch = spec.window
    started, passed = time.perf_counter(), 0
    seconds = 0.0
    with closing(chunks(batch)) as sampled:
        for chunk in sampled:
            if chunk.bad is None:
                keys.append(chunk.key)
                values.append(chunk.tokens)
            seconds = time.perf_counter() - started
            if time.perf_counter() - began > SAMPLE_SECONDS:
                break
    scored = sum(len(document.tokens) for document in documents)
    read = sum(_read(len(document.tokens), spec) for document in documents)
    return keys, values, seconds / max(1, passed) * scored / max(1, read)


def _read(length: int, spec: KeySpec) -> int:
    """Positions that the model reads for a document of so many tokens: windows overlap by the least context."""
    assert spec.window is not None
    assert spec.context is not None
    return sum(window.stop - window.start for window in plan(length, spec.window, spec.context))


def _passes(lengths: Counter[int], spec: KeySpec, wanted: int, per_token: float) -> dict[str, float]:
    """Seconds of the two times that the model runs: over the sample that the index is learnt from, and over all.

    lengths: of the documents, in tokens. wanted: keys of the sample. per_token: seconds a position that is read.
    """
    assert spec.context is not None
    share = share_of(wanted, sum(length * count for length, count in lengths.items()))
    sampled = everything = 0.0
    for length, count in lengths.items():
        if length:
            cut = max(SAMPLE_CUT, int(share * length)) if length > SAMPLE_CUT else length
            lead = spec.context if cut < length else 0
            everything += count * _read(length, spec)
            sampled += count * share * length / cut * _read(lead + cut, spec)
    return {"sample_seconds": per_token * sampled, "dump_seconds": per_token * everything}


def _truth_seconds(sample: Any, total: int, threads: int | None) -> float:
    """Seconds of comparing all keys with those that recall is measured with."""
    keys = sample[:TRUTH_KEYS]
    if not len(keys):
        return 0.0
    truth = Truth.choose(keys, np.arange(len(keys), dtype=np.int64), total, "l2")
    started = time.perf_counter()
    truth.nearest(keys, 0, threads)
    return (time.perf_counter() - started) * total / len(keys)


def of_store(store: Datastore, index: dict[str, Any], threads: int | None) -> dict[str, Any]:
    """The same for a store that has its keys."""
    n = len(store)
    info = store.info()
    if info["entries_with_keys"] < n:
        raise ValueError(
            f"the estimate samples raw keys, and {store.path} keeps none of its indexed entries; a build (in commands "
            f"one without --dry-run) adds the other {info['entries_with_keys']:,} to the index"
        )
    size = min(n, SAMPLE_ENTRIES)
    keys, values = store.keys(0, size), store.values(0, size)
    raw = int(info["sections"].get("Keys", 0))  # as they lie on disk, float16 or float32
    found, listed = _index(keys, values, n, index, threads)
    disk = int(np.dtype(info["value_dtype"]).itemsize * n + listed)
    return {
        "tokens": n,
        "documents": info["documents"],
        "sample_tokens": size,
        "dump_seconds": 0.0,
        "seconds": found["build_seconds"],
        "disk_bytes": disk + (0 if info["keep_keys"] is None else raw),
        "peak_disk_bytes": disk + raw,
        "free_bytes": free_bytes(Path(store.path)),
        **found,
    }


def _index(keys: Any, values: Any, n: int, index: dict[str, Any], threads: int | None) -> tuple[dict[str, Any], float]:
    """Builds an index of the sample and scales it to n entries: seconds, memory and lists; and bytes of the index."""
    d = keys.shape[1]
    nlist, trained_on = _core.plan_index(n, d, index["nlist"])
    seconds, listed = 0.0, 0.0
    if len(keys):
        with (
            tempfile.TemporaryDirectory(prefix="knnlm-") as folder,
            Datastore.create(Path(folder) / "sample", dim=d, keep_keys="float32") as store,
        ):
            store.add(keys, values)
            few = None if index["nlist"] is None else max(1, min(index["nlist"], len(keys) // KEYS_PER_LIST))
            stages = _build_stages(store, nlist=few, code=index["code"], threads=threads)
            info = store.info()
        seconds = _scaled(stages, max(1.0, n / len(keys)), max(1.0, nlist / info["nlist"]))
        for name, size in info["sections"].items():
            if name in CODEBOOK:
                listed += size * nlist / info["nlist"]
            elif name == CODED:
                listed += size * math.ceil(nlist / CODED_BLOCK) / math.ceil(info["nlist"] / CODED_BLOCK)
            elif name in FIXED:
                listed += size
            elif name not in ("Keys", "Values", "Documents", "Names", "Metadata", "Checksums"):
                listed += size * n / len(keys)
    # The sample is read in parts that are then joined, and k-means copies what it starts from.
    training = 2 * trained_on * d * 4 + 3 * nlist * d * 4
    memory = int(process_bytes() + training + 4 * n + BUFFERS)
    return {"build_seconds": seconds, "memory_bytes": memory, "nlist": nlist}, listed


def _build_stages(store: Datastore, **options: Any) -> dict[str, float]:
    """Builds the index; seconds of each stage."""
    spent: dict[str, float] = {}
    current, since = "start", time.perf_counter()

    def note(stage: str, _: int, __: int) -> None:
        nonlocal current, since
        now = time.perf_counter()
        spent[current] = spent.get(current, 0.0) + now - since
        current, since = stage, now

    store.build(progress=note, **options)
    note("end", 0, 0)
    return spent


def _scaled(stages: dict[str, float], entries: float, lists: float) -> float:
    """Seconds of a build with so many times the entries and lists.

    Lists are learned from a number of keys each. Every entry is compared with centroids of two levels, by which it
    takes somewhat longer (measured: all entries n^1.2, `benches/record/growth-*.md`). Recall is measured with as many
    queries, which mostly takes what their searches of a small part take.
    """
    learn = sum(stages.get(name, 0.0) for name in LEARN)
    measure = stages.get(MEASURE, 0.0)
    encode = sum(stages.values()) - learn - measure
    return learn * lists + encode * entries * math.pow(lists, 1 / 3) + measure * math.pow(entries, 1 / 4)


def free_bytes(output: Path) -> int:
    """Bytes free on the disk that will hold `output`, which need not exist yet."""
    place = output.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def process_bytes() -> int:
    """The most memory that this process has used: interpreter, libraries, and the model with its activations."""
    try:
        import resource
    except ImportError:  # Windows
        return 512 << 20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _some_of(documents: Iterable[TokenDocument]) -> list[TokenDocument]:
    """Documents from all over a text, in random order and cut (reservoir sampling); the text is read to its end."""
    rng = np.random.default_rng(0)
    kept: list[TokenDocument] = []
    for number, document in enumerate(documents):
        place = number if number < SAMPLE_DOCUMENTS else int(rng.integers(number + 1))
        if place < SAMPLE_DOCUMENTS:
            short = TokenDocument(document.name, document.tokens[:SAMPLE_TOKENS])
            kept[place : place + 1] = [short]
    return [kept[i] for i in rng.permutation(len(kept))]
