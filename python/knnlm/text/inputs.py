"""Inputs: what a caller hands over as a text: a string, token ids, or a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Text:
    """A text without a file."""

    name: str
    text: str
    metadata: dict[str, Any] | None = None


def as_document(text: Any, tokenizer: Any) -> Any:
    """A string or token ids as a document without a name; a document as it is.

    Ids that begin with the tokenizer's document start are taken without it: the model reads one in front of every
    document by itself. Raises TypeError or ValueError for anything else, with what to give.
    """
    if isinstance(text, str):
        return Text("", checked(text))
    if not _is_ids(text) and isinstance(getattr(text, "text", None), str):
        checked(text.text)
        return text
    if not _is_ids(text) and hasattr(text, "tokens") and not callable(text.tokens):
        return text

    return TokenDocument("", token_ids(text, tokenizer))


def token_ids(text: Any, tokenizer: Any) -> NDArray[np.uint32]:
    """A string encoded, or ids (L,) checked, both without the document start in front; (L,) uint32.

    Raises TypeError or ValueError for what is neither.
    """
    if isinstance(text, str):
        return np.asarray(tokenizer.encode(checked(text)), np.uint32)
    if text is None or isinstance(text, (bytes, bytearray, PurePath, Mapping)) or hasattr(text, "input_ids"):
        if isinstance(text, (bytes, bytearray)):
            what_to_do = "decode them first: text.decode()"
        elif isinstance(text, PurePath):
            what_to_do = "give what is in it: text.read_text()"
        else:
            what_to_do = "" if text is None else "give its input_ids, of one text"
        raise TypeError(
            f"text: expected a string, token ids or a document, found {type(text).__name__}"
            + (f"; {what_to_do}" if what_to_do else "")
        )
    if isinstance(text, (list, tuple)) and any(isinstance(part, (str, bytes)) for part in text):
        raise TypeError("text: expected one text, found a list of them: call once for each")
    ids = np.asarray(text.detach().cpu() if hasattr(text, "detach") else text)
    if not ids.size:
        return np.zeros(0, np.uint32)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"text: expected token ids of shape (L,), whole numbers, found shape {ids.shape} of {ids.dtype}"
            + ("; give one row of them" if ids.ndim == 2 else "")
        )
    v = int(tokenizer.vocab_size)
    if int(ids.min()) < 0 or int(ids.max()) >= v:
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise ValueError(f"text: expected token ids from 0 to {v - 1}, found {wrong}; use the model's own tokenizer")
    return ids[int(ids[0]) == int(tokenizer.bos_id) :].astype(np.uint32)


def checked(text: str) -> str:
    """The text itself. Raises ValueError for half of a UTF-16 pair, which no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text: expected characters, found the lone surrogate U+{ord(text[error.start]):04X} at position "
            f"{error.start}: decode the text it is from with errors='replace'"
        ) from error
    return text


def encoded(tokenizer: Any, document: Any) -> NDArray[np.uint32]:
    """The text of a document as tokens, (L,) uint32. Raises ValueError with its name where there are none for it."""
    if not isinstance(getattr(document, "text", None), str):
        raise TypeError(f"expected documents with a name and a text or tokens, found {type(document).__name__}")
    try:
        return np.asarray(tokenizer.encode(checked(document.text)), np.uint32)
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"document {document.name!r}: {error}") from error


def _is_ids(text: Any) -> bool:
    return isinstance(text, (list, tuple, np.ndarray)) or hasattr(text, "detach") or hasattr(text, "input_ids")


@dataclass(frozen=True)
class TokenDocument:
    """A document that is tokens already."""

    name: str
    tokens: NDArray[np.uint32]
    metadata: dict[str, Any] | None = None
    text: str | None = None
