"""Our search beside FAISS, hnswlib, usearch and ScaNN on the same keys: recall against queries a second, on one page.

    python benches/engine.py --set SETS/wikitext2 --work WORK

Builds every system once (each in a process of its own; kept in WORK), measures recall, mass and total variation of the
weights and perplexity of every setting against exact search, times every setting once on one thread, and then repeats
the settings on the recall/speed fronts five times in turn (medians), on one and two threads, for single queries and
batches. `--only` and `--nlists` make it smaller. Threads are pinned to the last cores. Writes CSV, a Markdown table and
plots. Peers get their best parameters from the sweep: a system's speed at a recall is read off its own front.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import engine_peers
import engine_plots
import engine_quality
import engine_sets
import numpy as np
import tables
from columns import log
from engine_peers import Spec, System
from engine_quality import Truth
from engine_sets import KeySet

GOALS = (0.7, 0.9, 0.95, 0.97)
MEASURED = 500  # queries that recall is measured on
SLOWEST = 4.0  # seconds that one timed call of the coarse pass may be expected to take


@dataclasses.dataclass
class Point:
    """One setting of one system at one k."""

    system: str
    row: str
    k: int
    setting: dict[str, Any]
    bytes_per_key: float
    quality: dict[str, float]
    speeds: dict[str, float] = dataclasses.field(default_factory=dict)  # "batch 256, 1 thread": queries a second

    @property
    def label(self) -> str:
        return ", ".join(f"{n} {v}" for n, v in self.setting.items())


def exact(key_set: KeySet, queries: np.ndarray, k: int, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Exact neighbours by FAISS in float32, kept in the work folder: neither side's own code decides what is true."""
    import columns
    import faiss

    path = work / f"exact-{columns.digest(len(queries), k, float(queries.sum()))}.npz"
    if not path.is_file():
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for at in range(0, len(key_set.keys), 131_072):
            keys = np.asarray(key_set.keys[at : at + 131_072], np.float32)
            distances, ids = faiss.knn(queries, keys, min(k, len(keys)))
            parts.append((distances, ids + at))
        distances, ids = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
        order = (
            np.lexsort((ids, distances))[:, :k] if distances.ndim == 1 else np.argsort(distances, 1, "stable")[:, :k]
        )
        np.savez(path, distances=np.take_along_axis(distances, order, 1), ids=np.take_along_axis(ids, order, 1))
    saved = np.load(path)
    return saved["distances"], saved["ids"]


def pin(threads: int) -> None:
    """Keeps all threads of this process on the last cores."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0) | ALL_CORES)
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), allowed[-threads:])


ALL_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def batches(queries: np.ndarray, batch: int, most: int) -> list[np.ndarray]:
    """The first `most` queries in calls of `batch`."""
    chosen = queries[:most]
    return [np.ascontiguousarray(chosen[at : at + batch]) for at in range(0, len(chosen), batch)]


def timed(system: System, calls: Sequence[np.ndarray], k: int, threads: int, setting: dict[str, Any]) -> float:
    """Seconds of all calls."""
    started = time.perf_counter()
    for queries in calls:
        system.search(queries, k, threads, **setting)
    return time.perf_counter() - started


def sweep(systems: dict[str, tuple[Spec, System]], t: Truth, keys: Any, ks: Sequence[int]) -> list[Point]:
    """Every setting once: quality on the measured queries, and the time of that one call on one thread."""
    points = []
    pin(1)
    for name, (spec, system) in systems.items():
        for k in ks:
            slow: dict[Any, bool] = {}
            for setting in system.settings(k):
                group = tuple(v for n, v in setting.items() if n not in ("nprobe", "ef", "recall", "leaves"))
                if slow.get(group):
                    continue
                probe = timed(system, [t.queries[:20]], k, 1, setting) / 20
                slow[group] = probe * len(t.queries) > SLOWEST
                started = time.perf_counter()
                found = system.search(t.queries, k, 1, **setting)
                seconds = time.perf_counter() - started
                quality = engine_quality.judge(t, keys, found, k)
                points.append(Point(name, spec.row, k, setting, system.bytes_per_key, quality))
                points[-1].speeds["sweep"] = len(t.queries) / seconds
            log(f"{name}, k {k}: {sum(p.system == name and p.k == k for p in points)} settings")
    return points


def front(points: Sequence[Point], speed: str) -> list[Point]:
    """Those that no other point of the same list beats in both recall and speed, worst recall first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.quality["recall"], -p.speeds[speed])):
        if not best or point.speeds[speed] > best[-1].speeds[speed]:
            best.append(point)
    return best[::-1]


