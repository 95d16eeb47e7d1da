"""Update: which documents of a text are new to a store, changed or gone, by the hash of their content. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from knnlm.documents import Document

HASH = "sha256"
"""Metadata field: hash of the text of a document."""
ORIGIN = "origin"
"""Metadata field: where the text came from; documents of an origin that are missing there later count as removed."""


@dataclass
class Plan:
    """What an update does, document by document."""

    new: list[Document] = field(default_factory=list)
    changed: list[Document] = field(default_factory=list)
    unchanged: int = 0
    removed: list[str] = field(default_factory=list)

    @property
    def to_delete(self) -> list[str]:
        """Names whose entries go."""
        return [document.name for document in self.changed] + self.removed

    @property
    def to_add(self) -> list[Document]:
        """Documents whose keys are needed."""
        return [*self.changed, *self.new]


def origin(sources: Sequence[str | Path]) -> str:
    """One name for the sources of a text, the same wherever it is asked from."""
    return "\n".join(str(Path(s).resolve()) if Path(s).exists() else str(s) for s in sources)


def content_hash(text: str) -> str:
    """SHA-256 of the text as UTF-8, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def stamp(document: Document, where: str) -> Document:
    """The document with hash and origin in its metadata."""
    return replace(document, metadata={**(document.metadata or {}), HASH: content_hash(document.text), ORIGIN: where})


def plan(store: Any, documents: Iterable[Document], where: str, tokenizer: Any = None) -> Plan:
    """Compare documents with those of the store, by name.

    store: a `Datastore`. documents: what is at `where` now (see `origin`). tokenizer: tells whether a document that a
    store holds without a hash is the same, by its tokens; without one it counts as changed. A document is removed if
    the store has it from `where` and it is not there any more.
    """
    out = Plan()
    held = {info.name: info for info in store.documents() if info.name is not None}
    seen = set()
    for unmarked in documents:
        document = stamp(unmarked, where)
        seen.add(document.name)
        info = held.get(document.name)
        if info is None:
            out.new.append(document)
            continue
        known = (info.metadata or {}).get(HASH)
        if known is None and tokenizer is not None:
            same = np.array_equal(store.values(info.start, info.stop), tokenizer.encode(document.text))
        else:
            same = known == (document.metadata or {})[HASH]
        if same:
            out.unchanged += 1
        else:
            out.changed.append(document)
    out.removed = [n for n, info in held.items() if n not in seen and (info.metadata or {}).get(ORIGIN) == where]
    return out
