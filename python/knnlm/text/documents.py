"""Files, folders, globs, JSONL and Hugging Face data sets in, documents out.

A source is read lazily and in a fixed order. What cannot be read as text is skipped and said so in a `ReadReport`;
what was changed on the way (bytes that are no UTF-8, a byte-order mark, CRLF, numbers that JSON does not have) is noted
there: whatever the bytes, reading goes on. Names are relative to the source that was given, so a store says nothing
about the machine it was made on. Next: `tokenizer.py` turns text to ids.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from knnlm.system.counted import counted
from knnlm.system.extras import module
from knnlm.system.terminal import printable
from knnlm.text.decoding import EMPTY, decode_text, lines_of, read_whole, too_large
from knnlm.text.rows import Rows
from knnlm.text.sources import files_of, opened, origin_of, size_of
from knnlm.text.unpacking import FORMATS, DamagedError, Unpacked

SPLIT_PATTERNS = {
    # a level-1 title alone between two lines of one blank; formulas also begin with " = "
    "wikitext": r"(?:(?<=\A \n)|(?<=\n \n)) = [^=].* = $(?=\n \n)",
    "pep": r"^PEP: \d+$",
    "chapter": r"^(?:CHAPTER|Chapter|ADVENTURE|BOOK|Book) (?:[IVXLC]+|\d+)\b.*$|^[IVXL]+\. +[A-Z].*$",
    "markdown": r"^# .*$",
}
"""Ready patterns for ``split_pattern``, by name."""

MAX_DOCUMENT_BYTES = 2**30
"""The most for one document, unpacked, unless asked for more: a few packed megabytes can hold more than any memory."""

NAMED = "#name:"
"""Between a file and the name of a row of it, in the name of a `Document.place`."""

_JSONL = (".jsonl", ".ndjson")
_NO_JSON = 1000  # lines at the beginning of a file: if none of them holds an object, it is no JSONL
_LISTED = 20  # lines of one kind in a report


@dataclass(frozen=True)
class Document:
    """One text with a name that is unique among those read together.

    place: the source it was read from (`sources.origin_of`), and its name among the documents of that source: the file
    and the number of a row or part, or for a row with a name of its own the file, `NAMED` and that name. named: whether
    its name is that of a field.
    """

    name: str
    text: str
    metadata: dict[str, Any] | None = None
    place: tuple[str, str] | None = field(default=None, compare=False, repr=False)
    named: bool = field(default=False, compare=False, repr=False)


@dataclass
class ReadReport:
    """What was read, and what was not; filled while `read_documents` is iterated."""

    documents: int = 0
    bytes: int = 0  # of UTF-8 text in these documents
    skipped: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    notes: list[tuple[str, str]] = field(default_factory=list)  # name, what was changed
    position: float = 0.0  # bytes on disk that are read, of `size`
    size: int = 0  # bytes on disk of all sources; 0 where a data set of unknown size is among them
    _again: Counter[tuple[str, str]] = field(default_factory=Counter, init=False, repr=False)  # by file and note

    def note(self, name: str, changed: str) -> None:
        """Note a change; the same one in another row of a file only counts."""
        key = (_file_of(name), changed)
        self._again[key] += 1
        if self._again[key] == 1:
            self.notes.append((name, changed))

    @property
    def share(self) -> float:
        """How much of the sources is read, 0 to 1; 0 where that is not known."""
        return min(1.0, self.position / self.size) if self.size else 0.0

    def unread(self) -> Callable[[str], bool]:
        """Tells of a name whether it, its file or a folder of it was skipped: nobody knows what is there then.

        Of an empty one everybody knows. Any row that was skipped may have been one with a name of its own.
        """
        skipped = {name.rstrip("/") for name, reason in self.skipped if reason != EMPTY}
        if "." in skipped:  # a source of which nothing could be listed
            return lambda name: True
        files = {_file_of(name) for name in skipped}

        def told(name: str) -> bool:
            file, named, _ = name.partition(NAMED)
            within = any(name[: cut.start()] in skipped for cut in re.finditer("[#/]", name))
            return name in skipped or within or (bool(named) and file in files)

        return told

    def noted(self) -> list[tuple[str, str]]:
        """Name and what was changed, with the number of other rows of the file where it was the same."""
        more = {key: count - 1 for key, count in self._again.items() if count > 1}
        return [
            (name, f"{what} (and in {counted(more[file, what], 'other row')})" if (file, what) in more else what)
            for name, what, file in ((name, what, _file_of(name)) for name, what in self.notes)
        ]

    def lines(self) -> list[str]:
        """The report for people: one line of totals, then the first of each kind."""
        out = [f"read {counted(self.documents, 'document')}, {counted(self.bytes, 'byte')} of text"]
        for kind, entries in (("skipped", self.skipped), ("note", self.noted())):
            out += [printable(f"{kind}: {name}: {reason}") for name, reason in entries[:_LISTED]]
            if len(entries) > _LISTED:
                out.append(f"{kind}: and {len(entries) - _LISTED:,} more")
        return out

    def unlisted(self) -> Iterator[tuple[str, str, str]]:
        """What `lines` only counts: kind, name and reason."""
        for kind, entries in (("skipped", self.skipped), ("note", self.noted())):
            yield from ((kind, name, reason) for name, reason in entries[_LISTED:])


def read_documents(
    sources: Sequence[str | os.PathLike[str]],
    *,
    text_field: str = "text",
    name_field: str | None = None,
    split_pattern: str | None = None,
    split: str = "train",
    follow_links: bool = False,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """Read all documents of ``sources``, in order; inside a folder or glob in order of path.

    A source, read once however often it is given, is a file, a folder (searched through, hidden files left out), a
    glob, or ``hf:NAME[:config]`` for a Hugging Face data set (a hub name or a local folder), of which ``split`` is
    read. A file of several sources belongs to the first. Links in a folder or glob are followed to files of the same
    source only, unless ``follow_links``. ``.gz``, ``.bz2``, ``.xz`` and ``.zst`` are unpacked. ``.jsonl`` and
    ``.ndjson`` hold one object a line, with the text in ``text_field`` and the other fields as metadata; a row is named
    by ``name_field`` (unless given, by the first of `NAME_FIELDS` that holds a short text or a whole number), a second
    one of that name "name (2)", and without a name by its file and line. Any other file is one document; with
    ``split_pattern`` (a key of `SPLIT_PATTERNS` or a regular expression) every line that matches starts a new one. A
    file, line or row of more than ``max_document_bytes`` (unpacked) is skipped. A `StandardInput` is a source, too.

    Raises FileNotFoundError for a source that is not there, ValueError for a pipe or device, a bad pattern, one that
    matches the empty text, or a missing column, MissingPackageError for a data set or a ``.zst`` file without the
    package that reads it. Anything else is skipped and reported.
    """
    report = ReadReport() if report is None else report
    if max_document_bytes < 1:
        raise ValueError(f"max_document_bytes: expected 1 or more, found {max_document_bytes}")
    pattern = None if split_pattern is None else _compile(split_pattern)
    names, rows = _Names(), Rows(text_field, max_document_bytes, name_field)
    if isinstance(sources, (str, Path)):
        raise TypeError(f"expected a list of sources, found one: {sources!r}")
    origins = {origin_of(source, split): source for source in sources}  # each once
    # All are listed first: one that is not there is an error before hours of work, and the size is known.
    listed = [None if str(one).startswith("hf:") else files_of(one, follow_links) for one in origins.values()]
    taken: dict[Path, str] = {}
    for listing, source in zip(listed, origins.values(), strict=True):
        if listing is not None:
            listing.without(taken, str(source))
            report.skipped += listing.unlisted
            report.notes += listing.notes
    if None not in listed:
        report.size = sum(size_of(path) for one in listed if one is not None for path, _ in one.files)
    for (origin, source), listing in zip(origins.items(), listed, strict=True):
        if listing is None:
            found = _read_data_set(str(source)[3:], rows, text_field, split, report)
        else:
            found = _read_paths(listing.files, rows, pattern, max_document_bytes, report)
        files: dict[str, str] = {}  # by their names in this source: names among all that are read
        for document in found:
            report.documents += 1
            report.bytes += len(document.text.encode())
            if document.named:
                own = document.name.partition(NAMED)[2]
                yield replace(document, name=names.take(own), place=(origin, document.name))
                continue
            file = _file_of(document.name)
            if file not in files:
                files[file] = names.take(file)
            yield replace(document, name=files[file] + document.name[len(file) :], place=(origin, document.name))


def split_text(text: str, pattern: str | re.Pattern[str]) -> list[str]:
    """Cut ``text`` in front of every line that matches; joined, the parts are the text.

    A match belongs to the line of its first character that is no line end. A part without any text belongs to the one
    before it, at the beginning to the first.
    """
    found = (_compile(pattern) if isinstance(pattern, str) else pattern).finditer(text)
    firsts = (match.end() - len(match[0].lstrip("\n")) for match in found)
    starts = list(dict.fromkeys(text.rfind("\n", 0, first) + 1 for first in firsts))  # of lines
    ends = [*starts, len(text)][1:]
    filled = [start for start, end in zip(starts, ends, strict=True) if _SHOWN.search(text, start, end)]
    if filled and not _SHOWN.search(text, 0, filled[0]):
        filled[0] = 0
    cuts = [0, *(start for start in filled if start), len(text)]
    return [text[a:b] for a, b in pairwise(cuts) if a < b]


class _Names:
    """Gives every file and named row a name of its own; numbers after ``#`` are left to the parts of a file."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._number: dict[str, int] = {}  # the last of each name that was wanted again

    def take(self, wanted: str) -> str:
        base = wanted = re.sub(r"#(\d+)$", r"# \1", wanted)
        number = self._number.get(wanted, 1)
        while base in self._used:
            number += 1
            base = f"{wanted} ({number})"
        if number > 1:
            self._number[wanted] = number
        self._used.add(base)
        return base


