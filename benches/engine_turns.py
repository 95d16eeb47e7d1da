"""The timed part of the search benchmark: chosen settings of several systems in turn, some rounds, medians.

Systems are loaded in groups that fit the memory that is given; ours is in every group, so that it is always timed in
turn with its peers.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import engine_peers
import engine_quality
import numpy as np
from columns import log
from engine_peers import Spec, System
from engine_points import Point, way
from engine_quality import Truth

SMALLEST = 256  # queries of the smallest call that stands for a large batch
LARGEST = 0.35  # seconds that one call may take at least before its batch is cut


def pin(threads: int) -> None:
    """Keeps all threads of this process on the last cores."""
    if hasattr(os, "sched_setaffinity"):
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), CORES[-threads:])


CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@dataclass
class Turn:
    """One setting asked one way."""

    point: Point
    batch: int
    threads: int
    calls: list[np.ndarray] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each round
    latencies: list[float] = field(default_factory=list)  # of each call
    mode: dict[str, Any] = field(default_factory=dict)

    def run(self, system: System, keep: bool = True) -> float:
        """One round."""
        spent = []
        for queries in self.calls:
            started = time.perf_counter()
            system.search(queries, self.point.k, self.threads, **self.point.setting, **self.mode)
            spent.append(time.perf_counter() - started)
        if keep:
            self.seconds.append(sum(spent))
            self.latencies += spent
        return sum(spent)

    def choose(self, system: System) -> None:
        """Warms up, and keeps the fastest mode of those that a system has for this way of asking."""
        modes = getattr(system, "modes", None)
        taken: list[tuple[float, dict[str, Any]]] = []
        for mode in modes(self.batch, self.threads) if modes else ({},):
            self.mode = mode
            taken.append((self.run(system, keep=False), mode))
        self.mode = min(taken, key=lambda item: item[0])[1]

    def report(self) -> None:
        """Writes medians into the point."""
        name, count = way(self.batch, self.threads), sum(len(c) for c in self.calls)
        self.point.speeds[name] = count / statistics.median(self.seconds)
        details = {
            "slowest": count / max(self.seconds),
            "fastest": count / min(self.seconds),
            "rounds": len(self.seconds),
            "queries": count,
        }
        if self.batch == 1:
            details |= {"p50": float(np.median(self.latencies)), "p99": float(np.percentile(self.latencies, 99))}
        self.point.details[name] = details | self.mode


def calls_of(point: Point, queries: np.ndarray, batch: int, seconds: float) -> list[np.ndarray]:
    """Queries of one round: about `seconds` of work, in whole calls where they are not too long.

    A batch that takes longer than that and LARGEST is cut, to no fewer than SMALLEST queries: systems that slow do not
    gain from larger batches.
    """
    if batch == 1:
        count = int(np.clip(point.speeds["sweep 1"] * seconds, 24, len(queries)))
        return [queries[i : i + 1] for i in np.linspace(0, len(queries) - 1, count).astype(int)]
    size = int(min(batch, max(SMALLEST, point.speeds["sweep"] * max(LARGEST, seconds)), len(queries)))
    count = max(1, round(point.speeds["sweep"] * seconds / size))
    starts = [i * size % max(1, len(queries) - size + 1) for i in range(count)]
    return [np.ascontiguousarray(queries[at : at + size]) for at in starts]


def share(point: Point) -> float:
    """Part of the usual time that a setting gets: small k matter less here."""
    return 1.0 if point.k >= 512 else 0.5


def groups(sizes: dict[str, int], ours: Sequence[str], room: int) -> Iterator[list[str]]:
    """Names of the systems that are loaded together: ours, and peers as long as they fit `room` bytes."""
    base = sum(sizes[name] for name in ours)
    peers = sorted(set(sizes) - set(ours), key=lambda name: -sizes[name])
    while peers:
        group, used = [], base
        for name in list(peers):
            if not group or used + sizes[name] <= room:
                group.append(name)
                used += sizes[name]
                peers.remove(name)
        yield [*ours, *group]
    if not set(sizes) - set(ours):
        yield list(ours)


def take(
    chosen: Sequence[Point],
    specs: dict[str, Spec],
    work: Path,
    t: Truth,
    keys: Any,
    queries: np.ndarray,
    ways: Sequence[tuple[int, int]],
    *,
    repeats: int,
    room: int,
    minutes: float,
) -> None:
    """Times the chosen points every way, and measures their quality on all queries of `t`."""
    sizes = {name: engine_peers.size(specs[name], work) for name in sorted({p.system for p in chosen})}
    ours = [name for name in sizes if specs[name].row == "ours"]
    plan = list(groups(sizes, ours, room))
    visits = sum((len(plan) if p.system in ours else 1) * share(p) for p in chosen) * len(ways) * (repeats + 1)
    seconds = float(np.clip(minutes * 60 / max(1, visits), 0.05, 1.0))
    log(f"{len(chosen)} settings, {len(plan)} groups, {len(ways)} ways, {seconds:.2f} s each of {repeats} rounds")
    most = max(threads for _, threads in ways)
    turns = {(id(p), b, n): Turn(p, b, n, calls_of(p, queries, b, seconds * share(p))) for p in chosen for b, n in ways}
    judged: set[int] = set()
    for number, group in enumerate(plan):
        systems = {name: engine_peers.load(specs[name], work) for name in group}
        here = [p for p in chosen if p.system in systems]
        pin(most)
        for point in here:
            if id(point) not in judged:
                found = systems[point.system].search(t.queries, point.k, most, **point.setting)
                point.quality = engine_quality.judge(t, keys, found, point.k)
                count = getattr(systems[point.system], "scanned", None)
                if count:
                    point.quality["scanned"] = count(t.queries, point.k, point.setting)
                judged.add(id(point))
        for batch, threads in ways:
            pin(threads)
            for k in sorted({p.k for p in here}):
                some = [turns[id(p), batch, threads] for p in here if p.k == k]
                for turn in some:
                    turn.choose(systems[turn.point.system])
                for _ in range(repeats):
                    for turn in some:
                        turn.run(systems[turn.point.system])
        log(f"group {number + 1} of {len(plan)}: {', '.join(group)}")
        del systems
        gc.collect()
    pin(len(CORES))
    for turn in turns.values():
        turn.report()
