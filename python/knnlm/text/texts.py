"""Texts: what a caller wants read, by its paths or at hand, as documents, from the start as often as needed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from knnlm.system.log import LOG
from knnlm.text.decoding import EMPTY
from knnlm.text.documents import MAX_DOCUMENT_BYTES, Document, ReadReport, read_documents
from knnlm.text.inputs import TokenDocument, checked, encoded
from knnlm.text.sources import origin_of
from knnlm.text.stamp import stamp

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Reading:
    """How input text is read from paths; see `read_documents`.

    max_documents: read at most so many of them, None = all.
    """

    text_field: str = "text"
    name_field: str | None = None
    split_documents: str | None = None
    split: str = "train"
    max_documents: int | None = None
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    follow_links: bool = False


class Texts:
    """Documents at `sources` (files, folders, globs, hf:NAME), read anew for each iteration, with an account of it.

    stamped: whether documents remember where they came from and the hash of their text. nothing: what to do where
    there is nothing to read, for the error. report: of the last iteration, see `ReadReport`. tokens: of what
    `tokenised` has passed on so far.
    """

    def __init__(
        self,
        sources: Sequence[str | os.PathLike[str]],
        reading: Reading | None = None,
        *,
        stamped: bool = False,
        nothing: str = "",
    ) -> None:
        self.sources = tuple(sources)
        self.reading = Reading() if reading is None else reading
        self.stamped, self.nothing = stamped, nothing
        self.report = ReadReport()
        self.tokens = 0

    def __iter__(self) -> Iterator[Document]:
        """Read from the start; raises ValueError at the end if there was no document, with the reasons."""
        self.report = ReadReport()
        for count, document in enumerate(self._read(self.report), start=1):
            yield stamp(document) if self.stamped else document
            if count == self.reading.max_documents:
                break
        LOG.debug("%s: %s", self._where(), self.report.lines()[0])
        if not self.report.documents:
            raise ValueError(
                f"expected text in {self._where()}, found no document to read{self.nothing}. "
                + "; ".join(self.report.lines())
            )

    def tokenised(self, tokenizer: Any) -> Iterator[TokenDocument]:
        """The documents with their tokens, one after the other: nothing is tokenised twice, nothing is kept."""
        self.tokens = 0
        for document in self:
            tokens = encoded(tokenizer, document)
            self.tokens += len(tokens)
            yield TokenDocument(document.name, tokens, document.metadata, document.text)

    @property
    def origins(self) -> list[str]:
        """One name for each source, as `stamp` writes it into the documents of it."""
        return [origin_of(source, self.reading.split) for source in self.sources]

    @property
    def limited(self) -> bool:
        """Whether the documents may not be all that are there."""
        return self.reading.max_documents is not None

    def expected_tokens(self) -> int:
        """Tokens of the whole text as far as the part that is read tells; 0 where the size is not known."""
        share = self.report.share
        if self.reading.max_documents is not None:
            share = max(share, self.report.documents / self.reading.max_documents) if share else 0.0
        return round(self.tokens / share) if share else 0

    def counting(self, progress: Progress | None, stage: str) -> Progress | None:
        """A `progress` that tells of `stage`: tokens done, of those that are expected."""
        if progress is None:
            return None
        return lambda _, done, total: progress(stage, done, max(done, total or self.expected_tokens()))

    def log(self) -> None:
        """Tell the package's logger what was skipped or changed in reading, if anything was."""
        for line in self.report.lines()[1:]:
            LOG.warning(line)
        for kind, name, reason in self.report.unlisted():
            LOG.debug("%s: %s: %s", kind, name, reason)

    def summary(self) -> dict[str, Any]:
        """What was read, as JSON."""
        return {
            "documents": self.report.documents,
            "bytes": self.report.bytes,
            "skipped": [list(pair) for pair in self.report.skipped],
            "notes": [list(pair) for pair in self.report.noted()],
        }

    def _read(self, report: ReadReport) -> Iterator[Document]:
        return read_documents(
            self.sources,
            text_field=self.reading.text_field,
            name_field=self.reading.name_field,
            split_pattern=self.reading.split_documents,
            split=self.reading.split,
            follow_links=self.reading.follow_links,
            max_document_bytes=self.reading.max_document_bytes,
            report=report,
        )

    def _where(self) -> str:
        return ", ".join(map(str, self.sources))


GIVEN = "python"
"""Origin of documents that were given as texts; no path is called so, origins of paths are absolute."""


class GivenTexts(Texts):
    """Texts that are at hand: strings, (name, text), or documents with a name and a text.

    What has no name is "document 1", "document 2" and so on, by its place; a name that comes again is "name (2)". An
    empty text is left out. first: number of the first place.
    """

    def __init__(self, items: Iterable[Any], *, stamped: bool = False, first: int = 1) -> None:
        super().__init__((), stamped=stamped)
        # What can be read once only is kept: texts are read to count, for a sample, and to run the model over them.
        self._items = list(items) if isinstance(items, Iterator) else items
        self.first = first

    def _read(self, report: ReadReport) -> Iterator[Document]:
        used: set[str] = set()
        for place, item in enumerate(self._items):
            document, number = as_text(item, place + 1), self.first + place
            if not document.text:
                report.skipped.append((document.name or f"document {number}", EMPTY))
                continue
            report.documents += 1
            report.bytes += len(document.text.encode())
            name, again = document.name or f"document {number}", 1
            while name in used:
                again += 1
                name = f"{document.name or f'document {number}'} ({again})"
            used.add(name)
            yield replace(document, name=name, place=(GIVEN, name))

    @property
    def origins(self) -> list[str]:
        """What `stamp` writes into each document."""
        return [GIVEN]

    @property
    def limited(self) -> bool:
        """There may be any number of others."""
        return True

    def _where(self) -> str:
        return "what was given"


