"""Pareto plots of the search benchmark: recall against queries a second, one picture for each k and way of asking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine_points import picture

COLOURS = {
    "ours": "#c1121f",
    "F1": "#003049",
    "F2": "#1d6996",
    "F3": "#38a6a5",
    "F4": "#0f8554",
    "F5": "#73af48",
    "F6": "#e17c05",
    "F7": "#94346e",
    "same lists": "#6f4070",
    "H1": "#666666",
    "S1": "#a0a0a0",
}


def plot(points: Sequence[Any], ks: Sequence[int], speeds: Sequence[str], stem: Path) -> list[Path]:
    """Writes STEM-kK-WAY.svg for each k and way; of every row the outer front is drawn as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    out = []
    for k in ks:
        for speed in speeds:
            here = [p for p in points if p.k == k and speed in p.speeds]
            if not here:
                continue
            figure, axes = plt.subplots(figsize=(8, 5))
            for row in sorted({p.row for p in here}, key=lambda r: (r != "ours", r)):
                mine = sorted((p for p in here if p.row == row), key=lambda p: -p.quality["recall"])
                line: list[Any] = []
                for p in mine:
                    if not line or p.speeds[speed] > line[-1].speeds[speed]:
                        line.append(p)
                x, y = [p.quality["recall"] for p in line], [p.speeds[speed] for p in line]
                colour = COLOURS.get(row, "#000000")
                axes.plot(x, y, "o-", color=colour, label=row, linewidth=2.5 if row == "ours" else 1.2, markersize=4)
            axes.set_yscale("log")
            axes.set_xlabel(f"recall@{k}")
            axes.set_ylabel("queries per second")
            axes.set_title(f"k = {k}, {speed}")
            axes.grid(True, which="both", alpha=0.25)
            axes.legend(ncols=2, fontsize=8, frameon=False)
            path = picture(stem, k, speed)
            figure.savefig(path, bbox_inches="tight")
            plt.close(figure)
            out.append(path)
    return out
