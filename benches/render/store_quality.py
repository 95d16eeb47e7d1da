"""Codes only, and a store grown by appending (store_quality.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import tables


def title(record: dict[str, Any]) -> str:
    """The head of the page."""
    return f"Codes only, and grown by appending: {record['corpus']}"


def sections(record: dict[str, Any]) -> list[str]:
    """The page below its title."""
    rows, (part, tokens), lm = record["rows"], record["tokens"], record["lm_perplexity"]
    all_tokens = [row for row in rows if "perplexity" in row]
    out = [
        "What do codes alone, and growth by appending, cost in perplexity? Beside a store that re-ranks with its raw "
        "keys:\n",
        tables.markdown(
            ["store", "bytes an entry", "perplexity", "change"],
            [
                [
                    row["store"],
                    f"{row['bytes_per_entry']:.1f}",
                    f"{row['perplexity']:.3f}",
                    change(row, all_tokens[0], "perplexity"),
                ]
                for row in all_tokens
            ],
        ),
        f"All {tokens:,} test tokens; without a store {lm[1]:.2f}. Bytes: all on disk, documents and values, too.\n",
        "## Against exact search\n",
        tables.markdown(
            ["store", "perplexity", "change"],
            [
                [
                    row["store"],
                    f"{row['part_perplexity']:.3f}",
                    change(row, rows[0], "part_perplexity"),
                ]
                for row in rows
            ],
        ),
        f"The first {part:,} test tokens; without a store {lm[0]:.2f}.\n",
        "## What an append costs, and what it leaves\n",
        *appending(record),
        f"Model: {record['model']}. {record['entries']:,} entries; lambda {record['lambda']:.3f}, T "
        f"{record['temperature']:.3g}, k {record['k']} for all rows, tuned with exact search. Searches of stores "
        "without raw keys use their defaults.\n",
    ]
    return out


def change(row: dict[str, Any], base: dict[str, Any], name: str) -> str:
    """Change of a perplexity against that of another row; none against its own."""
    return "" if row is base else tables.percent(row[name] / base[name], 2)


def appending(record: dict[str, Any]) -> list[str]:
    """Seconds of an append and of a rebuild; search times of both stores at equal recall."""
    appends, rebuild, rows = record["appends"], record["rebuild"], record["rows"]
    clocks = ("seconds", "cpu_seconds")
    spent = [
        ["an append, on average", *(f"{np.mean([a[c] for a in appends]):.2f}" for c in clocks)],
        ["the slowest append", *(f"{max(a[c] for a in appends):.2f}" for c in clocks)],
        *([f"build: {row['store']}", *(f"{row[c]:.0f}" for c in clocks)] for row in rows if "seconds" in row),
    ]
    times = [rebuild[c] / float(np.mean([a[c] for a in appends])) for c in clocks]
    found = {goal: s for goal, s in record["searches"].items() if s is not None}
    lines, beside = [], []
    for goal, s in found.items():
        a, b = s["rebuilt"], s["grown"]
        ratio, medians = (b[name] / a[name] for name in ("milliseconds", "median_milliseconds"))
        lines.append([goal, f"{a['milliseconds']:.3f}", f"{b['milliseconds']:.3f}", f"{ratio:.2f}", f"{medians:.2f}"])
        beside.append([goal, a["nprobe"], b["nprobe"]])
    return [
        tables.markdown(["operation", "seconds", "CPU seconds"], spent),
        f"Appends of {np.mean([a['entries'] for a in appends]):,.0f} entries on average, model time left out; a "
        f"rebuild takes {times[0]:.0f} times as long by the clock, {times[1]:.0f} by CPU time. After {len(appends)} "
        f"of them {record['grown']['lists_segments']} lists segments, drift {100 * record['grown']['drift']:.1f} %.\n",
        "Milliseconds of one core a query, of the rebuilt store and of the grown one, at equal recall:\n",
        tables.markdown(["recall", "rebuilt, ms", "grown, ms", "ratio", "ratio of medians"], lines),
        tables.markdown(["recall", "nprobe, rebuilt", "nprobe, grown"], beside),
        f"The least nprobe that reaches a recall@{record['k']} against exact search; {record['queries']} test keys, "
        f"the fastest of {record.get('rounds', 15)} rounds by turns.\n",
    ]
