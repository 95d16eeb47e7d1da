"""Stores larger than the memory that they may use (larger_than_memory.py)."""

from __future__ import annotations

from typing import Any

import tables

TIMES = {"p50_ms": "p50, ms", "p99_ms": "p99, ms", "cold_p50_ms": "first pass p50, ms", "cold_p99_ms": "its p99, ms"}


def title(_: dict[str, Any]) -> str:
    """The head of the page."""
    return "Stores larger than memory"


def sections(record: dict[str, Any]) -> list[str]:
    """The page below its title: under the limit, then without one, then what was read."""
    limit, about = record["limit"], record["about"]
    limited, free = ([r for r in record["rows"] if r["limited"] == which] for which in (True, False))
    out = [
        f"How long does a query take when the store is larger than memory? Memory, page cache included, is limited to "
        f"{limit / 1e6:,.0f} MB, {100 * about['share']:.0f} % of a store of {about['MB']:,} MB.\n"
    ]
    if limited:
        out += [table(limited), "## The same without a limit\n"]
    if free:
        out.append(table(free))
    lines = [
        [name(r), f"{limit / 1e6:,.0f}" if r["limited"] else "none", r["MB"], *read]
        for r in record["rows"]
        if (read := reading(r))
    ]
    head = ["index, setting", "limit, MB", "index, MB", "major faults a query", "kB read a query"]
    out += ["## What a query reads\n", tables.markdown(head, lines)]
    out += [f"{name(r)}: {r['failed']}.\n" for r in record["rows"] if "failed" in r]
    out.append(f"Single queries, one thread, k = {about['k']}, {about['queries']} queries three times.\n")
    return out


def name(row: dict[str, Any]) -> str:
    """An index and how it was asked."""
    return f"{row['index']}, {', '.join(f'{n} {v}' for n, v in row['setting'].items())}"


def reading(row: dict[str, Any]) -> list[str]:
    """Major faults and kilobytes of a query."""
    if "failed" in row:
        return []
    return [f"{row['major_faults_a_query']:.1f}", f"{row['kB_read_a_query']:,.0f}"]


def table(rows: list[dict[str, Any]]) -> str:
    """Recall and milliseconds."""
    cells = [[name(r), f"{r['recall']:.4f}", *(f"{r[c]:.2f}" for c in TIMES)] for r in rows if "failed" not in r]
    return tables.markdown(["index, setting", "recall", *TIMES.values()], cells)
