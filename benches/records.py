"""Writes the pages of all records again from their data, and the README's table; nothing is measured.

    python benches/records.py [FOLDER]

FOLDER (benches/record by default) holds NAME.json, as the benchmarks wrote it; NAME.md is made beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import tables
from render import (
    engine,
    fifty_million,
    growth,
    kernels,
    larger_than_memory,
    opening,
    perplexity,
    readers,
    readme,
    recall,
    representations,
    store_quality,
)

KINDS: dict[str, ModuleType] = {
    "engine-": engine,
    "fifty-million": fifty_million,
    "growth-": growth,
    "kernels": kernels,
    "larger-than-memory": larger_than_memory,
    "opening": opening,
    "perplexity-": perplexity,
    "readers": readers,
    "recall-": recall,
    "representations-": representations,
    "store-quality-": store_quality,
}


def page(path: Path) -> str:
    """The Markdown of a record.

    Raises:
        ValueError: no benchmark writes a record of this name.
    """
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kind = next((module for start, module in KINDS.items() if path.stem.startswith(start)), None)
    if kind is None:
        raise ValueError(f"expected a record that begins with one of {', '.join(KINDS)}, found {path.name}")
    return tables.page(kind.title(record), record, kind.sections(record))


def main(arguments: Sequence[str]) -> int:
    """Command line."""
    folder = Path(arguments[0]) if arguments else tables.ROOT / "benches" / "record"
    for path in sorted(folder.glob("*.json")):
        path.with_suffix(".md").write_text(page(path), encoding="utf-8")
    file = tables.ROOT / "README.md"
    file.write_text(readme.with_tables(file.read_text(encoding="utf-8"), folder), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