_SHOWN = re.compile(r"\S")


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(SPLIT_PATTERNS.get(pattern, pattern), re.MULTILINE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"expected a regular expression or one of {', '.join(SPLIT_PATTERNS)} to split documents, "
            f"found {pattern!r}: {error}"
        ) from error
    if compiled.match(""):
        raise ValueError(
            f"expected a regular expression of what is in the first line of a document, found {pattern!r}, which "
            "matches where there is nothing: every line would be a document"
        )
    return compiled


def _file_of(name: str) -> str:
    """The name of the file that a document was read from: its own without the number of a row or part."""
    return re.sub(r"#\d+$", "", name)


def _read_paths(
    paths: Iterable[tuple[Path, str]],
    rows: Rows,
    pattern: re.Pattern[str] | None,
    most: int,
    report: ReadReport,
) -> Iterator[Document]:
    names = _Names()
    for path, relative in paths:
        name = names.take(relative)
        before, size = report.position, size_of(path)
        shown = Path(relative.lower())  # of a link, that has the name
        packed = FORMATS.get(shown.suffix)
        suffix = shown.suffix if packed is None else Path(shown.stem).suffix
        try:
            with os.fdopen(opened(path), "rb") as raw:
                unpacked = None if packed is None else Unpacked(raw, packed)
                file: Any = raw if unpacked is None else io.BufferedReader(unpacked)
                if suffix in _JSONL:
                    for document in _read_lines(file, name, rows, most, report):
                        report.position = before + min(size, raw.tell())
                        yield document
                else:
                    for document, share in _read_text(file, name, pattern, most, report):
                        report.position = before + size * share
                        yield document
                if unpacked is not None and unpacked.trailing:
                    what = unpacked.format.name
                    report.note(name, f"{counted(unpacked.trailing, 'byte')} after the end of the {what} data left out")
        except DamagedError as error:
            report.skipped.append((name, str(error)))
        except OSError as error:  # no permission, a device, gone since it was listed
            report.skipped.append((name, f"cannot be read: {error.strerror or error}"))
        report.position = before + size


