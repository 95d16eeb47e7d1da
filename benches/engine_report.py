"""What the search benchmark writes: CSV of all points, Markdown of ratios, fronts, asked recall and builds, plots."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import engine_plots
import numpy as np
import tables
from engine_peers import BUILD_PEER
from engine_points import GOALS, PUBLISHED, Point, at_recall
from engine_quality import Truth

SMALL = 80.0  # bytes an entry that any peer is allowed to be compared with


def compare(ours: Sequence[Point], peers: Sequence[Point], speed: str, goal: float) -> str:
    """Ours at the recall against the fastest of the peers, within the memory of that peer where that reaches it."""
    systems = {p.system for p in peers}
    found = {name: at_recall([p for p in peers if p.system == name], speed, goal) for name in systems}
    reached = {name: at for name, at in found.items() if at}
    best = max(reached.items(), key=lambda item: item[1][0]) if reached else None
    room = max(SMALL, best[1][1].bytes_per_key) if best else np.inf
    small = [p for p in ours if p.bytes_per_key <= room]
    options = [
        at
        for name in {p.system for p in small}
        if (at := at_recall([p for p in small if p.system == name], speed, goal))
    ]
    note = ""
    if not options:
        options = [
            at
            for name in {p.system for p in ours}
            if (at := at_recall([p for p in ours if p.system == name], speed, goal))
        ]
        note = ", more memory than the peer"
    mine = max(options, key=lambda at: at[0]) if options else None
    if not mine or not best:
        return "ours only" if mine else ("peer only" if best else "none")
    name, (theirs, point) = best
    return (
        f"{mine[0] / theirs:.1f}× ({mine[0]:,.0f} / {theirs:,.0f}; {mine[1].system}{note}, {mine[1].label}, "
        f"{mine[1].bytes_per_key:.0f} B; {name}, {point.label}, {point.bytes_per_key:.0f} B)"
    )


def ratios(points: Sequence[Point], k: int, speeds: Sequence[str]) -> list[list[Any]]:
    """Ours against the best of each row of peers and the best FAISS at each goal, the published index at its recall."""
    here = [p for p in points if p.k == k]
    ours = [p for p in here if p.row == "ours"]
    out = []
    for p in (p for p in here if p.published):
        goal = p.quality["recall"]
        out.append([f"{goal:.4f}", "published", *(compare(ours, [p], speed, goal) for speed in speeds)])
    rows = sorted({p.row for p in here} - {"ours"})
    stock = [row for row in rows if row.startswith("F")]
    for goal in GOALS:
        for name, members in [("best FAISS", stock), *((row, [row]) for row in rows)]:
            peers = [p for p in here if p.row in members]
            out.append([f"{goal:.2f}", name, *(compare(ours, peers, speed, goal) for speed in speeds)])
    return out


def asked(points: Sequence[Point]) -> list[list[str]]:
    """Recall that was asked for, and what was measured."""
    out = []
    for p in points:
        if "recall" in p.setting:
            wanted, had = p.setting["recall"], p.quality["recall"]
            line = [p.system, str(p.k), f"{wanted:.2f}", f"{had:.4f}", f"{had - wanted:+.4f}"]
            out.append([*line, f"{p.quality['mass']:.4f}", f"{p.quality['variation']:.4f}"])
    return out


def fronts(points: Sequence[Point], speeds: Sequence[str]) -> list[list[str]]:
    """Every timed setting with its quality, its speeds and, single queries, p50 and p99 in microseconds."""
    out = []
    for p in sorted(points, key=lambda p: (p.row != "ours", p.row, p.system, p.quality["recall"])):
        perplexity = f"{p.quality['perplexity']:.3f}" if "perplexity" in p.quality else ""
        line = [p.system, p.label, f"{p.bytes_per_key:.0f}"]
        line.append(f"{p.quality['scanned']:,.0f}" if "scanned" in p.quality else "")
        line += [f"{p.quality[q]:.4f}" for q in ("recall", "mass", "variation")] + [perplexity]
        for speed in speeds:
            detail = p.details.get(speed, {})
            tail = f" ({1e6 * detail['p50']:,.0f}, {1e6 * detail['p99']:,.0f} µs)" if "p50" in detail else ""
            line.append(f"{p.speeds[speed]:,.0f}{tail}" if speed in p.speeds else "")
        out.append(line)
    return out


def builds(built: dict[str, dict[str, float]]) -> list[list[str]]:
    """Cost of each build, and how many times longer FAISS's IVFPQ takes: with as many lists as ours, else with 4096."""
    out = []
    peer = next((name for name in (BUILD_PEER, PUBLISHED[0]) if name in built), None)
    for name, b in built.items():
        line = [name, f"{b['train_and_add_seconds']:.0f}", f"{b['train_and_add_cpu_seconds']:.0f}"]
        line += [f"{b['peak_private_bytes'] / 1e6:.0f}", f"{b.get('load_average', float('nan')):.1f}"]
        if peer and name.startswith("knnlm"):
            wall, cpu = (
                built[peer][f"train_and_add_{x}seconds"] / b[f"train_and_add_{x}seconds"] for x in ("", "cpu_")
            )
            line.append(f"{peer}: {wall:.1f}× the seconds, {cpu:.1f}× the processor seconds")
        out.append([*line, ""][:6])
    return out


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


