"""Update: which documents of a text are new to a store, changed or gone, by the hash of their content. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from knnlm.documents import Document

HASH = "sha256"
"""Metadata field: hash of the text of a document."""
ORIGIN = "origin"
"""Metadata field: where the text came from; documents of an origin that are missing there later count as removed."""
READ_AS = "read_as"
"""Metadata field: name of a document at its origin, where the store had that name already from another origin."""


@dataclass
class Plan:
    """What an update does, document by document; the names are those in the store.

    unread: documents of the store that stay because their text, or all of it, could not be read or was not.
    """

    new: list[Document] = field(default_factory=list)
    changed: list[Document] = field(default_factory=list)
    unchanged: int = 0
    removed: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def to_delete(self) -> list[str]:
        """Names whose entries go."""
        return [document.name for document in self.changed] + self.removed

    @property
    def to_add(self) -> list[Document]:
        """Documents whose keys are needed."""
        return [*self.changed, *self.new]

    @property
    def renamed(self) -> list[tuple[str, str]]:
        """New documents that get another name than they have at their origin: both names."""
        return [(_name_at_origin(document), document.name) for document in self.new if READ_AS in _facts(document)]


def origin(sources: Sequence[str | Path]) -> str:
    """One name for the sources of a text, the same wherever it is asked from."""
    return "\n".join(str(Path(s).resolve()) if Path(s).exists() else str(s) for s in sources)


def content_hash(text: str) -> str:
    """SHA-256 of the text as UTF-8, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def stamp(document: Document, where: str) -> Document:
    """The document with hash and origin in its metadata."""
    return replace(document, metadata={**(document.metadata or {}), HASH: content_hash(document.text), ORIGIN: where})


def plan(
    store: Any,
    documents: Iterable[Document],
    where: str,
    tokenizer: Any = None,
    *,
    unread: Callable[[str], bool] = lambda name: False,
    limited: bool = False,
) -> Plan:
    """Compare documents with those that a store holds of the same origin, by name.

    A document is removed if the store has it from `where` and it is not there any more. One that the store holds from
    another origin is neither changed nor removed: if the text is the same it is there already, if not the new one gets
    a name of its own, "name (2)". One whose origin is not known is taken for that of its name.

    store: a `Datastore`. documents: what is at `where` now (see `origin`). tokenizer: tells whether a document that a
    store holds without a hash is the same, by its tokens; without one it counts as changed. unread: tells of a name at
    `where` whether reading it failed (`ReadReport.unread`), asked after the last document: what the store has of it
    stays as it is. limited: the documents are not all there are, so that nothing counts as removed.
    """
    held, out = _Held(store, where, tokenizer), Plan()
    seen: set[str] = set()
    differ = []
    for unmarked in documents:
        document = stamp(unmarked, where)
        seen.add(document.name)
        info = held.ours.get(document.name) or held.unknown.get(document.name)
        if info is None:
            there = any(held.same(other, document) for other in held.others.get(document.name, ()))
        else:
            there = held.same(info, document)
        if there:
            out.unchanged += 1
        elif info is None:
            out.new.append(document)
        else:
            differ.append((document, str(info.name)))
    for document, name in differ:
        if unread(document.name):
            out.unread.append(name)
        else:
            out.changed.append(_named(document, name))
    for name, info in held.ours.items():
        if name not in seen:
            (out.unread if limited or unread(name) else out.removed).append(str(info.name))
    out.new = _names_of_their_own(out.new, held.names, seen)
    return out


class _Held:
    """The documents of a store by their names at their origins, apart for `where`, no origin, and all others."""

    def __init__(self, store: Any, where: str, tokenizer: Any) -> None:
        self._store, self._tokenizer = store, tokenizer
        self.ours: dict[str, Any] = {}
        self.unknown: dict[str, Any] = {}
        self.others: dict[str, list[Any]] = {}
        self.names: set[str] = set()
        for info in store.documents():
            if info.name is None:
                continue
            self.names.add(info.name)
            name, of = _name_at_origin(info), _facts(info).get(ORIGIN)
            if of == where:
                self.ours[name] = info
            elif of is None:
                self.unknown[name] = info
            else:
                self.others.setdefault(name, []).append(info)

    def same(self, info: Any, document: Document) -> bool:
        """Whether a document of the store has the text of this one."""
        known = _facts(info).get(HASH)
        if known is None and self._tokenizer is not None:
            return np.array_equal(self._store.values(info.start, info.stop), self._tokenizer.encode(document.text))
        return bool(known == _facts(document)[HASH])


def _facts(document: Any) -> dict[str, Any]:
    return document.metadata or {}


def _name_at_origin(document: Any) -> str:
    return str(_facts(document).get(READ_AS, document.name))


def _named(document: Document, name: str) -> Document:
    """The document under another name, and its own remembered."""
    if name == document.name:
        return document
    return replace(document, name=name, metadata={**_facts(document), READ_AS: document.name})


def _names_of_their_own(documents: Iterable[Document], held: set[str], read: set[str]) -> list[Document]:
    """The documents, each with a name of its own: one that is held takes a number, and no other that was read."""
    used, out = set(held), []
    for document in documents:
        name, number = document.name, 1
        while name in used or (number > 1 and name in read):
            number += 1
            name = f"{document.name} ({number})"
        used.add(name)
        out.append(_named(document, name))
    return out
