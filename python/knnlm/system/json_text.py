"""Values as JSON text: what JSON does not have is refused by name, or mended where it came with somebody's data.

Python's `json` writes NaN, takes 10 000 levels and keeps half a surrogate pair; the core, and any other reader of a
store (RFC 8259), does not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import date, datetime, time
from typing import Any

DEEPEST = 100
"""Levels of lists and objects within each other; readers of other languages stop at some 128."""

_BITS = 14_280  # of an integer: 4,299 digits; Python reads no more than 4,300
LONE = re.compile("[\ud800-\udfff]")
_SHOWN = 80  # characters of a place in a value that a message names


class TooDeepError(ValueError):
    """Lists and objects within each other beyond `DEEPEST` levels, or in a circle."""


class _Nothing:
    """Mark of a value that JSON has nothing for."""


_NOTHING = _Nothing()


def to_json(x: dict[str, Any], what: str) -> str:
    """Return `x` as canonical JSON text, keys sorted, ASCII.

    Raises:
        ValueError: no dictionary, or something in it that JSON does not have; `what` and the place in it are named.
    """
    if not isinstance(x, dict):
        raise ValueError(f"{what}: expected a dictionary, found {type(x).__name__}; nothing was changed")
    try:
        _, found = mended(x, what)
    except TooDeepError as error:
        raise ValueError(f"{error}; nothing was changed") from None
    if found:
        place, problem, _ = found[0]
        more = f", and {len(found) - 1:,} more such" if len(found) > 1 else ""
        raise ValueError(
            f"{place}: expected JSON (dictionaries with str keys, lists, str, finite numbers, bool and None), "
            f"found {problem}{more}; nothing was changed"
        )
    return json.dumps(x, sort_keys=True, allow_nan=False)


def from_json(text: str, what: str) -> dict[str, Any]:
    """The dictionary of a JSON text that somebody else may have written.

    Raises:
        ValueError: no JSON, no object, nested too deeply, or a number of more digits than Python reads, with `what`.
    """
    try:
        found = json.loads(text)
        if text.count("[") + text.count("{") > DEEPEST:
            mended(found, "")
    except (RecursionError, TooDeepError):
        raise ValueError(f"{what}: expected JSON of at most {DEEPEST} levels, found more") from None
    except ValueError as error:
        raise ValueError(f"{what}: expected JSON, found {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{what}: expected an object, found {type(found).__name__}")
    return found


def whole(digits: str) -> int:
    """The integer of a JSON text; for one of more digits than Python reads, one that `mended` takes out."""
    try:
        return int(digits)
    except ValueError:
        return 1 << _BITS


def mended(x: Any, where: str) -> tuple[Any, list[tuple[str, str, str]]]:
    """A copy of `x` that is JSON, and what was changed for it: (place in it, problem, what it is now).

    NaN and infinities become null, lone surrogates U+FFFD (with more of them where two keys would be the same), dates
    their ISO text; an entry of another type or with a key that is no text is left out, in a list it becomes null.
    where: name of `x` in the places.

    Raises:
        TooDeepError: more than `DEEPEST` levels.
    """
    found: list[tuple[str, str, str]] = []
    out = _mended(x, (None, where), 0, lambda place, *change: found.append((_written(place), *change)))
    return None if out is _NOTHING else out, found


_Place = tuple[Any, str | int]
"""Where a value is: the place of what holds it, and its key or number there; written only where it is needed."""
_Note = Callable[[_Place, str, str], None]


def _mended(x: Any, where: _Place, depth: int, note: _Note) -> Any:
    if isinstance(x, str):
        if x.isascii() or not LONE.search(x):
            return x
        note(where, "a lone surrogate", "U+FFFD")
        return LONE.sub("\ufffd", x)
    if x is None or x is True or x is False:
        return x
    if isinstance(x, float):
        if math.isfinite(x):
            return x
        note(where, "NaN" if math.isnan(x) else "an infinite number", "null")
        return None
    if isinstance(x, int):
        if x.bit_length() <= _BITS:
            return x
        note(where, "an integer of more than 4,299 digits", "null")
        return None
    if isinstance(x, (list, tuple, dict)):
        if depth == DEEPEST:
            place = _short(_written(where))
            raise TooDeepError(f"{place}: expected at most {DEEPEST} levels of lists and objects, found more")
        if isinstance(x, dict):
            return _mended_object(x, where, depth, note)
        items = (_mended(item, (where, i), depth + 1, note) for i, item in enumerate(x))
        return [None if item is _NOTHING else item for item in items]
    if isinstance(x, (date, datetime, time)):
        note(where, type(x).__name__, "its ISO text")
        return x.isoformat()
    note(where, type(x).__name__, "left out")
    return _NOTHING


def _mended_object(x: dict[Any, Any], where: _Place, depth: int, note: _Note) -> dict[str, Any]:
    out = {}
    for key, value in x.items():
        if not isinstance(key, str):
            note(where, f"a key that is no text, {_short(repr(key))}", "left out")
            continue
        item = _mended(value, (where, key), depth + 1, note)
        if item is _NOTHING:
            continue
        name = key if key.isascii() else _mended(key, (None, f"the key {_short(key)!r}"), depth, note)
        while name in out or (name != key and name in x):  # two that differed only there
            name += "\ufffd"
        out[name] = item
    return out


def _written(place: _Place) -> str:
    parts: list[str] = []
    while place is not None:
        outer, part = place
        parts.append(f"[{part}]" if isinstance(part, int) else f".{_short(part)}")
        place = outer
    return "".join(reversed(parts)).lstrip(".")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