def _read_text(
    file: BinaryIO, name: str, pattern: re.Pattern[str] | None, most: int, report: ReadReport
) -> Iterator[tuple[Document, float]]:
    """Documents of a text, and how much of it each and those before it are, 0 to 1."""
    data = read_whole(file, most)
    text, notes = (None, [too_large(most)]) if data is None else decode_text(data)
    del data
    if text is None:
        report.skipped.append((name, notes[0]))
        return
    for note in notes:
        report.note(name, note)
    if pattern is None:
        yield Document(name, text), 1.0
        return
    parts = split_text(text, pattern)
    if len(parts) == 1 and not pattern.search(text):
        report.note(name, "no line matches split_documents (in commands --split-documents): read as one document")
    done = 0
    for number, part in enumerate(parts, 1):
        title = next((line.strip() for line in part.split("\n", 8) if line.strip()), "")
        done += len(part)
        yield Document(f"{name}#{number}", part, {"title": title[:200]}), done / len(text)


def _read_lines(file: io.BufferedReader, name: str, rows: Rows, most: int, report: ReadReport) -> Iterator[Document]:
    names = _Names()
    empty, objects = True, 0
    bad: list[tuple[str, str]] = []  # before the first object
    for number, line, reason in lines_of(file, most):
        if line is not None and not line.strip():
            continue
        empty = False
        line_name = f"{name}#{number}"
        row = reason if line is None else rows.parsed(line)
        objects += not isinstance(row, str)
        if not objects:
            bad.append((line_name, str(row)))
            if len(bad) == _NO_JSON:
                report.skipped.append(
                    (name, f"no JSON object in its first {counted(len(bad), 'line')}; the first: {bad[0][1]}")
                )
                return
            continue
        report.skipped += bad
        bad = []
        if isinstance(row, str):
            report.skipped.append((line_name, row))
            continue
        document = _from_row(rows, row, line_name, names, report)
        if document is not None:
            yield document
    report.skipped += bad
    if empty:
        report.skipped.append((name, EMPTY))


