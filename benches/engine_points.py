"""Points of the search benchmark: one setting of one system at one k, its quality and its speeds; fronts of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GOALS = (0.7, 0.9, 0.95, 0.97)
BUILD_PEER = "FAISS PQ64, as many lists as knnlm"  # what the time of our build is compared with
PUBLISHED = ("FAISS IVF4096,PQ64", 32)  # the index and nprobe of the published systems
LEVELS = ("nprobe", "ef", "recall", "leaves")  # parameters that trade speed for recall


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
    details: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)  # of a speed: spread, p50, p99

    @property
    def label(self) -> str:
        return ", ".join(f"{n} {v:g}" if isinstance(v, float) else f"{n} {v}" for n, v in self.setting.items())

    @property
    def published(self) -> bool:
        return (self.system, self.setting.get("nprobe")) == PUBLISHED


def way(batch: int, threads: int) -> str:
    """Name of a speed."""
    return f"batch {batch}, {threads} thread{'s' * (threads > 1)}"


def picture(stem: Path, k: int, speed: str) -> Path:
    """Where the plot of a k and a way of asking lies."""
    return stem.with_name(f"{stem.name}-k{k}-{speed.replace(', ', '-').replace(' ', '')}.svg")


def front(points: Iterable[Point], speed: str) -> list[Point]:
    """Those that no other point of the same list beats in both recall and speed, worst recall first."""
    best: list[Point] = []
    known = (p for p in points if speed in p.speeds)
    for point in sorted(known, key=lambda p: (-p.quality["recall"], -p.speeds[speed])):
        if not best or point.speeds[speed] > best[-1].speeds[speed]:
            best.append(point)
    return best[::-1]


def at_recall(points: Sequence[Point], speed: str, goal: float) -> tuple[float, Point] | None:
    """Speed at a recall, interpolated along the front (log speed), and the point that reaches it."""
    line = front(points, speed)
    above = [p for p in line if p.quality["recall"] >= goal]
    if not above:
        return None
    x = [p.quality["recall"] for p in line]
    y = np.log([p.speeds[speed] for p in line])
    return float(np.exp(np.interp(goal, x, y))), above[0]


def bracket(points: Sequence[Point], speed: str, goal: float) -> list[Point]:
    """The points on both sides of a recall on the front; none if it is not reached."""
    line = front(points, speed)
    above = [i for i, p in enumerate(line) if p.quality["recall"] >= goal]
    return line[max(0, above[0] - 1) : above[0] + 1] if above else []


def worth_repeating(points: Sequence[Point], k: int, goals: Sequence[float] = GOALS) -> list[Point]:
    """Of every row the best system at each goal, by its points on both sides of it; each of ours; the published index.

    Speeds of the coarse pass decide, those of batches and of single queries.
    """
    here = [p for p in points if p.k == k]
    chosen = [p for p in here if p.published or p.setting == {"recall": 0.95}]
    goals = sorted({*goals, *(p.quality["recall"] for p in chosen if p.published)})
    for speed in ("sweep", "sweep 1"):
        for row in {p.row for p in here}:
            names = sorted({p.system for p in here if p.row == row})
            lines = {name: [p for p in here if p.system == name] for name in names}
            if row == "ours":
                for line in lines.values():
                    chosen += [p for goal in (*goals, 0.8) for p in bracket(line, speed, goal)]
                continue
            for goal in goals:
                reached = {name: found[0] for name in names if (found := at_recall(lines[name], speed, goal))}
                if reached:
                    chosen += bracket(lines[max(reached, key=lambda name: reached[name])], speed, goal)
    return list({id(p): p for p in chosen}.values())
