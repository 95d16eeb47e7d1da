"""Pairs: parallel text, a source and its translation; from two files with a line each, TSV or JSONL, or at hand."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from knnlm.text.decoding import decode_text, read_whole, too_large
from knnlm.text.sources import opened
from knnlm.text.unpacking import FORMATS, DamagedError, Unpacked

MOST = 1 << 30
"""Bytes of a file, unpacked: it is held in memory."""


@dataclass(frozen=True)
class Pair:
    """A sentence, or a longer text, and its translation. name: file and line that it came from."""

    source: str
    target: str
    name: str = ""


@dataclass
class PairReport:
    """What was left out of parallel text: (name, why)."""

    skipped: list[tuple[str, str]] = field(default_factory=list)


def read_pairs(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    source_field: str = "source",
    target_field: str = "target",
    report: PairReport | None = None,
) -> list[Pair]:
    """Parallel text of two files that correspond line by line, or of one .tsv or .jsonl file; each may be packed.

    A pair of which a side is empty is left out, and the report says so; names keep the numbers of lines.

    Raises:
        FileNotFoundError: no such file.
        ValueError: files of unequal lengths, a file that cannot be read, a row that is no pair.
    """
    report = PairReport() if report is None else report
    name = Path(source).name
    if target is not None:
        left, right = read_lines(source), read_lines(target)
        if len(left) != len(right):
            raise ValueError(
                f"parallel text: expected as many lines in {target} as in {source}, {len(left):,}, found "
                f"{len(right):,}: line n of one is the translation of line n of the other"
            )
        rows: Iterable[tuple[str, str]] = zip(left, right, strict=True)
    else:
        rows = _rows(source, source_field, target_field)
    return list(_kept(rows, name, report))


def as_pairs(given: Iterable[Any]) -> list[Pair]:
    """Pairs that are at hand: `Pair`, or (source, target). Raises TypeError for what is none, ValueError for empty."""
    found = []
    for number, item in enumerate(given, 1):
        if isinstance(item, Pair):
            found.append(item if item.name else Pair(item.source, item.target, f"pair {number}"))
        elif isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(side, str) for side in item):
            found.append(Pair(item[0], item[1], f"pair {number}"))
        else:
            raise TypeError(f"pairs: expected (source, target), found a {type(item).__name__} at {number}")
        if not found[-1].source.strip() or not found[-1].target.strip():
            raise ValueError(f"pairs: expected text on both sides, found pair {number} with an empty one")
    return found


def _kept(rows: Iterable[tuple[str, str]], name: str, report: PairReport) -> Iterator[Pair]:
    for number, (source, target) in enumerate(rows, 1):
        if source.strip() and target.strip():
            yield Pair(source.strip(), target.strip(), f"{name}#{number}")
        elif source.strip() or target.strip():
            report.skipped.append((f"{name}#{number}", "one side is empty"))


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Lines of a text file, packed or not; only a line feed ends one."""
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"parallel text: expected a file, found nothing at {place}")
    packed = FORMATS.get(place.suffix.lower())
    try:
        with os.fdopen(opened(place), "rb") as raw:
            file: Any = raw if packed is None else io.BufferedReader(Unpacked(raw, packed))
            data = read_whole(file, MOST)
    except DamagedError as error:
        raise ValueError(f"{place}: {error}") from error
    if data is None:
        raise ValueError(f"{place}: {too_large(MOST)}: cut it into several")
    text, notes = decode_text(data)
    if text is None:
        raise ValueError(f"{place}: expected text, found {notes[0]}")
    lines = text.split("\n")
    return [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _rows(path: str | os.PathLike[str], source_field: str, target_field: str) -> Iterator[tuple[str, str]]:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    kind = next((suffix for suffix in (".tsv", ".jsonl") if suffix in suffixes), None)
    if kind is None:
        raise ValueError(
            f"parallel text: expected two files, or one .tsv or .jsonl file, found {path} alone: give the translation, "
            "too (in commands --target)"
        )
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            yield "", ""
        elif kind == ".jsonl":
            yield _row_of(line, f"{path}, line {number}", source_field, target_field)
        else:
            cells = line.split("\t")
            if len(cells) < 2:
                raise ValueError(f"{path}, line {number}: expected source and target with a tab between, found one")
            yield cells[0], cells[1]


def _row_of(line: str, where: str, source_field: str, target_field: str) -> tuple[str, str]:
    """Source and target of a line of JSONL."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: expected a JSON object, found: {error}") from error
    sides = [row.get(name) if isinstance(row, dict) else None for name in (source_field, target_field)]
    source, target = sides
    if not isinstance(source, str) or not isinstance(target, str):
        raise ValueError(
            f"{where}: expected text in the fields {source_field!r} and {target_field!r}, found {line[:80]}"
        )
    return source, target
