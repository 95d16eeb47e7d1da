"""Files, folders, globs, JSONL and Hugging Face data sets in, documents out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

SPLIT_PATTERNS = {
    "wikitext": r"(?:(?<=\A \n)|(?<=\n \n)) = [^=].* = $(?=\n \n)",
    "pep": r"^PEP: \d+$",
    "chapter": r"^(?:CHAPTER|Chapter|ADVENTURE|BOOK|Book) (?:[IVXLC]+|\d+)\b.*$|^[IVXL]+\. +[A-Z].*$",
    "markdown": r"^# .*$",
}


@dataclass(frozen=True)
class Document:
    """One text with a name."""

    name: str
    text: str
    metadata: dict[str, Any] | None = None


def split_text(text: str, pattern: str) -> list[str]:
    starts = [m.start() for m in re.finditer(pattern, text, re.MULTILINE)]
    if not starts or text[: starts[0]].strip():
        starts.insert(0, 0)
    else:
        starts[0] = 0
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
