"""Option names: an option that is none of a call, but of another one or nearly one of it, is said to be that.

What `KNNLM` does not know goes to `from_pretrained` of transformers, whose names nobody can list: so only names that
are of `KNNLM` elsewhere, or all but spelled so, are refused here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches

from knnlm.text.texts import Reading

SETTINGS = ("lambda_", "temperature", "k", "nprobe", "rerank", "exact", "cache", "ngram")
"""What `tune` chooses and `KNNLM.open` takes."""

CALLS: Mapping[str, str] = {
    "open": "KNNLM.open",
    "build": "KNNLM.build",
    "tune": "tune",
    "evaluate": "evaluate",
    "add": "add",
    "index": "index",
    "stream": "generate",
    "explain": "explain",
}
"""Methods of `KNNLM` and how they are called, in the order in which a name is looked for."""

NEAR = 0.8
"""Least likeness of a name that is taken for a slip: options of transformers are further from ours."""


def refuse_foreign(home: type, call: str, given: Iterable[str]) -> None:
    """Raise TypeError for the first name that is of another call, or near to one of this or another, of class `home`.

    call: the method, one of `CALLS`.
    """
    own = _options(home, call)
    elsewhere = {name for other in CALLS if other != call for name in _options(home, other)} - own
    reading = {field.name for field in fields(Reading)}
    for name in given:
        if name in own:
            continue
        head = f"{name} is no option of {CALLS[call]}"
        if name in elsewhere or name in reading:
            raise TypeError(f"{head}: {_place(home, call, name, reading)}")
        if near := get_close_matches(name, [*own, *elsewhere, *reading], 1, NEAR):
            found = near[0]
            place = "" if found in own else f" ({_place(home, call, found, reading)})"
            raise TypeError(f"{head}: did you mean {found}{place}?")


def _place(home: type, call: str, name: str, reading: set[str]) -> str:
    """Where an option that is none of `call` belongs."""
    if name in SETTINGS and call == "build":
        return f"it is chosen by lm.tune(texts), which saves it in the store, or given to KNNLM.open(store, {name}=…)"
    if name in reading:
        return f"how paths are read is given as reading=knnlm.Reading({name}=…)"
    where = [CALLS[other] for other in CALLS if other != call and name in _options(home, other)]
    return f"it is an option of {' and '.join(where[:2])}"


def _options(home: type, method: str) -> set[str]:
    """Names that a method takes by keyword, but for those of the object or store itself."""
    parameters = inspect.signature(getattr(home, method)).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
