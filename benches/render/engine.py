"""Search engines beside each other on one key set (engine.py): ratios at equal recall, asked recall, builds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tables
from engine_points import BUILD_PEER, GOALS, PUBLISHED, Point, at_recall, picture, way

SMALL = 80.0  # bytes an entry that any peer is allowed to be compared with
ROWS = {
    "F1": "FAISS IVF, PQ64",
    "F2": "FAISS IVF, PQ64 after OPQ or PCA",
    "F3": "FAISS IVF, fast-scan PQ",
    "F4": "FAISS IVF, fast-scan PQ, refined with SQ8",
    "F5": "FAISS IVF, RaBitQ, with and without refining",
    "F6": "FAISS IVF, scalar quantiser",
    "F7": "FAISS IVF, Panorama",
    "same lists": "FAISS on the lists of knnlm",
    "H1": "graphs: hnswlib, usearch",
    "S1": "ScaNN",
}
BEST = "the best FAISS"


@dataclasses.dataclass(frozen=True)
class Compared:
    """Queries a second of ours and of the fastest peer at one recall; None for who does not reach it."""

    ours: float | None
    theirs: float | None
    our_point: Point | None
    their_point: Point | None
    larger: bool = False  # ours needs more memory than the peer

    @property
    def times(self) -> float | None:
        """Ours over theirs."""
        return self.ours / self.theirs if self.ours and self.theirs else None

    def __str__(self) -> str:
        if self.times is None:
            return "ours only" if self.ours else "peer only" if self.theirs else "none"
        return f"{self.times:.1f} ×"


def compare(ours: Sequence[Point], peers: Sequence[Point], speed: str, goal: float) -> Compared:
    """Ours at the recall against the fastest of the peers, within the memory of that peer where that reaches it."""

    def fastest(points: Sequence[Point]) -> tuple[float, Point] | None:
        names = {p.system for p in points}
        found = (at_recall([p for p in points if p.system == name], speed, goal) for name in names)
        return max((at for at in found if at), key=lambda at: at[0], default=None)

    best = fastest(peers)
    room = max(SMALL, best[1].bytes_per_key) if best else np.inf
    within = fastest([p for p in ours if p.bytes_per_key <= room])
    mine = within or fastest(ours)
    theirs, their_point = best or (None, None)
    speed_of_ours, our_point = mine or (None, None)
    return Compared(speed_of_ours, theirs, our_point, their_point, mine is not None and within is None)


def rivals(points: Sequence[Point], k: int) -> list[tuple[float, str, list[Point]]]:
    """(recall, who, points): the published index at its recall; the best FAISS and each row of peers at each goal."""
    here = [p for p in points if p.k == k]
    out = [(p.quality["recall"], "the published index", [p]) for p in here if p.published]
    rows = sorted({p.row for p in here} - {"ours"})
    out += [(goal, BEST, [p for p in here if p.row.startswith("F")]) for goal in GOALS]
    return out + [(goal, ROWS.get(row, row), [p for p in here if p.row == row]) for row in rows for goal in GOALS]


def ratios(points: Sequence[Point], k: int, speeds: Sequence[str], who: Sequence[str] | None = None) -> str:
    """How many times as fast as these rivals."""
    ours = [p for p in points if p.k == k and p.row == "ours"]
    lines = []
    for goal, name, peers in rivals(points, k):
        found = [compare(ours, peers, speed, goal) for speed in speeds]
        if (who is None or name in who) and any(c.theirs for c in found):
            lines.append([name, share(goal), *map(str, found)])
    return tables.markdown(["against", "recall", *(batch_text(speed) for speed in speeds)], lines)


def settings(points: Sequence[Point], k: int, speed: str) -> str:
    """What stands behind the ratios of one way of asking: both speeds, and the settings that reach the recall."""
    ours = [p for p in points if p.k == k and p.row == "ours"]
    lines = []
    for goal, _, peers in rivals(points, k):
        found = compare(ours, peers, speed, goal)
        if found.our_point and found.their_point:
            mine, theirs = found.our_point, found.their_point
            names = [f"{p.system}: {p.label}" for p in (mine, theirs)]
            note = " (more memory)" if found.larger else ""
            lines.append([names[1], share(goal), f"{found.theirs:,.0f}", f"{found.ours:,.0f}", names[0] + note])
    head = ["peer", "recall", "its queries/s", "ours", "our setting"]
    return tables.markdown(head, list({tuple(line): line for line in lines}.values()), text=["our setting"])


def share(recall: float) -> str:
    """A recall: two digits where it was asked for, four where it was found."""
    return f"{recall:.2f}" if round(recall, 2) == recall else f"{recall:.4f}"


def batch_text(speed: str) -> str:
    """The head of a column: what is asked at once."""
    batch = speed.removeprefix("batch ").partition(",")[0]
    return "one at a time" if batch == "1" else f"batches of {batch}"


def asked(record: dict[str, Any]) -> list[str]:
    """Recall that was asked for, and what was measured."""
    out = []
    if record["asked"]:
        lines = [
            [
                a["system"],
                a["k"],
                f"{a['asked']:.2f}",
                f"{a['recall']:.4f}",
                f"{a['recall'] - a['asked']:+.4f}".replace("-", "−"),
                f"{a['mass']:.4f}",
                f"{a['variation']:.4f}",
            ]
            for a in record["asked"]
        ]
        head = ["system", "k", "asked", "measured", "difference", "mass", "total variation"]
        out += ["## Is the recall had that was asked for?\n", tables.markdown(head, lines)]
    if record.get("out_of_domain"):
        cells = [[r["system"], r["k"], f"{r['asked']:.2f}", f"{r['recall']:.4f}"] for r in record["out_of_domain"]]
        out += [
            "### With queries of another corpus\n",
            tables.markdown(["system", "k", "asked", "measured"], cells),
        ]
    return out


def timed(points: Sequence[Point], speeds: Sequence[str]) -> list[str]:
    """Every timed setting of the largest k: its speeds, then its quality."""
    speeds = speeds[:3]
    order = sorted(points, key=lambda p: (p.row != "ours", p.row, p.system, p.quality["recall"]))
    fast, good = [], []
    for p in order:
        single = next((p.details[s] for s in speeds if "p50" in p.details.get(s, {})), {})
        tail = [f"{1e6 * single[q]:,.0f}" if q in single else "" for q in ("p50", "p99")]
        fast.append([p.system, p.label, *(f"{p.speeds[s]:,.0f}" if s in p.speeds else "" for s in speeds), *tail])
        perplexity = f"{p.quality['perplexity']:.3f}" if "perplexity" in p.quality else ""
        scanned = f"{p.quality['scanned']:,.0f}" if "scanned" in p.quality else ""
        exact = [f"{p.quality[q]:.4f}" for q in ("recall", "mass", "variation")]
        good.append([p.system, p.label, *exact, perplexity, scanned])
    head = ["system", "setting", *(batch_text(s) for s in speeds), "p50, µs", "p99, µs"]
    quality = ["system", "setting", "recall", "mass", "total variation", "perplexity", "scanned"]
    return [
        "## Every timed setting: queries a second\n",
        tables.markdown(head, fast, text=["setting"]),
        "## Every timed setting: quality\n",
        tables.markdown(quality, good, text=["setting"]),
    ]


def builds(record: dict[str, Any], points: Sequence[Point]) -> list[str]:
    """Bytes of a key, and what each build took; how many times longer FAISS's IVFPQ takes."""
    built, lines = record["built"], []
    size = {p.system: p.bytes_per_key for p in points}
    for name, b in built.items():
        bytes_per_key = f"{size[name]:,.0f}" if name in size else ""
        line = [name, bytes_per_key, *(f"{b[f'train_and_add_{clock}seconds']:,.0f}" for clock in ("", "cpu_"))]
        lines.append([*line, f"{b['peak_private_bytes'] / 1e6:,.0f}", f"{b.get('load_average', float('nan')):.1f}"])
    head = ["system", "bytes a key", "seconds", "processor seconds", "peak private MB", "load after it"]
    out = ["## Bytes of a key, and the build (train and add)\n", tables.markdown(head, lines)]
    peer = next((name for name in (BUILD_PEER, PUBLISHED[0]) if name in built), None)
    for name in (n for n in built if peer and n.startswith("knnlm")):
        spent = (f"train_and_add_{clock}seconds" for clock in ("", "cpu_"))
        wall, cpu = (built[peer][key] / built[name][key] for key in spent)  # type: ignore[index]
        out.append(f"{peer} takes {wall:.1f} times the seconds of {name}, {cpu:.1f} times the processor seconds.\n")
    return out


