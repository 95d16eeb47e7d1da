"""What the search benchmark writes: CSV of all points, plots, and the record (`render/engine.py` makes its page)."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import engine_plots
import render.engine
import tables
from engine_points import Point
from engine_quality import Truth


def write_csv(path: Path, points: Sequence[Point], speeds: Sequence[str]) -> None:
    """One line per point, timed or not."""
    columns = ["system", "row", "k", "setting", "bytes_per_key", "recall", "mass", "variation", "perplexity", "scanned"]
    extra: list[tuple[str, Callable[[Point], Any]]] = []
    for speed in speeds:
        for name in ("slowest", "fastest", "queries", "p50", "p99"):
            if name not in ("p50", "p99") or speed.startswith("batch 1,"):
                extra.append((f"{speed}: {name}", lambda p, s=speed, n=name: p.details.get(s, {}).get(n, "")))  # type: ignore[misc]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "sweep", "sweep 1", *speeds, *(name for name, _ in extra)])
        for p in points:
            quality = [p.quality.get(c, "") for c in columns[5:]]
            times = [p.speeds.get(s, "") for s in ("sweep", "sweep 1", *speeds)]
            writer.writerow(
                [p.system, p.row, p.k, p.label, p.bytes_per_key, *quality, *times, *(get(p) for _, get in extra)]
            )


def asked(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Recall that was asked for, and what was measured; points that were not timed, too."""
    return [
        {"system": p.system, "k": p.k, "asked": p.setting["recall"]}
        | {name: p.quality[name] for name in ("recall", "mass", "variation")}
        for p in points
        if "recall" in p.setting
    ]


def write(
    out: Path,
    name: str,
    t: Truth,
    points: list[Point],
    ks: Sequence[int],
    speeds: list[str],
    more: dict[str, Any],
) -> Path:
    """Everything of one key set, `more` being about, built, facts, failed and default; the path of the Markdown."""
    stem = f"engine-{name}"
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / f"{stem}.csv", points, speeds)
    engine_plots.plot(points, ks, speeds, out / stem)
    truth = {"lm": t.lm_perplexity, "exact": t.perplexity, "lambda": t.lambda_, "temperature": t.temperature, "k": t.k}
    record = tables.header() | {"set": name, "truth": truth} | more | {"asked": asked(points)}
    record |= {"points": [dataclasses.asdict(p) for p in points if any(s in p.speeds for s in speeds)]}
    return tables.write(out, stem, render.engine.title(record), record, render.engine.sections(record))
