"""How much recall@k for how many queries a second, and how much of the store is scanned for it, beside FAISS IVF-PQ.

    python benches/recall.py --keys keys.npy --queries queries.npy --work FOLDER --out benches/record/recall-NAME.md
    python benches/recall.py … --metric ip --norm-spread 10

Both indexes are built in this process from the same keys, and timed in turn (ours, FAISS, ours, …; medians), with the
same number of threads. Ground truth is an exact scan, checked on some queries against float64 NumPy. Recall counts ids.
The FAISS index is the one of the published kNN-LM systems, `IVF4096,PQ64`, with at least 64 training points a list.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from list_reader import Lists
from tables import machine

import knnlm

K = 1024


def spread_norms(keys: np.ndarray, factor: float, seed: int) -> np.ndarray:
    """Scale each key by a factor drawn log-uniformly from [1, factor]."""
    scale = np.exp(np.random.default_rng(seed).uniform(0, np.log(factor), len(keys)))
    return (keys * scale[:, None]).astype(np.float16)


def brute_force(keys: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    """Scores of all keys in float64, smallest best."""
    keys, query = keys.astype(np.float64), query.astype(np.float64)
    return np.square(keys - query).sum(1) if metric == "l2" else -(keys @ query)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean share of the true ids that were found."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)]))


def per_second(systems: dict[str, Callable[[], Any]], queries: int, repeats: int) -> dict[str, float]:
    """Median queries a second of each system, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for run in systems.values():
        run()
    for _ in range(repeats):
        for name, run in systems.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: queries / statistics.median(s) for name, s in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--metric", choices=("l2", "ip"), default="l2")
    parser.add_argument("--norm-spread", type=float, default=1.0)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--count", type=int, default=500, help="queries, evenly spaced")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--nprobe", type=int, nargs="*", default=[16, 32, 64, 128, 256])
    parser.add_argument("--faiss-nprobe", type=int, nargs="*", default=[8, 16, 32, 64, 128])
    a = parser.parse_args()
    import faiss

    faiss.omp_set_num_threads(a.threads)
    keys = np.load(a.keys, mmap_mode="r")[: a.entries]
    if a.norm_spread > 1:
        keys = spread_norms(np.asarray(keys), a.norm_spread, 0)
    all_queries = np.load(a.queries)
    queries = all_queries[np.linspace(0, len(all_queries) - 1, a.count).astype(int)].astype(np.float32)
    n, d = keys.shape
    lines = [f"# recall@{K}, {n:,} × {d} keys, {a.metric}, norms spread {a.norm_spread:g}-fold", ""]

    path = a.work / f"recall-{a.metric}-{n}.knnlm"
    started = time.perf_counter()
    store = knnlm.Datastore.create(path, dim=d, metric=a.metric, keep_keys="float16", overwrite=True)
    for at in range(0, n, 65_536):
        store.add(keys[at : at + 65_536], np.zeros(min(65_536, n - at), np.uint32))
    store.commit()
    added = time.perf_counter() - started
    started = time.perf_counter()
    store.build(seed=0, threads=a.threads)
    built = time.perf_counter() - started
    info = store.info()

    started = time.perf_counter()
    truth = store.search(queries, k=K, exact=True)
    exact_seconds = time.perf_counter() - started
    for i in (0, a.count // 2, a.count - 1):
        scores = brute_force(np.asarray(keys), queries[i], a.metric)
        worst = np.partition(scores, K - 1)[K - 1]
        sign = 1 if a.metric == "l2" else -1
        np.testing.assert_allclose(sign * truth.distances[i].astype(np.float64), scores[truth.ids[i]], rtol=1e-3)
        assert (scores[truth.ids[i]] <= worst + 1e-3 * abs(worst)).all(), "the exact scan missed a neighbour"

    started = time.perf_counter()
    metric = faiss.METRIC_L2 if a.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    faiss.omp_set_num_threads(a.threads)
    peer = faiss.index_factory(d, "IVF4096,PQ64", metric)
    sample = np.random.default_rng(0).choice(n, min(n, 64 * 4096), replace=False)
    peer.train(np.asarray(keys[np.sort(sample)], np.float32))
    for at in range(0, n, 65_536):
        peer.add(np.asarray(keys[at : at + 65_536], np.float32))
    peer_built = time.perf_counter() - started

    lists = Lists(path)
    rows: list[dict[str, Any]] = []
    default = info["default_nprobe"]
    for nprobe in sorted({*a.nprobe, default}):
        for rerank in ("none", "keys"):
            found = store.search(queries, k=K, nprobe=nprobe, rerank=rerank, threads=a.threads).ids
            rows.append(
                {
                    "system": f"knnlm nlist {info['nlist']}, nprobe {nprobe}{' (default)' * (nprobe == default)}, "
                    f"rerank {rerank}",
                    "code_bytes": info["code"]["bytes"],
                    "recall": recall(found, truth.ids),
                    "scanned": lists.scanned(queries, nprobe) / n,
                    "run": lambda p=nprobe, r=rerank: store.search(queries, k=K, nprobe=p, rerank=r, threads=a.threads),
                }
            )
    parameters = faiss.ParameterSpace()
    for nprobe in a.faiss_nprobe:

        def run(p: int = nprobe) -> Any:
            parameters.set_index_parameter(peer, "nprobe", p)
            return peer.search(queries, K)[1]

        found = run()
        stats = faiss.cvar.indexIVF_stats
        stats.reset()
        run()
        rows.append(
            {
                "system": f"FAISS IVF4096,PQ64, nprobe {nprobe}",
                "code_bytes": 64,
                "recall": recall(found, truth.ids),
                "scanned": stats.ndis / len(queries) / n,
                "run": run,
            }
        )
    speeds = per_second({row["system"]: row.pop("run") for row in rows}, len(queries), a.repeats)
    lines += ["| system | code bytes | scanned | recall@1024 | queries/s |", "|---|---|---|---|---|"]
    for row in rows:
        row["queries_per_second"] = speeds[row["system"]]
        lines.append(
            f"| {row['system']} | {row['code_bytes']} | {100 * row['scanned']:.2f} % | {row['recall']:.4f} | "
            f"{row['queries_per_second']:,.0f} |"
        )
    lines += [
        "",
        f"{len(queries)} queries in one batch, {a.threads} thread(s), median of {a.repeats} interleaved runs. "
        f"knnlm: added in {added:.0f} s, built in {built:.0f} s; FAISS trained and added in {peer_built:.0f} s. "
        f"Exact scan (all threads): {len(queries) / exact_seconds:,.0f} queries/s. {json.dumps(machine())}",
        f"Search touches {info['search_bytes_per_entry']:.1f} bytes an entry (codes, factors, ids, centroids); "
        f"FAISS: {faiss.serialize_index(peer).nbytes / n:.1f}.",
    ]
    print("\n".join(lines))
    if a.out:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        a.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
