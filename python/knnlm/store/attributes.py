"""What a store says of its model and settings, before it is believed: anybody may have written its attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from knnlm.store.protocols import attributes_of, path_of

_TEXT, _WHOLE, _NUMBER, _OBJECT = (str,), (int,), (int, float), (dict,)
_NAMES = {str: "text", int: "an integer", float: "a number", dict: "an object", list: "a list", bool: "true or false"}

_EXPECTED: dict[tuple[str, ...], tuple[type, ...]] = {
    ("model",): _OBJECT,
    ("model", "name"): _TEXT,
    ("model", "fingerprint"): _TEXT,
    ("model", "source"): _TEXT,
    ("model", "revision"): _TEXT,
    ("model", "dtype"): _TEXT,
    ("model", "context"): _WHOLE,
    ("model", "probe"): (list,),
    ("model", "settings"): _OBJECT,
    ("tokenizer",): _OBJECT,
    ("tokenizer", "fingerprint"): _TEXT,
    ("vocabulary_size",): _WHOLE,
    ("document_start",): _WHOLE,
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

_MOST = 2**32

_ALLOWED: dict[tuple[str, ...], tuple[str, Callable[[Any], bool]]] = {
    ("model", "probe"): (
        "finite numbers",
        lambda x: all(_is(value, _NUMBER) and abs(value) < _MOST for value in x),
    ),
    ("window",): ("at least 1", lambda x: 1 <= x < _MOST),
    ("context",): ("0 or more", lambda x: 0 <= x < _MOST),
    ("layer",): ("a number of a layer", lambda x: abs(x) < _MOST),
    ("key_dtype",): ("float16 or float32", lambda x: x in ("float16", "float32")),
    ("autocast",): ("bfloat16 or float16", lambda x: x in ("bfloat16", "float16")),
    ("tuned", "lambda_"): ("a weight between 0 and 1", lambda x: 0 <= x <= 1),
    ("tuned", "temperature"): ("a positive finite number", lambda x: 0 < x < math.inf),
    ("tuned", "k"): ("at least 1", lambda x: 1 <= x < _MOST),
    ("tuned", "nprobe"): ("at least 1", lambda x: 1 <= x < _MOST),
    ("tuned", "rerank"): ("none, code or keys", lambda x: x in ("none", "code", "keys")),
    ("tuned", "perplexity"): ("a finite number", math.isfinite),
    ("tuned", "lm_perplexity"): ("a finite number", math.isfinite),
}
"""Values that those of a right type may have, in words and as a test."""

_COMPONENTS = {"lm", "knn", "cache", "ngram"}


def attribute_problems(attributes: Any) -> list[str]:
    """Where attributes are not what knnlm writes, as "attributes.tuned.k: expected an integer, found a list"."""
    if not isinstance(attributes, Mapping):
        return [f"attributes: expected an object, found {_name(attributes)}"]
    problems = []
    for place, types in _EXPECTED.items():
        value: Any = attributes
        for name in place:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is None:
            continue
        where = ".".join(("attributes", *place))
        allowed, test = _ALLOWED.get(place, ("", lambda _: True))
        if not _is(value, types):
            problems.append(f"{where}: expected {_NAMES[types[-1]]}, found {_name(value)}")
        elif not test(value):
            problems.append(f"{where}: expected {allowed}, found {_short(value)}")
    tuned = attributes.get("tuned")
    blends = tuned.get("blends") if isinstance(tuned, Mapping) else None
    for name, blend in blends.items() if isinstance(blends, Mapping) else ():
        problems += (f"attributes.tuned.blends.{name}{problem}" for problem in _blend_problems(blend))
    return problems


def check_attributes(store: Any) -> None:
    """Raise ValueError where a store's attributes are not what knnlm writes: whose they are, nobody knows."""
    problems = attribute_problems(attributes_of(store))
    if problems:
        raise ValueError(
            f"{path_of(store) or 'store'}: {'; '.join(problems[:3])}: these attributes were not written by knnlm, so "
            "that it is not known how the store is to be used with a model; where they are your own, give them "
            "other names (set_attributes)"
        )


def described_alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two attributes say the same, but for what is measured of a model, which `identity.check` compares."""
    return _without_measured(first) == _without_measured(second)


def _without_measured(attributes: Mapping[str, Any]) -> dict[str, Any]:
    model = attributes.get("model")
    if not isinstance(model, Mapping):
        return dict(attributes)
    return {**attributes, "model": {name: x for name, x in model.items() if name not in ("probe", "settings")}}


def _blend_problems(blend: Any) -> Iterator[str]:
    """What of a saved blend `blend.Blend` could not be made of, by its place in it."""
    if not isinstance(blend, Mapping):
        yield f": expected an object, found {_name(blend)}"
        return
    weights = blend.get("weights")
    if not isinstance(weights, Mapping):
        yield f".weights: expected an object, found {_name(weights)}"
    elif not set(weights) <= _COMPONENTS or not all(_is(w, _NUMBER) and 0 <= w <= 1 for w in weights.values()):
        yield f".weights: expected weights between 0 and 1 of {', '.join(sorted(_COMPONENTS))}, found {_short(weights)}"
    theta, size, order = (blend.get(name) for name in ("theta", "size", "order"))
    if not (theta is None or theta == "auto" or (_is(theta, _NUMBER) and 0 <= theta < math.inf)):
        yield f'.theta: expected "auto" or a number of at least 0, found {_short(theta)}'
    for name, value in (("size", size), ("order", order)):
        if value is not None and not (_is(value, _WHOLE) and 1 <= value < _MOST):
            yield f".{name}: expected an integer of at least 1, found {_short(value)}"
    if (metric := blend.get("metric")) not in (None, "l2", "ip"):
        yield f".metric: expected l2 or ip, found {_short(metric)}"


def _is(value: Any, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and not (isinstance(value, bool) and bool not in types)


def _name(value: Any) -> str:
    return "nothing" if value is None else _NAMES.get(type(value), type(value).__name__)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