def title(record: dict[str, Any]) -> str:
    """The head of the page."""
    return f"Search engines: {record['set']}"


def sections(record: dict[str, Any]) -> list[str]:
    """The page below its title: the answer for the largest k on one thread, then everything else."""
    points = [Point(**p) for p in record["points"]]
    ks, speeds = sorted({p.k for p in points}), ordered({s for p in points for s in p.speeds if "," in s})
    threads = list(dict.fromkeys(speed.partition(", ")[2] for speed in speeds))
    about, name = record["about"], f"engine-{record['set']}"
    k, first = ks[-1], [s for s in speeds if s.endswith(threads[0])]
    at = {p.k for p in points if p.row != "ours"}
    who = [BEST, "the published index"] if k in at else None
    out = [
        f"How many times as fast as the best peer does search find the same share of the true neighbors? Here k = {k} "
        f"on {threads[0]}; {about['keys']:,} keys of {about['dim']} dimensions.\n",
        ratios(points, k, first, who),
        "Queries a second, ours over the peer's, within the memory of the peer where ours reaches the recall so. *The "
        "published index* is IVF4096,PQ64 with nprobe 32, that of the kNN-LM systems before. Every setting that "
        "was measured, of each k, is in the CSV beside this file.\n",
        pictures(name, k, first),
        *default(record),
        f"## Against every kind of peer: k = {k}, {threads[0]}\n",
        ratios(points, k, first),
        "A recall that no peer of a kind reaches has no row.\n",
    ]
    for speed in first:
        out += [f"### The settings behind it: {batch_text(speed)}\n", settings(points, k, speed)]
    for other in (n for n in reversed(ks)):
        for count in threads:
            if (other, count) != (k, threads[0]) and any(p.k == other for p in points):
                chosen = [s for s in speeds if s.endswith(count)]
                out += [f"## k = {other}, {count}\n", ratios(points, other, chosen)]
                if other == k:
                    out.append(pictures(name, k, chosen))
    out += [*asked(record), *timed([p for p in points if p.k == k], first), *builds(record, points)]
    if record["failed"]:
        out.append("Left out: " + "; ".join(f"{s}: {e}" for s, e in record["failed"].items()) + "\n")
    out.append(
        f"Recall of timed settings on {about['queries']:,} held-out queries, others {about['swept']:,}; keys at equal "
        f"distances count as each other. *Mass*: the share of the true neighbors' weights that was found; *total "
        f"variation*: of p_kNN against exact search. Speeds: median of {about['repeats']} rounds in turn; a call that "
        "would take a slow setting too long has fewer queries than its batch, but no fewer than "
        f"{about['smallest']} (the CSV says how many).\n"
    )
    return out