def texts_of(given: Any, reading: Reading | None = None, *, stamped: bool = False) -> Texts:
    """What a caller hands over as texts.

    given: a path (str or Path: a file, folder, glob or hf:NAME) or an iterable of Path objects, which are read as
    `reading` says; or an iterable of strings, each of them a text, of (name, text), or of documents. So a string is
    never taken for a path and a path never for a text: alone it is a path, among others a text.

    reading: of paths; what is given as `Texts` has its own, which is not changed but for `stamped`.

    Raises:
        TypeError: anything else, or paths and texts together; a reading of texts that are at hand.
        FileNotFoundError, ValueError: as `files_of`; a string alone that is a text, one among others that is a path.
    """
    if isinstance(given, Texts):
        if reading is not None:
            raise TypeError("reading: expected it with paths, found Texts, which have their own: make them with it")
        given.stamped = given.stamped or stamped
        return given
    if isinstance(given, str):
        if not given.startswith("hf:") and not _is_there(given) and not _GLOB.search(given):
            raise FileNotFoundError(
                f"texts: expected a file, folder, glob or hf:NAME, found nothing at {_short(given)}; a string alone is "
                "a path, write [text] for one text"
            )
        return Texts([given], reading, stamped=stamped)
    if isinstance(given, os.PathLike):
        return Texts([given], reading, stamped=stamped)
    if isinstance(given, (bytes, Mapping)) or not isinstance(given, Iterable) or hasattr(given, "text"):
        raise TypeError(
            f"texts: expected a path, paths (Path objects), or an iterable of strings, (name, text) or documents, "
            f"found {type(given).__name__}" + ("; write [document] for one" if hasattr(given, "text") else "")
        )
    if isinstance(given, tuple) and len(given) == 2 and all(isinstance(part, str) for part in given):
        raise TypeError(
            f"texts: expected an iterable of (name, text), found one of them, {_short(given[0])}: write [it]"
        )
    items = list(given) if isinstance(given, (list, tuple, Set, Iterator)) else given
    if isinstance(items, list):
        paths = [item for item in items if isinstance(item, os.PathLike)]
        if paths and len(paths) < len(items):
            raise TypeError(
                f"texts: expected paths or texts, found both: {paths[0]} and a {type(_other(items)).__name__}; give "
                "each kind by itself, or read the file yourself and give (name, text)"
            )
        if paths:
            return Texts(paths, reading, stamped=stamped)
        for item in items:
            _refuse_path(item)
    if reading is not None:
        raise TypeError("reading: expected it with paths, found texts that are at hand: leave it out")
    return GivenTexts(items, stamped=stamped)


def as_text(item: Any, number: int = 1) -> Document:
    """A string, (name, text) or document with `text` as a `Document`, whose name may be "".

    number: of the item among others, for the error. Raises TypeError for anything else, ValueError for a text that is
    no text.
    """
    found = _as_document(item)
    if found is not None:
        try:
            checked(found.text)
            checked(found.name)
        except ValueError as error:
            named = f", {found.name!r}" if found.name else ""
            raise ValueError(f"texts: number {number}{named}: {str(error).removeprefix('text: ')}") from error
        return found
    what, advice = f"a {type(item).__name__}", ""
    if isinstance(item, Mapping):
        what += f" with {', '.join(map(repr, list(item)[:4]))}"
        advice = "; of a row of a data set give row['text']"
    raise TypeError(
        f"texts: expected strings, (name, text) or documents with a text, found {what} as number {number}{advice}"
    )


def _as_document(item: Any) -> Document | None:
    if isinstance(item, str):
        return Document("", item)
    if isinstance(item, Document):
        return item
    if isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(part, str) for part in item):
        return Document(item[0], item[1])
    if isinstance(getattr(item, "text", None), str):
        return Document(getattr(item, "name", None) or "", item.text, getattr(item, "metadata", None))
    return None


_GLOB = re.compile(r"^[^\n]*[*?\[][^\n]*$")
_FILE = re.compile(r"\S+\.(txt|text|jsonl|ndjson|gz|bz2|xz|zst)|hf:\S+")


def _refuse_path(item: Any) -> None:
    """Raise ValueError for a string among others that was meant as a path: its text would be the path itself."""
    if isinstance(item, str) and len(item) < 4096 and (_FILE.fullmatch(item) or _is_there(item)):
        raise ValueError(
            f"texts: expected texts, found {item!r}, which is a path: in a list, give paths as Path({item!r}); if this "
            f"is the text itself, give it a name: ('name', {item!r})"
        )


def _is_there(path: str) -> bool:
    try:
        return bool(path.strip()) and os.path.exists(path)
    except ValueError:  # a NUL
        return False


def _other(items: list[Any]) -> Any:
    return next(item for item in items if not isinstance(item, os.PathLike))


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