def repeat(
    systems: dict[str, tuple[Spec, System]],
    points: Sequence[Point],
    queries: np.ndarray,
    k: int,
    threads: int,
    batch: int,
    repeats: int,
) -> None:
    """Times the points in turn, several rounds, and keeps the median of each."""
    pin(threads)
    key = f"batch {batch}, {threads} thread{'s' * (threads > 1)}"
    seconds: dict[int, list[float]] = {id(p): [] for p in points}
    calls = {}
    for point in points:
        most = int(np.clip(point.speeds["sweep"] * 1.0, 64, len(queries)))  # about a second each
        calls[id(point)] = batches(queries, batch, max(batch, most) if batch > 1 else min(most, 400))
    for turn in range(repeats + 1):
        for point in points:
            system = systems[point.system][1]
            spent = timed(system, calls[id(point)], k, threads, point.setting)
            if turn:  # the first round warms up
                seconds[id(point)].append(spent)
    for point in points:
        count = sum(len(c) for c in calls[id(point)])
        point.speeds[key] = count / statistics.median(seconds[id(point)])


def at_recall(points: Sequence[Point], speed: str, goal: float) -> tuple[float, Point] | None:
    """Speed at a recall, interpolated along the front (log speed), and the point above it."""
    above = [p for p in points if p.quality["recall"] >= goal and speed in p.speeds]
    if not above:
        return None
    known = [p for p in points if speed in p.speeds]
    line = front(known, speed)
    x = [p.quality["recall"] for p in line]
    y = np.log([p.speeds[speed] for p in line])
    best = max(above, key=lambda p: p.speeds[speed])
    return float(np.exp(np.interp(goal, x, y))), best


def ratios(points: Sequence[Point], k: int, speeds: Sequence[str]) -> list[list[Any]]:
    """Ours against the best of each row of peers at each goal."""
    rows = []
    here = [p for p in points if p.k == k]
    ours = [p for p in here if p.row == "ours"]
    for goal in GOALS:
        for row in sorted({p.row for p in here} - {"ours"}):
            line: list[Any] = [f"{goal:.2f}", row]
            for speed in speeds:
                mine = at_recall(ours, speed, goal)
                peers = {
                    name: at_recall([p for p in here if p.system == name], speed, goal)
                    for name in {p.system for p in here if p.row == row}
                }
                reached = {name: found for name, found in peers.items() if found}
                if not reached or not mine:
                    line.append("ours only" if mine else ("peer only" if reached else "none"))
                    continue
                name, best = max(reached.items(), key=lambda item: item[1][0])
                line.append(f"{mine[0] / best[0]:.1f}× ({mine[0]:,.0f} / {best[0]:,.0f}, {name}, {best[1].label})")
            rows.append(line)
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder of a key set (engine_sets.py)")
    parser.add_argument("--work", type=Path, required=True, help="built systems and exact neighbours are kept here")
    parser.add_argument("--out", type=Path, default=tables.ROOT / "benches" / "record")
    parser.add_argument("--entries", type=int, help="use only the first keys")
    parser.add_argument("--nlists", type=int, nargs="*", default=[1024, 4096, 16384])
    parser.add_argument("--only", help="regular expression of system names")
    parser.add_argument("--k", type=int, nargs="*", default=[8, 64, 1024])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 256, 4096])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--queries", type=int, default=MEASURED, help="that quality is measured on")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the whole comparison of one key set."""
    a = parse(arguments)
    key_set = engine_sets.load(a.set, a.entries)
    n, d = key_set.keys.shape
    work = a.work / f"{key_set.name}-{n}"
    work.mkdir(parents=True, exist_ok=True)
    largest = max(a.k)
    measured = np.arange(key_set.half, len(key_set.queries))
    rows = measured[np.linspace(0, len(measured) - 1, min(a.queries, len(measured))).astype(int)]
    log(f"exact neighbours of {len(rows):,} queries among {n:,} keys")
    tuning = exact(key_set, key_set.queries[: min(key_set.half, 2000)], largest, work)
    t = engine_quality.truth(key_set, exact(key_set, key_set.queries[rows], largest, work), tuning, rows)

    systems: dict[str, tuple[Spec, System]] = {}
    built: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    for spec in engine_peers.specs(d, tuple(a.nlists), n):
        if a.only and spec.name != "knnlm" and not re.search(a.only, spec.name):
            continue
        try:
            log(f"building {spec.name}")
            built[spec.name] = engine_peers.build(spec, a.set, n, work, max(a.threads))
            systems[spec.name] = (spec, engine_peers.load(spec, work))
        except (RuntimeError, ImportError) as error:
            failed[spec.name] = str(error)
            log(f"left out: {spec.name}: {error}")

    points = sweep(systems, t, key_set.keys, a.k)
    timed_queries = key_set.queries[measured]
    speeds = []
    for threads in a.threads:
        for k in a.k:
            for batch in a.batches:
                chosen = [
                    p
                    for name in systems
                    for p in front([p for p in points if p.system == name and p.k == k], "sweep")
                    if p.quality["recall"] >= min(GOALS) - 0.1
                ]
                log(f"k {k}, batch {batch}, {threads} thread(s): {len(chosen)} settings, {a.repeats} rounds")
                repeat(systems, chosen, timed_queries, k, threads, batch, a.repeats)
                speeds.append(f"batch {batch}, {threads} thread{'s' * (threads > 1)}")
    speeds = sorted(set(speeds), key=speeds.index)
    write(a, key_set, t, points, built, failed, speeds)
    return 0


