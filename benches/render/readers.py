"""Readers beside a writer (readers.py)."""

from __future__ import annotations

from typing import Any

import tables


def title(_: dict[str, Any]) -> str:
    """The head of the page."""
    return "Readers beside a writer"


def sections(record: dict[str, Any]) -> list[str]:
    """The page below its title."""
    about = record["about"]
    rows = [
        [name, f"{f['searches']:,}", f"{f['p50_ms']:.2f}", f"{f['p99_ms']:.1f}", f["generations_seen"]]
        for name, f in ((name, record[name]) for name in ("alone", "beside a writer"))
    ]
    did = [[name, f"{count:,}"] for name, count in record["beside a writer"]["writer"].items()]
    return [
        "How much slower are searches while another process writes, and is every answer one of a committed state? "
        f"Every answer was, or the run would have ended; `verify` found {len(record['problems'])} problems.\n",
        tables.markdown(["readers", "searches", "p50, ms", "p99, ms", "generations seen"], rows),
        "## What the writer did meanwhile\n",
        tables.markdown(["operation", "times"], did),
        f"{about['readers']} reader processes without pause on {about['documents']} documents of {about['entries']} "
        f"entries, {about['minutes']:g} minutes of them beside a writer.\n",
    ]