def pictures(name: str, k: int, speeds: Sequence[str]) -> str:
    """The plots of one k."""
    return "\n".join(f"![k = {k}, {speed}]({picture(Path(name), k, speed).name})" for speed in speeds) + "\n"


def default(record: dict[str, Any]) -> list[str]:
    """What the default search costs beside exact search."""
    out, truth = [], record["truth"]
    if record.get("default"):
        d = record["default"]
        cells = [f"{d[q]:.4f}" for q in ("recall", "mass", "variation", "perplexity", "exact")]
        head = ["search", "recall", "mass", "total variation", "perplexity", "of exact search", "change"]
        change = tables.percent(d["perplexity"] / d["exact"], 3)
        out += [
            f"## What the default search costs ({d['queries']:,} queries)\n",
            tables.markdown(head, [["default", *cells, change]]),
        ]
    if np.isfinite(truth["exact"]):
        out.append(
            f"Perplexity of the {record['about']['queries']:,} queries that are timed: LM {truth['lm']:.2f}, kNN-LM "
            f"with exact neighbors {truth['exact']:.3f} (lambda {truth['lambda']:.2f}, T {truth['temperature']:.3g}, "
            f"k {truth['k']}, tuned on other queries).\n"
        )
    return out


def ordered(speeds: set[str]) -> list[str]:
    """Ways of asking: one thread before two, single queries before batches."""

    def numbers(speed: str) -> tuple[int, int]:
        batch, threads = speed.removeprefix("batch ").split(", ")
        return int(threads.partition(" ")[0]), int(batch)

    found = sorted(map(numbers, speeds))
    return [way(batch, threads) for threads, batch in found]