def write(
    a: argparse.Namespace,
    key_set: KeySet,
    t: Truth,
    points: list[Point],
    built: dict[str, dict[str, float]],
    failed: dict[str, str],
    speeds: list[str],
) -> None:
    """CSV, Markdown and plots."""
    n, d = key_set.keys.shape
    name = f"engine-{key_set.name}"
    a.out.mkdir(parents=True, exist_ok=True)
    columns = ["system", "row", "k", "setting", "bytes_per_key", "recall", "mass", "variation", "perplexity", "sweep"]
    with (a.out / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *speeds])
        for p in points:
            quality = [p.quality.get(c, "") for c in ("recall", "mass", "variation", "perplexity")]
            times = [p.speeds.get(s, "") for s in ("sweep", *speeds)]
            writer.writerow([p.system, p.row, p.k, p.label, p.bytes_per_key, *quality, *times])
    sections = [f"{n:,} keys of {d} dimensions; recall on {len(t.queries)} held-out queries, equal distances count.\n"]
    if np.isfinite(t.perplexity):
        sections.append(
            f"Perplexity of those queries: LM {t.lm_perplexity:.2f}, kNN-LM with exact neighbours {t.perplexity:.2f} "
            f"(lambda {t.lambda_:.2f}, T {t.temperature:.3g}, k {t.k}, tuned on other queries).\n"
        )
    for k in a.k:
        head = ("recall", "against", *speeds)
        sections += [f"## k = {k}: times the best peer of each row at equal recall\n"]
        sections += [tables.markdown(head, ratios(points, k, speeds))]
    shown = [p for p in points if p.k == max(a.k) and any(s in p.speeds for s in speeds)]
    head = ("system", "setting", "bytes/key", "recall", "mass", "TV", "perplexity", *speeds)
    lines = [
        (
            p.system,
            p.label,
            f"{p.bytes_per_key:.0f}",
            f"{p.quality['recall']:.4f}",
            f"{p.quality['mass']:.4f}",
            f"{p.quality['variation']:.4f}",
            f"{p.quality['perplexity']:.2f}" if "perplexity" in p.quality else "",
            *(f"{p.speeds[s]:,.0f}" if s in p.speeds else "" for s in speeds),
        )
        for p in shown
    ]
    sections += [f"## Fronts at k = {max(a.k)} (queries a second)\n", tables.markdown(head, lines)]
    head = ("system", "seconds", "peak private MB")
    builds = [
        (s, f"{b['train_and_add_seconds']:.0f}", f"{b['peak_private_bytes'] / 1e6:.0f}") for s, b in built.items()
    ]
    sections += [f"## Build, {max(a.threads)} threads (train and add)\n", tables.markdown(head, builds)]
    if failed:
        sections += ["Left out: " + "; ".join(f"{s}: {e}" for s, e in failed.items()) + "\n"]
    images = engine_plots.plot(points, a.k, speeds, a.out / name)
    sections += ["\n".join(f"![{image.stem}]({image.name})" for image in images) + "\n"]
    record = tables.header() | {
        "set": key_set.name,
        "truth": {"lm": t.lm_perplexity, "exact": t.perplexity, "lambda": t.lambda_, "temperature": t.temperature},
        "built": built,
        "failed": failed,
        "points": [dataclasses.asdict(p) for p in points],
    }
    path = tables.write(a.out, name, f"Search engines: {key_set.name}", record, sections)
    print(path.read_text())


if __name__ == "__main__":
    sys.exit(main())
