"""Files, folders, globs, JSONL and Hugging Face data sets in, documents out.

A source is read lazily and in a fixed order. What cannot be read as text is skipped and said so in a `ReadReport`;
what was changed on the way (bytes that are no UTF-8, a byte-order mark, CRLF) is noted there. Names are relative to the
source that was given, so a store says nothing about the machine it was made on. Next: `tokens.py` turns text to ids.
"""

from __future__ import annotations

import gzip
import importlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from knnlm.sources import files_of, origin_of, size_of

SPLIT_PATTERNS = {
    # a level-1 title alone between two lines of one blank; formulas also begin with " = "
    "wikitext": r"(?:(?<=\A \n)|(?<=\n \n)) = [^=].* = $(?=\n \n)",
    "pep": r"^PEP: \d+$",
    "chapter": r"^(?:CHAPTER|Chapter|ADVENTURE|BOOK|Book) (?:[IVXLC]+|\d+)\b.*$|^[IVXL]+\. +[A-Z].*$",
    "markdown": r"^# .*$",
}
"""Ready patterns for ``split_pattern``, by name."""

_JSONL = (".jsonl", ".ndjson")
EMPTY = "empty"  # why a document without text is left out
_LISTED = 20  # lines of one kind in a report


@dataclass(frozen=True)
class Document:
    """One text with a name that is unique among those read together.

    place: the source it was read from (`sources.origin_of`), and its name among the documents of that source.
    """

    name: str
    text: str
    metadata: dict[str, Any] | None = None
    place: tuple[str, str] | None = field(default=None, compare=False, repr=False)


@dataclass
class ReadReport:
    """What was read, and what was not; filled while `read_documents` is iterated."""

    documents: int = 0
    bytes: int = 0  # of UTF-8 text in these documents
    skipped: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    notes: list[tuple[str, str]] = field(default_factory=list)  # name, what was changed
    position: float = 0.0  # bytes on disk that are read, of `size`
    size: int = 0  # bytes on disk of all sources; 0 where a data set of unknown size is among them

    @property
    def share(self) -> float:
        """How much of the sources is read, 0 to 1; 0 where that is not known."""
        return min(1.0, self.position / self.size) if self.size else 0.0

    def unread(self) -> Callable[[str], bool]:
        """Tells of a name whether it, its file or a folder of it was skipped: nobody knows what is there then.

        Of an empty one everybody knows.
        """
        skipped = {name.rstrip("/") for name, reason in self.skipped if reason != EMPTY}
        if "." in skipped:  # a source of which nothing could be listed
            return lambda name: True
        return lambda name: name in skipped or any(name[: cut.start()] in skipped for cut in re.finditer("[#/]", name))

    def lines(self) -> list[str]:
        """The report for people: one line of totals, then the first of each kind."""
        out = [f"read {self.documents:,} documents, {self.bytes:,} bytes of text"]
        for kind, entries in (("skipped", self.skipped), ("note", self.notes)):
            out += [f"{kind}: {name}: {reason}" for name, reason in entries[:_LISTED]]
            if len(entries) > _LISTED:
                out.append(f"{kind}: and {len(entries) - _LISTED:,} more")
        return out


def read_documents(
    sources: Sequence[str | Path],
    *,
    text_field: str = "text",
    split_pattern: str | None = None,
    split: str = "train",
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """Read all documents of ``sources``, in order; inside a folder or glob in order of path.

    A source, read once however often it is given, is a file, a folder (searched through, hidden files left out), a
    glob, or ``hf:NAME[:config]`` for a Hugging Face data set (a hub name or a local folder), of which ``split`` is
    read. ``.gz`` is unpacked. ``.jsonl`` and ``.ndjson`` hold one object a line, with the text in ``text_field`` and
    the other fields as metadata. Any other file is one document; with ``split_pattern`` (a key of `SPLIT_PATTERNS` or a
    regular expression) every line that matches starts a new one. Raises FileNotFoundError for a source that is not
    there, ValueError for a bad pattern or a missing column, ImportError where a data set is asked for without the
    package that reads it. Anything else is skipped and reported.
    """
    report = ReadReport() if report is None else report
    pattern = None if split_pattern is None else _compile(split_pattern)
    names = _Names()
    if isinstance(sources, (str, Path)):
        raise TypeError(f"expected a list of sources, found one: {sources!r}")
    origins = {origin_of(source, split): source for source in sources}  # each once
    # All are listed first: one that is not there is an error before hours of work, and the size is known.
    listed = [None if str(source).startswith("hf:") else files_of(source) for source in origins.values()]
    if None not in listed:
        report.size = sum(size_of(path) for one in listed if one is not None for path, _ in one.files)
    report.skipped += [folder for one in listed if one is not None for folder in one.unlisted]
    for (origin, source), listing in zip(origins.items(), listed, strict=True):
        if listing is None:
            found = _read_data_set(str(source)[3:], text_field, split, _Names(), report)
        else:
            found = _read_paths(listing.files, text_field, pattern, _Names(), report)
        files: dict[str, str] = {}  # by their names in this source: names among all that are read
        for document in found:
            report.documents += 1
            report.bytes += len(document.text.encode("utf-8", "surrogatepass"))
            file = re.sub(r"#\d+$", "", document.name)
            if file not in files:
                files[file] = names.take(file)
            yield replace(document, name=files[file] + document.name[len(file) :], place=(origin, document.name))


def split_text(text: str, pattern: str | re.Pattern[str]) -> list[str]:
    """Cut ``text`` in front of every line that matches; joined, the parts are the text.

    White space in front of the first match belongs to the first part.
    """
    found = _compile(pattern).finditer(text) if isinstance(pattern, str) else pattern.finditer(text)
    starts = [match.start() for match in found]
    if not starts or text[: starts[0]].strip():
        starts.insert(0, 0)
    starts[0] = 0
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True) if a < b]


