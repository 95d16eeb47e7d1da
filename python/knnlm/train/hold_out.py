"""Hold-out: which documents of a training text are kept for validation. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from knnlm.text.documents import Document

HELD_OUT = 20
"""One document of so many is held out."""


def hold_out(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Train and validation documents, by a hash of the name; of few documents, the last part of the longest."""
    train: list[Document] = []
    valid: list[Document] = []
    for document in documents:
        bucket = int.from_bytes(hashlib.sha256(document.name.encode()).digest()[:4], "little") % HELD_OUT
        (valid if bucket == 0 else train).append(document)
    if valid and train:
        return train, valid
    longest = max(documents, key=lambda document: len(document.text))
    cut = longest.text.rfind("\n", 0, len(longest.text) * (HELD_OUT - 1) // HELD_OUT) + 1
    cut = cut or len(longest.text) * (HELD_OUT - 1) // HELD_OUT
    train = [replace(d, text=d.text[:cut]) if d is longest else d for d in documents]
    return train, [replace(longest, name=f"{longest.name} (end)", text=longest.text[cut:])]
