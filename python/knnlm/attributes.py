"""What a store says of its model and settings, before it is believed: anybody may have written its attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TEXT, _WHOLE, _NUMBER, _OBJECT = (str,), (int,), (int, float), (dict,)
_NAMES = {str: "text", int: "an integer", float: "a number", dict: "an object", list: "a list", bool: "true or false"}

_EXPECTED: dict[tuple[str, ...], tuple[type, ...]] = {
    ("model",): _OBJECT,
    ("model", "name"): _TEXT,
    ("model", "fingerprint"): _TEXT,
    ("model", "source"): _TEXT,
    ("tokenizer",): _OBJECT,
    ("tokenizer", "fingerprint"): _TEXT,
    ("vocabulary_size",): _WHOLE,
    ("representation",): _TEXT,
    ("layer",): _WHOLE,
    ("window",): _WHOLE,
    ("context",): _WHOLE,
    ("key_dtype",): _TEXT,
    ("autocast",): _TEXT,
    ("tuned",): _OBJECT,
    ("tuned", "lambda_"): _NUMBER,
    ("tuned", "temperature"): _NUMBER,
    ("tuned", "k"): _WHOLE,
    ("tuned", "nprobe"): _WHOLE,
    ("tuned", "rerank"): _TEXT,
    ("tuned", "exact"): (bool,),
    ("tuned", "preset"): _TEXT,
    ("tuned", "tokens"): _WHOLE,
    ("tuned", "perplexity"): _NUMBER,
    ("tuned", "lm_perplexity"): _NUMBER,
    ("tuned", "blends"): _OBJECT,
}
"""Types of what commands read; null, or nothing, stands for not known everywhere."""


def attribute_problems(attributes: Mapping[str, Any]) -> list[str]:
    """Where attributes are not what knnlm writes, as "attributes.tuned.k: expected an integer, found a list"."""
    problems = []
    for place, types in _EXPECTED.items():
        value: Any = attributes
        for name in place:
            value = value.get(name) if isinstance(value, Mapping) else None
        sound = isinstance(value, types) and not (isinstance(value, bool) and bool not in types)
        if value is not None and not sound:
            expected, found = _NAMES[types[-1]], _NAMES.get(type(value), type(value).__name__)
            problems.append(f"attributes.{'.'.join(place)}: expected {expected}, found {found}")
    return problems


def check_attributes(store: Any) -> None:
    """Raise ValueError where a store's attributes are not what knnlm writes: whose they are, nobody knows."""
    problems = attribute_problems(getattr(store, "attributes", None) or {})
    if problems:
        where = getattr(store, "path", None)
        raise ValueError(
            f"{where or 'store'}: {'; '.join(problems[:3])}: these attributes were not written by knnlm, so that it is "
            "not known how the store is to be used with a model"
        )