def decode_text(data: bytes) -> tuple[str | None, list[str]]:
    """Text of a file's bytes and what was done to get it; None with the reason where it is no text."""
    notes = []
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", "replace")
        notes.append("UTF-16 with a byte-order mark, converted")
    else:
        if b"\0" in data:
            return None, ["binary (it has a zero byte)"]
        if data.startswith(b"\xef\xbb\xbf"):
            data = data[3:]
            notes.append("byte-order mark removed")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("utf-8", "replace")
            count = text.count("\ufffd") - data.count(b"\xef\xbf\xbd")
            notes.append(f"{count:,} invalid UTF-8 sequences replaced by U+FFFD")
    if "\r\n" in text:
        notes.append(f"{text.count(chr(13) + chr(10)):,} CRLF line ends turned into LF")
        text = text.replace("\r\n", "\n")
    if not text.strip():
        return None, [EMPTY]
    return text, notes


class _Names:
    """Gives every file a name of its own; numbers after ``#`` are left to the parts of a file."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def take(self, wanted: str) -> str:
        base = wanted = re.sub(r"#(\d+)$", r"# \1", wanted)
        number = 1
        while base in self._used:
            number += 1
            base = f"{wanted} ({number})"
        self._used.add(base)
        return base


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(SPLIT_PATTERNS.get(pattern, pattern), re.MULTILINE)
    except re.error as error:
        raise ValueError(
            f"expected a regular expression or one of {', '.join(SPLIT_PATTERNS)} to split documents, "
            f"found {pattern!r}: {error}"
        ) from error


def _read_paths(
    paths: Iterable[tuple[Path, str]],
    text_field: str,
    pattern: re.Pattern[str] | None,
    names: _Names,
    report: ReadReport,
) -> Iterator[Document]:
    for path, relative in paths:
        name = names.take(relative)
        before, size = report.position, size_of(path)
        suffix = Path(path.stem if path.suffix == ".gz" else path.name).suffix
        try:
            with path.open("rb") as raw, _unpacked(raw, path) as file:
                if suffix in _JSONL:
                    for document in _read_lines(file, name, text_field, report):
                        report.position = before + min(size, raw.tell())
                        yield document
                else:
                    data = file.read()
                    done = 0
                    for document in _read_text(data, name, pattern, report):
                        done += len(document.text)  # in characters: near enough for a bar
                        report.position = before + size * min(1.0, done / len(data))
                        yield document
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            report.skipped.append((name, f"damaged gzip data: {error}"))
        except OSError as error:  # no permission, a device, gone since it was listed
            report.skipped.append((name, f"cannot be read: {error.strerror or error}"))
        report.position = before + size


def _unpacked(raw: BinaryIO, path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb")) if path.suffix == ".gz" else raw


def _read_text(data: bytes, name: str, pattern: re.Pattern[str] | None, report: ReadReport) -> Iterator[Document]:
    text, notes = decode_text(data)
    if text is None:
        report.skipped.append((name, notes[0]))
        return
    report.notes += [(name, note) for note in notes]
    if pattern is None:
        yield Document(name, text)
        return
    for number, part in enumerate(split_text(text, pattern), 1):
        title = next((line.strip() for line in part.split("\n", 8) if line.strip()), "")
        yield Document(f"{name}#{number}", part, {"title": title[:200]})


def _read_lines(file: BinaryIO, name: str, text_field: str, report: ReadReport) -> Iterator[Document]:
    empty = True
    for number, raw in enumerate(file, 1):
        if not raw.strip():
            continue
        empty = False
        line_name = f"{name}#{number}"
        try:
            row = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            report.skipped.append((line_name, f"no JSON: {str(error)[:200]}"))
            continue
        document = _from_row(row, line_name, text_field)
        if isinstance(document, str):
            report.skipped.append((line_name, document))
        else:
            yield document
    if empty:
        report.skipped.append((name, EMPTY))


def _from_row(row: Any, name: str, text_field: str) -> Document | str:
    """A document from one JSON object, or the reason why it is none."""
    if not isinstance(row, dict):
        return f"expected an object, found {type(row).__name__}"
    text = row.get(text_field)
    if not isinstance(text, str):
        found = f"{type(text).__name__}" if text_field in row else f"only {', '.join(map(str, list(row)[:8]))}"
        return f"expected text in the field {text_field!r}, found {found}"
    text = text.encode("utf-8", "replace").decode("utf-8")  # JSON can hold lone surrogates, which no tokenizer takes
    if not text.strip():
        return EMPTY
    rest = {key: value for key, value in row.items() if key != text_field and _is_json(value)}
    return Document(name, text, rest or None)


def _is_json(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_json(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    return value is None or isinstance(value, (str, int, float, bool))


def _read_data_set(name: str, text_field: str, split: str, names: _Names, report: ReadReport) -> Iterator[Document]:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(f"hf:{name} needs Hugging Face datasets: pip install 'knnlm[hf]'") from error
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
    base = names.take(f"{shown}/{config}/{split}" if config else f"{shown}/{split}")
    for number, row in enumerate(rows, 1):
        document = _from_row(row, f"{base}#{number}", text_field)
        if isinstance(document, str):
            report.skipped.append((f"{base}#{number}", document))
        else:
            yield document
