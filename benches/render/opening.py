"""Opening a store (opening.py)."""

from __future__ import annotations

from typing import Any

import tables


def title(_: dict[str, Any]) -> str:
    """The head of the page."""
    return "Opening a store"


def sections(record: dict[str, Any]) -> list[str]:
    """The page below its title."""
    head = ("entries", "open, ms", "info, ms", "first search, ms", "all three, ms", "private memory of open, MB")
    lines = [
        (
            f"{r['entries']:,}",
            *(f"{1000 * r[name]:.1f}" for name in ("open", "info", "search")),
            f"{1000 * (r['open'] + r['info'] + r['search']):.1f}",
            f"{r['private'] / 1e6:.1f}",
        )
        for r in record["rows"]
    ]
    return [
        "How long does it take to open a store, to be told what is in it, and to search it for the first time?\n",
        tables.markdown(head, lines),
        f"Keys of {record['dim']} dimensions, files in the page cache, k = 1024, medians over fresh processes.\n",
    ]
