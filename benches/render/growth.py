"""Latency and build of a growing store (growth.py)."""

from __future__ import annotations

from typing import Any

import tables

LATENCY = {"p50_us": "p50, µs", "p99_us": "p99, µs", "batch_queries_a_second": "queries/s at once"}
BUILD = {
    "train_seconds": "train, s",
    "train_cpu_seconds": "train, CPU s",
    "add_seconds": "add, s",
    "add_cpu_seconds": "add, CPU s",
    "calibrate_cpu_seconds": "calibrate, CPU s",
    "peak_private_MB": "private MB",
}
SIZE = {"nlist": "lists", "bytes_per_entry": "bytes an entry"}
FITTED = {
    "p50_us": "p50 of a query",
    "batch_seconds": "a query in a batch",
    "p99_us": "p99",
    "train_cpu_seconds": "train, CPU seconds",
    "add_cpu_seconds": "add, CPU seconds",
}


def title(record: dict[str, Any]) -> str:
    """The head of the page."""
    return f"Growth: {record['set']}, {record['dim']} dimensions"


def sections(record: dict[str, Any]) -> list[str]:
    """The page below its title."""
    rows = record["rows"]
    name = f"growth-{record['set']}-{record['dim']}"

    def table(columns: dict[str, str]) -> str:
        cells = [[f"{r['entries']:,}", *(figure(c, r[c]) for c in columns)] for r in rows]
        return tables.markdown(["entries", *columns.values()], cells)

    out = [
        f"How do latency at recall {record['goal']:.2f} or more and build time grow with the number of entries?\n",
        table({"recall": "recall", "asked": "asked", **LATENCY}),
    ]
    if len(rows) > 1:
        fits = record["exponents"]
        out += [
            "Time grows as a power of the number of entries, with these exponents fitted:\n",
            tables.markdown(["grows", "exponent"], [[FITTED[c], f"{fits[c]:.2f}"] for c in FITTED]),
            f"![growth]({name}.svg)\n",
        ]
    return [
        *out,
        "## The build\n",
        table(BUILD),
        "## The index\n",
        table(SIZE),
        f"Entries of {record['dim']} dimensions: keys of {record['set']} resampled with noise; {record['queries']} "
        f"held-out queries, k = {record['k']}, one thread; builds on {record['threads']}.\n",
    ]


def figure(name: str, value: float) -> str:
    """As many digits as say something."""
    digits = 4 if name == "recall" else 2 if name == "asked" else 1 if "seconds" in name or "bytes" in name else 0
    return f"{value:,.{digits}f}"
