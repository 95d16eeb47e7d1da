"""How much recall@k for how many queries a second, and how much of the store is scanned for it, beside FAISS IVF-PQ.

    python benches/recall.py --keys keys.npy --queries queries.npy --work FOLDER --out benches/record/recall-l2.md
    python benches/recall.py … --metric ip --norm-spread 10 --out benches/record/recall-ip.md

Keys: (n, d) float16 or float32; queries: (q, d), held out. `--norm-spread 10` multiplies every key by a factor drawn
log-uniformly from 1/√10 to √10. First `exact=True` must equal brute force in float64 NumPy over `--check` keys: ids up
to ties, distances to 1e-3. Then both indexes are made from the same keys and timed in turn (ours, FAISS, ours, …) with
`--threads` each, by default one. The FAISS index is that of the published kNN-LM systems, `IVF4096,PQ64`; each of its
rows is also set beside the least nprobe of ours, codes only, that reaches its recall. Recall counts ids. `--clock cpu`
(the default) divides by CPU seconds of the process, which a busy machine changes less than the clock. `--reuse` takes
the indexes of the last run from the work folder.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # FAISS' threads would spin and be counted

import numpy as np
import tables
from list_reader import Lists
from render import recall as render

import knnlm

BATCH = 65_536  # keys added at a time
SINGLE = 100  # queries timed one at a time
NEAR = 1e-3  # relative error allowed of a distance
TIE = 1e-5  # scores this near, relative to |q|² + |x|², are one score in float32


def spread_norms(keys: np.ndarray, factor: float, seed: int) -> np.ndarray:
    """Keys times factors from 1/√factor to √factor, log-uniform. (n, d) to (n, d) float16."""
    scale = factor ** np.random.default_rng(seed).uniform(-0.5, 0.5, len(keys))
    out = np.empty(keys.shape, np.float16)
    for at in range(0, len(keys), BATCH):
        out[at : at + BATCH] = keys[at : at + BATCH].astype(np.float32) * scale[at : at + BATCH, None]
    return out


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean share of the true ids that were found. Both (q, k)."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)]))


@dataclass(frozen=True)
class ExactCheck:
    """What comparing the exact search with brute force gave."""

    keys: int
    queries: int
    k: int
    tied: int  # ids that differ, every one of them at the distance of the last neighbor
    error: float  # largest relative error of a distance

    def __str__(self) -> str:
        return (
            f"`exact=True` equals float64 brute force on {self.keys:,} keys × {self.queries} queries, k = {self.k}: "
            f"{self.tied} ids differ, all at the last distance; largest relative error of a distance {self.error:.1e}."
        )


def check_exact(keys: np.ndarray, queries: np.ndarray, k: int, metric: str, path: Path) -> ExactCheck:
    """Search a store of these keys exactly and compare with brute force.

    Raises:
        AssertionError: an id that is no tie differs, or a distance by more than 1e-3.
    """
    with knnlm.Datastore.create(path, dim=keys.shape[1], metric=metric, keep_keys="float16", overwrite=True) as store:
        store.add(keys, np.zeros(len(keys), np.uint32))
        found = store.search(queries, k, exact=True)
    x = np.asarray(keys, np.float16).astype(np.float64)  # (n, d)
    squares = np.square(x).sum(1)  # (n,)
    tied, error = 0, 0.0
    for query, distances, ids in zip(queries.astype(np.float64), found.distances, found.ids, strict=True):
        products = x @ query  # (n,)
        own = float(query @ query)
        scores = squares - 2 * products + own if metric == "l2" else -products
        slack = TIE * (own + squares.max())
        best = np.argsort(scores, kind="stable")[:k]
        assert len(set(ids.tolist())) == len(best), "an id came twice or is missing"
        other = np.setxor1d(ids, best)
        assert (abs(scores[other] - scores[best[-1]]) <= slack).all(), "the exact scan missed a neighbor"
        assert (np.diff(scores[ids]) >= -slack).all(), "neighbors out of order"
        given = distances.astype(np.float64) * (1 if metric == "l2" else -1)
        wrong = abs(given - scores[ids]) / np.maximum(abs(scores[ids]), 1e-3 * abs(scores[best]).max())
        assert wrong.max() <= NEAR, f"a distance is wrong by {wrong.max():.1e}"
        tied, error = tied + len(other) // 2, max(error, float(wrong.max()))
    return ExactCheck(len(keys), len(queries), k, tied, error)


def least_nprobe(reached: Callable[[int], float], wanted: float, most: int) -> int | None:
    """The least nprobe, up to `most`, whose recall is at least `wanted`; None if none has it. Recall rises with it."""
    if reached(most) < wanted:
        return None
    low, high = 0, most  # `high` reaches it, `low` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) >= wanted else (middle, high)
    return high


def rates(systems: dict[str, Callable[[], Any]], queries: int, repeats: int, clock: Callable[[], float]) -> list[float]:
    """Queries a second of each system at its fastest of some runs, taken in turn after one that is not counted."""
    least = dict.fromkeys(systems, float("inf"))
    for repeat in range(repeats + 1):
        for name, run in systems.items():
            started = clock()
            run()
            if repeat:
                least[name] = min(least[name], clock() - started)
    return [queries / seconds for seconds in least.values()]


@dataclass
class Row:
    """One index with one setting."""

    system: str
    nprobe: int
    recall: float
    scanned: float
    run: Callable[[np.ndarray], Any]
    beside: str = ""  # the peer whose recall it has

    def about(self, batch: float, single: float) -> dict[str, Any]:
        """The row of a record, with its queries a second in a batch and one at a time."""
        names = ("system", "nprobe", "recall", "scanned", "beside")
        return {name: getattr(self, name) for name in names} | {"batch": batch, "single": single}


def our_store(keys: np.ndarray, metric: str, path: Path, threads: int | None, reuse: bool) -> tuple[Any, str]:
    """An indexed store of the keys, and what it took."""
    if reuse and path.exists():
        return knnlm.Datastore.open(path), "knnlm: index of an earlier run."
    started, cpu = time.perf_counter(), time.process_time()
    store = knnlm.Datastore.create(path, dim=keys.shape[1], metric=metric, keep_keys="float16", overwrite=True)
    for at in range(0, len(keys), BATCH):
        part = np.ascontiguousarray(keys[at : at + BATCH])
        store.add(part, np.zeros(len(part), np.uint32))
    store.commit()
    added = time.perf_counter() - started
    started, cpu = time.perf_counter(), time.process_time()
    store.build(seed=0, threads=threads)
    built = f"{time.perf_counter() - started:.0f} s ({time.process_time() - cpu:.0f} CPU s)"
    return store, f"knnlm: added in {added:.0f} s, indexed in {built}."


def faiss_index(
    keys: np.ndarray, metric: str, kind: str, train: int, path: Path, threads: int, reuse: bool
) -> tuple[Any, str]:
    """The FAISS index of the keys, and what it took."""
    import faiss

    faiss.omp_set_num_threads(threads)
    if reuse and path.exists():
        return faiss.read_index(str(path)), "FAISS: index of an earlier run."
    started, cpu = time.perf_counter(), time.process_time()
    space = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(keys.shape[1], kind, space)
    sample = np.random.default_rng(0).choice(len(keys), min(len(keys), train), replace=False)
    index.train(np.asarray(keys[np.sort(sample)], np.float32))
    for at in range(0, len(keys), BATCH):
        index.add(np.asarray(keys[at : at + BATCH], np.float32))
    took = f"{time.perf_counter() - started:.0f} s ({time.process_time() - cpu:.0f} CPU s)"
    faiss.write_index(index, str(path))
    return index, f"FAISS: trained on {len(sample):,} keys and added in {took}."


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the indexes, about 1,000 bytes a key")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--metric", choices=("l2", "ip"), default="l2")
    parser.add_argument("--norm-spread", type=float, default=1.0)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--check", type=int, default=100_000, help="keys of the exact check; 0: none")
    parser.add_argument("--count", type=int, default=500, help="queries, evenly spaced")
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1, help="of the timed searches")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--nprobe", type=int, nargs="*", default=[10, 20, 40, 80, 160, 320])
    parser.add_argument("--rerank", nargs="*", default=["none", "keys"])
    parser.add_argument("--faiss", default="IVF4096,PQ64", help="index of FAISS' factory; empty: leave FAISS out")
    parser.add_argument("--faiss-train", type=int, default=64 * 4096, help="keys that FAISS learns from")
    parser.add_argument("--faiss-nprobe", type=int, nargs="*", default=[8, 16, 32, 64, 128])
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--reuse", action="store_true")
    a = parser.parse_args(arguments)
    a.work.mkdir(parents=True, exist_ok=True)
    keys = np.load(a.keys, mmap_mode="r")[: a.entries]
    if a.norm_spread != 1:
        keys = spread_norms(keys, a.norm_spread, 0)
    every = np.load(a.queries, mmap_mode="r")
    queries = every[np.linspace(0, len(every) - 1, min(a.count, len(every))).astype(int)].astype(np.float32)
    (n, d), k = keys.shape, min(a.k, len(keys))
    checked = ""
    name = f"{a.metric}-{a.norm_spread:g}-{n}"
    if a.check:
        first = np.ascontiguousarray(keys[: a.check])
        checked = str(check_exact(first, queries[:SINGLE], min(k, len(first)), a.metric, a.work / "exact"))
        print(checked, flush=True)

    store, made = our_store(keys, a.metric, a.work / f"recall-{name}.knnlm", None, a.reuse)
    info = store.info()
    truth = store.search(queries, k, exact=True).ids
    lists = Lists(Path(store.path))

    def row(nprobe: int, rerank: str, beside: str = "") -> Row:
        def run(q: np.ndarray) -> Any:
            return store.search(q, k, nprobe=nprobe, rerank=rerank, threads=a.threads)

        scanned = lists.scanned(queries, nprobe) / n
        return Row(f"knnlm, rerank {rerank}", nprobe, recall(run(queries).ids, truth), scanned, run, beside)

    probes = sorted({min(p, info["nlist"]) for p in (*a.nprobe, info["default_nprobe"])})
    rows = [row(nprobe, rerank) for rerank in a.rerank for nprobe in probes]
    if a.faiss:
        import faiss

        file = a.work / f"{name}.faiss"
        peer, peer_made = faiss_index(keys, a.metric, a.faiss, a.faiss_train, file, a.threads, a.reuse)
        made += " " + peer_made
        inverted = faiss.extract_index_ivf(peer)
        for nprobe in (p for p in a.faiss_nprobe if p <= inverted.nlist):

            def run(q: np.ndarray, nprobe: int = nprobe) -> Any:
                inverted.nprobe = nprobe
                return peer.search(q, k)

            faiss.cvar.indexIVF_stats.reset()
            reached = recall(run(queries)[1], truth)
            scanned = faiss.cvar.indexIVF_stats.ndis / len(queries) / n
            rows.append(Row(f"FAISS {a.faiss}", nprobe, reached, scanned, run))

            def ours(p: int) -> float:
                return recall(store.search(queries, k, nprobe=p, rerank="none").ids, truth)

            enough = least_nprobe(ours, reached, info["nlist"])
            if enough is not None:
                rows.append(row(enough, "none", f"FAISS {a.faiss}, nprobe {nprobe}"))

    clock = time.process_time if a.clock == "cpu" else time.perf_counter
    few = [q[None] for q in queries[:SINGLE]]
    batched = rates({str(i): (lambda r=r: r.run(queries)) for i, r in enumerate(rows)}, len(queries), a.repeats, clock)
    alone = rates({str(i): (lambda r=r: [r.run(q) for q in few]) for i, r in enumerate(rows)}, len(few), 1, clock)
    record = tables.header() | {
        "metric": a.metric,
        "norm_spread": a.norm_spread,
        "entries": n,
        "dim": d,
        "k": k,
        "nlist": info["nlist"],
        "default_nprobe": info["default_nprobe"],
        "queries": len(queries),
        "alone": len(few),
        "repeats": a.repeats,
        "threads": a.threads,
        "clock": a.clock,
        "exact": checked,
        "made": made,
        "bytes_per_entry": info["search_bytes_per_entry"],
        "code_bytes": info["code"]["bytes"],
        "rows": [found.about(batch, single) for found, batch, single in zip(rows, batched, alone, strict=True)],
    }
    if a.faiss:
        record["faiss_bytes_per_entry"] = faiss.serialize_index(peer).nbytes / n
        record["faiss_code_bytes"] = inverted.code_size
    store.close()
    text = tables.page(render.title(record), record, render.sections(record))
    print(text)
    if a.out:
        tables.write(a.out.parent, a.out.stem, render.title(record), record, render.sections(record))
    return record


if __name__ == "__main__":
    main()
