"""A store of many synthetic entries under a memory cap: minutes and peak memory of every phase, recall and latency.

    sudo systemd-run --scope -p MemoryMax=4G -p MemorySwapMax=0 python benches/fifty_million.py --folder /some/disk
    python benches/fifty_million.py --entries 200000 --folder WORK      # a small one, to try the script

Where there is no systemd, a memory cgroup of one's own does the same (version 1; version 2 has memory.max):

    mkdir G && echo 4G > G/memory.limit_in_bytes && (echo $BASHPID > G/cgroup.procs; exec python benches/…)

Entries are drawn around centres that are themselves clustered, and differ from them as the keys of a language model do
from the centre of their list: the variances of the directions fall as `(1 + i/16)**-1.7` (participation ratio 57, 63 %
in the first 32; residuals of WikiText-2 keys to 512 centres: 59 and 62 %). The exact answer of the queries is gathered
while the entries are written, so that the check needs no second pass. Codes only: raw keys are never on disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import render.fifty_million as render
import tables
from engine_peers import private_bytes
from growing_keys import Exact
from larger_than_memory import forget

from knnlm import Datastore
from knnlm._core import plan_index

BATCH = 50_000
K = 100


def private_megabytes() -> float:
    """Resident memory of this process that is not mapped from files, MB."""
    return private_bytes() / 1e6


def cgroup_megabytes() -> dict[str, float]:
    """Limit and peak of this process's memory cgroup, page cache included, MB; empty where it cannot be read."""
    places = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, controllers, path in places:
        names = ("memory.limit_in_bytes", "memory.max_usage_in_bytes") if controllers == "memory" else ()
        names = ("memory.max", "memory.peak") if controllers == "" else names
        root = Path("/sys/fs/cgroup") / controllers
        files = [root / path.lstrip("/") / name for name in names]
        if files and all(file.exists() for file in files):
            limit, peak = (file.read_text().strip() for file in files)
            return {} if limit == "max" else {"limit_MB": int(limit) / 2**20, "peak_MB": int(peak) / 2**20}
    return {}


class Source:
    """Synthetic entries, the same for the same number of the batch."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        coarse = rng.standard_normal((64, dim))
        self.centres = (coarse[rng.integers(0, 64, 4096)] + 0.6 * rng.standard_normal((4096, dim))).astype(np.float32)
        spread = (1 + np.arange(dim) / 16) ** (-1.7 / 2)
        self.spread = (0.35 * spread * np.sqrt(dim / (spread**2).sum())).astype(np.float32)
        self.dim, self.seed = dim, seed

    def batch(self, number: int, count: int) -> np.ndarray[Any, Any]:
        """Keys `(count, dim)`."""
        rng = np.random.default_rng((self.seed, number))
        noise = rng.standard_normal((count, self.dim), np.float32)
        noise *= self.spread
        noise += self.centres[rng.integers(0, 4096, count)]
        return noise


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=50_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--nlist", type=int, default=None)
    parser.add_argument("--code", choices=("small", "flat"), default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--nprobe", type=int, default=None)
    parser.add_argument("--out", type=Path, help="folder for the record, such as benches/record")
    parser.add_argument("--compact", action="store_true", help="then compact it, and search again")
    options = parser.parse_args(arguments)
    path = options.folder / "fifty-million-store"
    shutil.rmtree(path, ignore_errors=True)
    source = Source(options.dim)
    exact = Exact(source.batch(10**9, options.queries), K)
    phases: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        started, cpu = time.perf_counter(), time.process_time()
        peak, ended = private_megabytes(), threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.05):
                peak = max(peak, private_megabytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            work()
        finally:
            ended.set()
            watcher.join()
        phases[name] = {
            "minutes": round((time.perf_counter() - started) / 60, 2),
            "cpu_minutes": round((time.process_time() - cpu) / 60, 2),
            "private_MB": round(peak),
        }
        print(json.dumps({name: phases[name]}), flush=True)

    def batches(first: int, last: int) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        for number, start in enumerate(range(first, last, BATCH)):
            keys = source.batch(first + number, min(BATCH, last - start))
            exact.see(keys, start)
            yield start, keys

    store = Datastore.create(path, dim=options.dim)

    def learn() -> None:
        wanted = plan_index(options.entries, options.dim, options.nlist)[1]
        # Under the cap, the sample and the training share the memory with the codes.
        wanted = min(wanted, options.entries, (600 << 20) // (4 * options.dim))
        sample = np.concatenate([source.batch(i, BATCH)[: -(-wanted // 20)].copy() for i in range(20)])[:wanted]
        store.train(
            sample,
            expected=options.entries,
            nlist=options.nlist,
            code=options.code,
            threads=options.threads,
        )

    def fill(first: int, last: int, commit: int) -> None:
        for number, (start, keys) in enumerate(batches(first, last)):
            values = (np.arange(start, start + len(keys)) % 50_000).astype(np.uint32)
            store.add(keys, values, document=f"document {start}")
            if number % commit == commit - 1:
                store.commit()
        store.commit()

    main_part = options.entries * 98 // 100
    timed("learn", learn)
    timed("build", lambda: fill(0, main_part, 20))
    timed("append 2 %", lambda: fill(main_part, options.entries, 5))
    problems: list[str] = []
    timed("verify", lambda: problems.extend(store.verify()))
    answers: dict[str, dict[str, float]] = {}

    def search() -> dict[str, float]:
        latencies, hits = [], 0
        for query, truth in zip(exact.queries, exact.ids, strict=True):
            started = time.perf_counter()
            found = store.search(query, K, nprobe=options.nprobe)
            latencies.append(1000 * (time.perf_counter() - started))
            hits += len(np.intersect1d(found.ids, truth))
        return {
            "recall@100": hits / sum(len(truth) for truth in exact.ids),
            "p50_ms": round(float(np.percentile(latencies, 50)), 3),
            "p99_ms": round(float(np.percentile(latencies, 99)), 3),
        }

    def result() -> dict[str, Any]:
        return {
            "entries": len(store),
            "dim": options.dim,
            "queries": options.queries,
            "bytes_per_entry": store.info()["bytes_per_entry"],
            "search": answers,
            "problems": problems,
            "phases": phases,
            "minutes": round(sum(phase["minutes"] for phase in phases.values()), 2),
            "cgroup": cgroup_megabytes(),
            "peak_rss_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    forget(path)
    timed("search, page cache dropped", lambda: answers.update({"page cache dropped before": search()}))
    timed("search again", lambda: answers.update({"again": search()}))
    if options.compact:
        timed("compact", lambda: store.compact())
        timed("search, compacted", lambda: answers.update({"compacted": search()}))
    found = result()
    store.close()
    if not options.out:
        print(json.dumps(found, indent=2))
        return 0
    record = tables.header() | found
    print(tables.write(options.out, "fifty-million", render.title(record), record, render.sections(record)).read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