def _from_row(rows: Rows, row: Any, name: str, names: _Names, report: ReadReport) -> Document | None:
    """A document from one row; what was changed in it, or why it is none, is reported."""
    found = rows.read(row)
    if isinstance(found, str):
        report.skipped.append((name, found))
        return None
    for note in found.notes:
        report.note(name, note)
    if found.name is None:
        return Document(name, found.text, found.metadata)
    return Document(_file_of(name) + NAMED + names.take(found.name), found.text, found.metadata, named=True)


def _read_data_set(name: str, reader: Rows, text_field: str, split: str, report: ReadReport) -> Iterator[Document]:
    datasets = module("datasets", f"hf:{name}")
    where, _, config = name.partition(":")
    folder = Path(where)
    saved = folder.is_dir() and any((folder / f).is_file() for f in ("dataset_info.json", "dataset_dict.json"))
    if saved:
        rows = datasets.load_from_disk(where)
        if hasattr(rows, "keys"):
            if split not in rows:
                raise ValueError(f"expected the split {split!r} in hf:{name}, found {', '.join(rows.keys())}")
            rows = rows[split]
    else:
        rows = datasets.load_dataset(where, config or None, split=split, streaming=True)
    columns = rows.column_names
    if columns is not None and text_field not in columns:
        raise ValueError(f"expected the column {text_field!r} in hf:{name}, found {', '.join(columns)}")
    shown = folder.resolve().name if folder.exists() else where
    base = _Names().take(f"{shown}/{config}/{split}" if config else f"{shown}/{split}")
    names, waiting = _Names(), enumerate(rows, 1)
    number = 0
    while True:
        try:
            number, row = next(waiting)
        except StopIteration:
            return
        except Exception as error:  # a broken file of the set, a column that cannot be decoded, the network
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            report.skipped.append((base, f"cannot be read beyond row {number:,}: {why}"))
            return
        document = _from_row(reader, row, f"{base}#{number}", names, report)
        if document is not None:
            yield document
