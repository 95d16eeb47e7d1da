"""Stamp: what the metadata of a document say of where its text came from, so that a later reading can be compared."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from knnlm.text.documents import Document

HASH = "sha256"
"""Metadata field: hash of the text of a document."""
ORIGIN = "origin"
"""Metadata field: the source of the text; documents of a source that are missing there later count as removed."""
READ_AS = "read_as"
"""Metadata field: name of a document at its origin, where that name belonged to another document already."""
OURS = (HASH, ORIGIN, READ_AS)


def content_hash(text: str) -> str:
    """SHA-256 of the text as UTF-8, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def stamp(document: Document, known: str | None = None) -> Document:
    """The document with hash, origin and name there in its metadata; fields of its own with these names get a "_".

    known: the hash of its text, where the text itself is not at hand.
    """
    facts = {f"{name}_" if name in OURS else name: value for name, value in facts_of(document).items()}
    facts[HASH] = content_hash(document.text) if known is None else known
    if document.place is not None:
        facts[ORIGIN], name = document.place
        if name != document.name:
            facts[READ_AS] = name
    return replace(document, metadata=facts)


def facts_of(document: Any) -> dict[str, Any]:
    """The metadata of a document, of a text or of a store; empty where it has none."""
    return document.metadata or {}
