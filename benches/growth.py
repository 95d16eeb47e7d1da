"""How do latency (at recall 0.90 or more) and build time grow with the number of entries? A plot and fitted exponents.

    python benches/growth.py --set SETS/wikitext2 --work WORK
    python benches/growth.py --set SETS/wikitext2 --work WORK --dim 768 --sizes 10000000

Entries are real keys resampled with noise (growing_keys.py), made batch by batch and never on disk; queries are real
held-out ones, k = 1024; the exact answer is gathered while entries pass. The store is trained on a sample and encodes
entries as they come. Processor seconds are given beside wall time; `--keep` leaves the largest store and its answers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import engine_sets
import numpy as np
import render.growth as render
import tables
from columns import log
from engine_faiss import Clock
from engine_peers import private_bytes
from growing_keys import BATCH, Exact, Source, doubled

from knnlm import Datastore, _core
from knnlm._core import plan_index
from knnlm.store.recall_sample import Truth

GOAL = 0.90
ASKED = (0.8, 0.85, 0.88, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)


def made(path: Path, source: Source, entries: int, exact: Exact, threads: int) -> tuple[Datastore, dict[str, Any]]:
    """Trains, adds and commits; seconds of training, adding and calibrating, without those of making entries."""
    shutil.rmtree(path, ignore_errors=True)
    held = private_bytes()  # the keys that entries are made from
    store = Datastore.create(path, dim=source.dim)
    wanted = min(entries, plan_index(entries, source.dim, None)[1])
    count = -(-entries // BATCH)  # of batches
    numbers = np.unique(np.linspace(0, count - 1, 16).astype(int))
    each = -(-wanted // len(numbers))
    parts = [source.batch(i, min(BATCH, entries - i * BATCH))[:each].copy() for i in numbers]
    ids = np.concatenate([i * BATCH + np.arange(len(part)) for i, part in zip(numbers, parts, strict=True)])[:wanted]
    sample = np.concatenate(parts)[:wanted]
    del parts
    truth = Truth.choose(sample, ids, entries, "l2")
    peak = [private_bytes()]

    def watch(*_: object) -> None:
        peak[0] = max(peak[0], private_bytes())

    clock = Clock()
    store.train(sample, expected=entries, threads=threads, progress=watch)
    trained = clock.read()
    del sample
    added, compared = np.zeros(2), np.zeros(2)
    for start, keys in source.batches(entries):
        exact.see(keys, start)
        clock = Clock()
        truth = truth.merged(truth.nearest(keys, start, threads))
        compared += clock.read()
        clock = Clock()
        store.add(keys, (np.arange(start, start + len(keys)) % 50_000).astype(np.uint32))
        if start // BATCH % 16 == 15:
            store.commit()
        added += clock.read()
        watch()
    clock = Clock()
    store.commit()
    store.compact()
    added += clock.read()
    clock = Clock()
    _core.calibrate(store._core, truth.queries, truth.own, truth.ids, threads=threads, progress=None)
    compared += clock.read()
    return store, {
        "train_seconds": trained[0],
        "train_cpu_seconds": trained[1],
        "add_seconds": added[0],
        "add_cpu_seconds": added[1],
        "calibrate_cpu_seconds": compared[1],
        "peak_private_MB": (peak[0] - held) / 1e6,
    }


def measured(store: Datastore, exact: Exact, k: int) -> dict[str, Any]:
    """The first asked recall that gives the goal, its latency one by one and its queries a second at once."""
    queries = exact.queries
    out: dict[str, Any] = {}
    for asked in ASKED:
        try:
            found = store.search(queries, k, recall=asked, threads=1)
        except ValueError:  # more than its codes reach
            break
        out = {"asked": asked, "recall": exact.recall(found.ids)}
        if out["recall"] >= GOAL:
            break
    if out.get("recall", 0.0) < GOAL:
        raise SystemExit(
            f"expected a setting with recall {GOAL} or more, found {out or 'none'}: give fewer entries or another code"
        )
    spent = []
    for _ in range(3):
        for query in queries:
            started = time.perf_counter()
            store.search(query, k, recall=out["asked"], threads=1)
            spent.append(time.perf_counter() - started)
    batches = []
    for _ in range(5):
        started = time.perf_counter()
        store.search(queries, k, recall=out["asked"], threads=1)
        batches.append(len(queries) / (time.perf_counter() - started))
    return out | {
        "p50_us": 1e6 * float(np.median(spent)),
        "p99_us": 1e6 * float(np.percentile(spent, 99)),
        "batch_queries_a_second": float(np.median(batches)),
    }


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0]) if len(sizes) > 1 else float("nan")


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Latency and processor time of the build against the number of entries."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n = [r["entries"] for r in rows]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for name, key in (("single query, p50", "p50_us"), ("single query, p99", "p99_us")):
        axes[0].plot(n, [r[key] for r in rows], "o-", label=f"{name}: n^{exponent(n, [r[key] for r in rows]):.2f}")
    each = [1e6 / r["batch_queries_a_second"] for r in rows]
    axes[0].plot(n, each, "o-", label=f"in a batch: n^{exponent(n, each):.2f}")
    axes[0].set_ylabel(f"µs a query at recall ≥ {GOAL}")
    for name in ("train", "add"):
        values = [r[f"{name}_cpu_seconds"] for r in rows]
        axes[1].plot(n, values, "o-", label=f"{name}: n^{exponent(n, values):.2f}")
    axes[1].set_ylabel("processor seconds of the build")
    for ax in axes:
        ax.set(xscale="log", yscale="log", xlabel="entries")
        ax.grid(True, which="both", alpha=0.25)
        ax.legend(frameon=False)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder of a key set (engine_sets.py)")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=tables.ROOT / "benches" / "record")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7])
    parser.add_argument("--dim", type=int, help="by default that of the keys; twice that joins two tokens")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2, help="of the build; searches take one")
    parser.add_argument("--keep", action="store_true", help="leave the last store in WORK, for larger_than_memory.py")
    a = parser.parse_args(arguments)
    key_set = engine_sets.load(a.set)
    dim = a.dim or key_set.keys.shape[1]
    source = Source(key_set.keys, dim)
    held = doubled(key_set.queries[key_set.half :], dim)
    queries = np.ascontiguousarray(held[np.linspace(0, len(held) - 1, min(a.queries, len(held))).astype(int)])
    a.work.mkdir(parents=True, exist_ok=True)
    path = a.work / f"growth-{key_set.name}-{dim}"
    rows = []
    for entries in a.sizes:
        exact = Exact(queries, min(a.k, entries))
        store, costs = made(path, source, entries, exact, a.threads)
        info = store.info()
        row = {"entries": entries, "nlist": info["nlist"], "bytes_per_entry": info["search_bytes_per_entry"]}
        rows.append(row | costs | measured(store, exact, min(a.k, entries)))
        store.close()
        log(json.dumps(rows[-1]))
    if a.keep:
        ids = np.stack([i[np.argsort(d)] for i, d in zip(exact.ids, exact.distances, strict=True)])
        np.savez(path / "answers.npz", queries=queries, ids=ids)
    else:
        shutil.rmtree(path)
    name = f"growth-{key_set.name}-{dim}"
    n = [r["entries"] for r in rows]
    fits = {c: exponent(n, [r[c] for r in rows]) for c in ("p50_us", "p99_us", "train_cpu_seconds", "add_cpu_seconds")}
    fits["batch_seconds"] = exponent(n, [1 / r["batch_queries_a_second"] for r in rows])
    about = {"set": key_set.name, "dim": dim, "goal": GOAL, "queries": len(queries), "k": a.k, "threads": a.threads}
    record = tables.header() | about | {"rows": rows, "exponents": fits}
    a.out.mkdir(parents=True, exist_ok=True)
    if len(rows) > 1:
        plot(rows, a.out / f"{name}.svg")
    print(tables.write(a.out, name, render.title(record), record, render.sections(record)).read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
