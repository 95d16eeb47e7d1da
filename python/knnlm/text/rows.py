"""Rows of JSONL files and data sets: the text of each, its other fields as metadata, and what was changed in them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from knnlm.system.counted import counted
from knnlm.system.json_text import DEEPEST, LONE, TooDeepError, mended, whole
from knnlm.text.decoding import EMPTY, too_large

NAME_FIELDS = ("name", "id", "title")
"""Fields that name a row, the first that does, unless one is asked for."""

_SHOWN = 200  # characters of a reason
_DIGITS = 40  # of a number that is a name
_NAME = 200  # characters of a name: more are a text


@dataclass(frozen=True)
class Row:
    """The text of a row, its other fields, what was changed in them, and its name if a field has one."""

    text: str
    metadata: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    name: str | None = None


class Rows:
    """Reads rows that hold their text in one field; what is none is told by a reason instead."""

    def __init__(self, text_field: str, most: int, name_field: str | None = None) -> None:
        """text_field: name of the field. most: bytes of a text. name_field: one field instead of `NAME_FIELDS`."""
        self._field, self._most, self._name_field = text_field, most, name_field
        self._twice: list[str] = []  # names that an object of the row has more than once
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)
        self._long = json.JSONDecoder(object_pairs_hook=self._object, parse_int=whole)

    def parsed(self, line: str) -> dict[str, Any] | str:
        """The object of a line of JSON, or why it is none."""
        self._twice = []
        try:
            try:
                row = self._decoder.decode(line)
            except ValueError as error:
                if isinstance(error, json.JSONDecodeError):
                    raise
                self._twice = []
                row = self._long.decode(line)  # it has an integer of more digits than Python reads
        except RecursionError:
            return f"more than {DEEPEST} levels of lists and objects"
        except ValueError as error:
            return f"no JSON: {error}"[:_SHOWN]
        return row if isinstance(row, dict) else f"expected an object, found {_kind(row)}"

    def read(self, row: Mapping[str, Any]) -> Row | str:
        """The text and the other fields of a row, or why it has none."""
        text = row.get(self._field)
        if not isinstance(text, str):
            found = _kind(text) if self._field in row else f"only {', '.join(map(str, list(row)[:8]))}"
            return f"expected text in the field {self._field!r}, found {found}"[:_SHOWN]
        twice, self._twice = self._twice, []
        notes = [f"{name[:80]}: given more than once, the last one is kept" for name in dict.fromkeys(twice)]
        if not text.isascii() and (lone := len(LONE.findall(text))):
            notes.append(f"{counted(lone, 'lone surrogate')} in the text replaced by U+FFFD")
            text = LONE.sub("\ufffd", text)
        if zeros := text.count("\0"):
            notes.append(f"{zeros:,} zero characters in the text replaced by U+FFFD")
            text = text.replace("\0", "\ufffd")
        if not text.strip():
            return EMPTY
        if len(text) > self._most or (4 * len(text) > self._most and len(text.encode()) > self._most):
            return too_large(self._most)
        try:
            rest, changes = mended({name: value for name, value in row.items() if name != self._field}, "")
        except TooDeepError as error:
            return str(error)
        notes += dict.fromkeys(
            f"{_name_of(place)}: {problem} in the metadata, now {now}" for place, problem, now in changes
        )
        name = self._name(row)
        if name is None and self._name_field is not None:
            notes.append(f"no name in the field {self._name_field!r}: named by its line")
        return Row(text, rest or None, notes, name)

    def _name(self, row: Mapping[str, Any]) -> str | None:
        """The name that a field gives, in one line; None where none is a short text or a whole number."""
        for field_ in NAME_FIELDS if self._name_field is None else (self._name_field,):
            value = row.get(field_)
            if field_ == self._field or isinstance(value, bool) or not isinstance(value, str | int):
                continue
            if isinstance(value, int) and abs(value) >= 10**_DIGITS:
                continue
            name = " ".join(LONE.sub("\ufffd", str(value)).replace("\0", "\ufffd").split())
            if 0 < len(name) <= _NAME:
                return name
        return None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    self._twice.append(name)
                seen.add(name)
        return row


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _name_of(place: str) -> str:
    """A place in a row without the numbers in lists, so that equal changes of many rows are one note."""
    return re.sub(r"\[\d+\]", "[]", place)