def write(
    out: Path,
    name: str,
    about: str,
    t: Truth,
    points: list[Point],
    ks: Sequence[int],
    speeds: list[str],
    built: dict[str, dict[str, float]],
    facts: dict[str, Any],
    failed: dict[str, str],
    more: dict[str, Any],
) -> Path:
    """Everything of one key set; returns the path of the Markdown."""
    stem = f"engine-{name}"
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / f"{stem}.csv", points, speeds)
    sections = [about]
    if np.isfinite(t.perplexity):
        sections.append(
            f"Perplexity of the {len(t.queries):,} queries: LM {t.lm_perplexity:.2f}, kNN-LM with exact neighbors "
            f"{t.perplexity:.3f} (lambda {t.lambda_:.2f}, T {t.temperature:.3g}, k {t.k}, tuned on other queries).\n"
        )
    if more.get("default"):
        d = more["default"]
        sections.append(
            f"Default search on {d['queries']:,} queries: recall {d['recall']:.4f}, mass {d['mass']:.4f}, "
            f"total variation {d['variation']:.4f}, perplexity {d['perplexity']:.4f}, exact {d['exact']:.4f} "
            f"({100 * (d['perplexity'] / d['exact'] - 1):+.3f} %).\n"
        )
    for k in ks:
        head = ("recall", "against", *speeds)
        sections += [f"## k = {k}: times the best peer of each row at equal recall\n"]
        sections += [tables.markdown(head, ratios(points, k, speeds))]
    head = ("system", "k", "asked", "measured", "difference", "mass", "TV")
    sections += ["## Asked recall\n", tables.markdown(head, asked([p for p in points if "recall" in p.setting]))]
    if more.get("out_of_domain"):
        head = ("system", "k", "asked", "measured")
        cells = [[r["system"], r["k"], f"{r['asked']:.2f}", f"{r['recall']:.4f}"] for r in more["out_of_domain"]]
        sections += ["## Asked recall, queries of another corpus\n", tables.markdown(head, cells)]
    for k in ks:
        shown = [p for p in points if p.k == k and any(s in p.speeds for s in speeds)]
        head = ("system", "setting", "bytes/key", "scanned", "recall", "mass", "TV", "perplexity", *speeds)
        sections += [f"## k = {k}: timed settings, queries a second (single queries: p50, p99)\n"]
        sections += [tables.markdown(head, fronts(shown, speeds))]
    head = ("system", "seconds", "processor seconds", "peak private MB", "load after it", "")
    sections += ["## Build (train and add)\n", tables.markdown(head, builds(built))]
    if failed:
        sections += ["Left out: " + "; ".join(f"{s}: {e}" for s, e in failed.items()) + "\n"]
    images = engine_plots.plot(points, ks, speeds, out / stem)
    sections += ["\n".join(f"![{image.stem}]({image.name})" for image in images) + "\n"]
    truth = {"lm": t.lm_perplexity, "exact": t.perplexity, "lambda": t.lambda_, "temperature": t.temperature, "k": t.k}
    record = tables.header() | {"set": name, "truth": truth, "built": built, "facts": facts, "failed": failed}
    record |= more | {"points": [dataclasses.asdict(p) for p in points if any(s in p.speeds for s in speeds)]}
    return tables.write(out, stem, f"Search engines: {name}", record, sections)
