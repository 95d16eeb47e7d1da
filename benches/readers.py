"""Four reader processes search without pause while a writer appends, deletes, replaces and compacts.

    python benches/readers.py --minutes 5 --out benches/record

Every answer must be one of a committed state: each entry's value tells the generation range in which it existed. Prints
the readers' latencies with and without the writer, and fails on any error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import render.readers as render
import tables

from knnlm import Datastore

DIM = 64
DOCUMENT = 500


def keys_of(document: int) -> np.ndarray[Any, Any]:
    """Keys `(DOCUMENT, DIM)` of a document, the same in every process."""
    rng = np.random.default_rng(document)
    return (rng.standard_normal(DIM) + 0.3 * rng.standard_normal((DOCUMENT, DIM))).astype(np.float32)


def reader(path: str, stop: Any, results: Any, seed: int) -> None:
    """Search and refresh until told to stop; check each answer against the documents of its own generation."""
    rng = np.random.default_rng(seed)
    latencies: list[float] = []
    generations: set[int] = set()
    try:
        store = Datastore.open(path)
        while not stop.is_set():
            if rng.random() < 0.1:
                store.refresh()
            present = {int(str(d.name)): (d.start, d.stop) for d in store.documents()}
            generations.add(store.generation)
            for _ in range(20):
                wanted = int(rng.choice(list(present)))
                started = time.perf_counter()
                found = store.search(keys_of(wanted)[:1], 20, return_documents=True)
                latencies.append(time.perf_counter() - started)
                # The value of an entry is the number of its document: nothing else may ever come back.
                for value, id_ in zip(found.values[0], found.ids[0], strict=True):
                    if id_ >= 0:
                        start, end = present[int(value)]
                        assert start <= id_ < end, (int(value), int(id_), start, end)
                assert (found.values[0] == wanted).any(), f"document {wanted} does not find itself"
    except BaseException as error:
        results.put({"error": repr(error)})
        return
    results.put({"latencies": latencies, "generations": len(generations)})


def write(path: str, stop: Any, results: Any, first: int) -> None:
    """Append, delete, replace and compact without pause."""
    rng = np.random.default_rng(99)
    done = {"append": 0, "delete": 0, "replace": 0, "compact": 0}
    try:
        with Datastore.open(path) as store:
            number = first
            while not stop.is_set():
                for _ in range(3):
                    store.add(keys_of(number), np.full(DOCUMENT, number), document=str(number))
                    number += 1
                store.build()
                done["append"] += 3
                names = [str(d.name) for d in store.documents()]
                store.delete([str(n) for n in rng.choice(names, 3, replace=False)])
                done["delete"] += 3
                changed = int(rng.choice([int(str(d.name)) for d in store.documents()]))
                store.replace(keys_of(changed), np.full(DOCUMENT, changed), str(changed))
                done["replace"] += 1
                if done["append"] % 15 == 0:
                    store.compact()
                    done["compact"] += 1
    except BaseException as error:
        results.put({"error": repr(error)})
        return
    results.put({"writer": done})


def phase(path: str, seconds: float, readers: int, with_writer: bool, first: int) -> dict[str, Any]:
    """Run readers, and perhaps the writer, for some seconds."""
    context = multiprocessing.get_context("spawn")
    stop, results = context.Event(), context.Queue()
    work = [context.Process(target=reader, args=(path, stop, results, i)) for i in range(readers)]
    if with_writer:
        work.append(context.Process(target=write, args=(path, stop, results, first)))
    for process in work:
        process.start()
    time.sleep(seconds)
    stop.set()
    found = [results.get(timeout=120) for _ in work]
    for process in work:
        process.join()
    errors = [f["error"] for f in found if "error" in f]
    if errors:
        raise SystemExit(f"errors: {errors}")
    latencies = np.concatenate([f["latencies"] for f in found if "latencies" in f])
    out: dict[str, Any] = {
        "searches": len(latencies),
        "p50_ms": 1000 * float(np.percentile(latencies, 50)),
        "p99_ms": 1000 * float(np.percentile(latencies, 99)),
        "generations_seen": max(f["generations"] for f in found if "generations" in f),
    }
    return out | next((f for f in found if "writer" in f), {})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--out", type=Path, help="folder for the record, such as benches/record")
    parser.add_argument("--keep-keys", choices=("float16", "float32"), default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "store")
        with Datastore.create(path, dim=DIM, keep_keys=options.keep_keys) as store:
            for number in range(options.documents):
                store.add(keys_of(number), np.full(DOCUMENT, number), document=str(number))
            store.build()
        alone = phase(path, min(30.0, 15 * options.minutes), options.readers, False, options.documents)
        beside = phase(path, 60 * options.minutes, options.readers, True, options.documents)
        with Datastore.open(path) as store:
            problems = store.verify()
        found = {"alone": alone, "beside a writer": beside, "problems": problems}
        print(record(options, found).read_text() if options.out else json.dumps(found, indent=2))
        if problems:
            raise SystemExit(1)


def record(options: argparse.Namespace, found: dict[str, Any]) -> Path:
    """Writes the tables of a run, as JSON and Markdown."""
    names = {"readers": options.readers, "documents": options.documents, "minutes": options.minutes}
    content = tables.header() | found | {"about": names | {"entries": DOCUMENT}}
    return tables.write(options.out, "readers", render.title(content), content, render.sections(content))


if __name__ == "__main__":
    main()
