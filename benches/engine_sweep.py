"""The coarse pass of the search benchmark: every setting of a system once, its quality and its processor time.

Processor time of one thread, not wall time, so that this pass may run while the machine does other work: it only
decides which settings are then timed in turn. Kept beside the system.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import engine_peers
import engine_quality
from columns import log
from engine_peers import Spec, System
from engine_points import LEVELS, Point
from engine_quality import Truth

SLOWEST = 15.0  # queries a second under which a setting is not measured
ENOUGH = 0.985  # recall above which a group of settings is not followed further
GAIN = 0.0005  # nor where the next level of nprobe or ef finds no more than this
QUICK = 0.3  # seconds
SINGLES = 40
PROBES = 10


def asked(system: System, calls: Sequence[Any], k: int, setting: dict[str, Any]) -> tuple[float, Any]:
    """Processor seconds a query of these calls, the least of a few times where they are quick, and what was found."""
    taken: list[float] = []
    while not taken or (len(taken) < 3 and sum(taken) < QUICK):
        started = time.process_time()
        for queries in calls:
            found = system.search(queries, k, 1, **setting)
        taken.append(max(time.process_time() - started, 1e-9))
    return min(taken) / sum(len(queries) for queries in calls), found


def sweep(spec: Spec, system: System, t: Truth, keys: Any, ks: Sequence[int]) -> list[Point]:
    """Every setting that is worth it."""
    points: list[Point] = []
    for k in ks:
        last: dict[Any, float] = {}  # recall of the level before, of each group; 2 = the group is done
        for setting in system.settings(k):
            group = tuple((n, v) for n, v in setting.items() if n not in LEVELS)
            if last.get(group, 0.0) > ENOUGH:
                continue
            probe, _ = asked(system, [t.queries[:PROBES]], k, setting)
            if probe * SLOWEST > 1:
                last[group] = 2.0
                continue
            seconds, found = asked(system, [t.queries], k, setting)
            singles = t.queries[: max(8, min(SINGLES, int(2 / probe)))]
            alone, _ = asked(system, [query[None] for query in singles], k, setting)
            quality = engine_quality.judge(t, keys, found, k)
            speeds = {"sweep": 1 / seconds, "sweep 1": 1 / alone}
            points.append(Point(spec.name, spec.row, k, setting, system.bytes_per_key, quality, speeds))
            gained = quality["recall"] - last.get(group, -1.0)
            last[group] = 2.0 if gained < GAIN and "recall" not in setting else quality["recall"]
    return points


def cached(
    spec: Spec, work: Path, t: Truth, keys: Any, ks: Sequence[int], again: bool = False
) -> tuple[list[Point], dict[str, Any]]:
    """The points of a built system, and what it says about itself, measured now or before."""
    path = engine_peers.beside(spec, work, "sweep")
    if path.is_file() and not again:
        saved = json.loads(path.read_text())
        if saved["ks"] == list(ks):
            return [Point(**p) for p in saved["points"]], saved["facts"]
    system = engine_peers.load(spec, work)
    describe: Callable[[], dict[str, Any]] = getattr(system, "facts", dict)
    facts = describe()
    started = time.perf_counter()
    points = sweep(spec, system, t, keys, ks)
    log(f"{spec.name}: {len(points)} settings in {time.perf_counter() - started:.0f} s")
    saved = {"ks": list(ks), "facts": facts, "points": [dataclasses.asdict(p) for p in points]}
    path.write_text(json.dumps(saved))
    return points, facts
