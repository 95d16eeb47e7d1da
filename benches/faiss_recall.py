"""Recall@k and queries a second of knnlm beside FAISS IVF4096,PQ64, over the same keys, one thread.

    python benches/faiss_recall.py --keys keys.npy --queries queries.npy --work FOLDER [--metric ip] [--spread 10]

Keys: (n, d) float16 or float32; queries: (q, d), held out. `--spread 10` multiplies every key by a factor drawn
log-uniformly so that norms spread tenfold. Times are CPU seconds of the process: a busy machine changes them less than
the clock, and both sides are measured alike. Codes are 64 bytes a key on both sides; nothing is re-ranked.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import faiss
import numpy as np

import knnlm


def spread_norms(keys: np.ndarray, spread: float, seed: int) -> np.ndarray:
    """Keys times factors from 1/√spread to √spread, log-uniform. (n, d) → (n, d) float16."""
    rng = np.random.default_rng(seed)
    factor = (spread ** rng.uniform(-0.5, 0.5, len(keys))).astype(np.float32)[:, None]
    return (keys.astype(np.float32) * factor).astype(np.float16)


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean share of the exact ids that were found. Both (q, k)."""
    return float(np.mean([len(np.intersect1d(f, e)) / len(e) for f, e in zip(found, exact, strict=True)]))


def queries_per_second(search: Callable[[], object], queries: int, repeats: int = 3) -> float:
    """Queries divided by the least CPU time of a few runs."""
    least = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        search()
        least = min(least, time.process_time() - start)
    return queries / least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the store, about 900 bytes a key")
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--q", type=int, default=500)
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--metric", choices=("l2", "ip"), default="l2")
    parser.add_argument("--spread", type=float, default=1.0)
    parser.add_argument("--train", type=int, default=160_000, help="keys that FAISS is trained on")
    parser.add_argument("--no-faiss", action="store_true")
    arguments = parser.parse_args()

    keys = np.load(arguments.keys, mmap_mode="r")[: arguments.n]
    every = np.load(arguments.queries)
    rng = np.random.default_rng(1)
    queries = every[rng.choice(len(every), min(arguments.q, len(every)), replace=False)].astype(np.float32)
    if arguments.spread != 1.0:
        keys = spread_norms(keys, arguments.spread, seed=2)
    n, d = keys.shape
    store = knnlm.Datastore.create(
        arguments.work / "store", dim=d, metric=arguments.metric, keep_keys="float16", overwrite=True
    )
    for start in range(0, n, 100_000):
        part = np.ascontiguousarray(keys[start : start + 100_000])
        store.add(part, np.zeros(len(part), np.uint32), document="keys")
    wall, cpu = time.time(), time.process_time()
    store.build()
    print(f"knnlm: built {n:,} × {d} in {time.time() - wall:.0f} s, {time.process_time() - cpu:.0f} CPU s")
    start = time.process_time()
    exact = store.search(queries, arguments.k, exact=True).ids
    print(f"knnlm: exact scan of {len(queries)} queries: {time.process_time() - start:.2f} CPU s")

    print("index | nprobe | recall | q/s batch | q/s single")
    single = queries[:100]
    for nprobe in (5, 10, 20, None, 80, 160, 320):
        found = store.search(queries, arguments.k, nprobe=nprobe, rerank="none", threads=1)
        batch = queries_per_second(
            lambda nprobe=nprobe: store.search(queries, arguments.k, nprobe=nprobe, rerank="none", threads=1),
            len(queries),
        )
        alone = queries_per_second(
            lambda nprobe=nprobe: [
                store.search(q[None], arguments.k, nprobe=nprobe, rerank="none", threads=1) for q in single
            ],
            len(single),
            repeats=1,
        )
        name = "default" if nprobe is None else str(nprobe)
        print(f"knnlm | {name} | {recall(found.ids, exact):.4f} | {batch:,.0f} | {alone:,.0f}", flush=True)
    if arguments.no_faiss:
        return

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    kind = faiss.METRIC_L2 if arguments.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(d, "IVF4096,PQ64", kind)
    wall, cpu = time.time(), time.process_time()
    sample = np.sort(rng.choice(n, min(n, arguments.train), replace=False))
    index.train(keys[sample].astype(np.float32))
    for start in range(0, n, 100_000):
        index.add(keys[start : start + 100_000].astype(np.float32))
    print(f"FAISS: built in {time.time() - wall:.0f} s, {time.process_time() - cpu:.0f} CPU s")
    faiss.omp_set_num_threads(1)
    for nprobe in (8, 32, 64, 128):
        faiss.extract_index_ivf(index).nprobe = nprobe
        found = index.search(queries, arguments.k)[1]
        batch = queries_per_second(lambda: index.search(queries, arguments.k), len(queries), repeats=2)
        alone = queries_per_second(lambda: [index.search(q[None], arguments.k) for q in single], len(single), repeats=1)
        print(f"FAISS | {nprobe} | {recall(found, exact):.4f} | {batch:,.0f} | {alone:,.0f}", flush=True)


if __name__ == "__main__":
    main()
