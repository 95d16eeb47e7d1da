"""Very many entries under a memory limit (fifty_million.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import tables


def title(record: dict[str, Any]) -> str:
    """The head of the page."""
    return f"{record['entries']:,} entries under a memory limit"


def sections(record: dict[str, Any]) -> list[str]:
    """The page below its title."""
    phases = [[name, p["minutes"], p["cpu_minutes"], f"{p['private_MB']:,}"] for name, p in record["phases"].items()]
    searches = [[name, *(f"{value:,.4g}" for value in s.values())] for name, s in record["search"].items()]
    limit = record["cgroup"].get("limit_MB", np.inf)
    limited = f"{limit:,.0f} MB of memory, page cache included" if limit < 1e6 else "memory that is not limited"
    recall = next((name for s in record["search"].values() for name in s if name.startswith("recall")), "recall")
    return [
        f"What does a store of {record['entries']:,} entries take to build, to keep and to search with {limited}? "
        f"{record['minutes']:.0f} minutes in all.\n",
        tables.markdown(["phase", "minutes", "processor minutes", "private MB"], phases),
        "## Its searches\n",
        tables.markdown(["search", recall, "p50, ms", "p99, ms"], searches),
        f"{record.get('dim', 256)} dimensions, {record.get('queries', 200)} queries one at a time, "
        f"{record['bytes_per_entry']:.1f} bytes an entry on disk; `verify` found {len(record['problems'])} problems. "
        "Build and append include making the entries and comparing them with the queries.\n",
    ]
