"""Identity: what a store remembers of the model that wrote it, and the check that a model may search it. No torch."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from knnlm.store.attributes import check_attributes
from knnlm.store.recall_sample import spread_ids

DEFAULT_LAMBDA = 0.25
"""The paper's best weight on WikiText-103; used until `tune` has found a better one."""

DEFAULT_K = 1024

DEFAULT_WINDOW = 2048
"""Longest window unless one is asked for, in tokens; models read up to millions, at a price that grows with it."""

DEFAULT_REPRESENTATION = "ffn-input"

REPRESENTATIONS = (
    DEFAULT_REPRESENTATION,
    "ffn-input-pre-norm",
    "attention-input",
    "attention-input-pre-norm",
    "block-output",
    "normed-output",
)
"""Key representations, the rows of Table 5 of the paper; `module:NAME` is the input of any module by its name."""

AUTOCAST = (None, "bfloat16", "float16")
"""Arithmetic of the model while it makes keys: its own, or the named one under torch's autocast."""


class IdentityError(ValueError):
    """The model, tokenizer or representation is not the one that wrote the store."""


class Loaded(Protocol):
    """A model with its tokenizer, as `load_model` gives it."""

    @property
    def model(self) -> Any:
        """The module."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the weights."""
        ...

    @property
    def context(self) -> int:
        """Longest input, tokens."""
        ...

    @property
    def name(self) -> str:
        """What to call it."""
        ...


@dataclass(frozen=True)
class KeySpec:
    """How keys are made: representation, layer, window and least context (tokens), type of a stored key, arithmetic.

    autocast: one of `AUTOCAST`; keys of another arithmetic are other keys, so that a store's queries follow the store.
    """

    representation: str = DEFAULT_REPRESENTATION
    layer: int = -1
    window: int | None = None
    context: int | None = None
    key_dtype: str = "float16"
    autocast: str | None = None

    def __post_init__(self) -> None:
        """Refuse an arithmetic that nobody knows."""
        if self.autocast not in AUTOCAST:
            raise ValueError(f"autocast: expected one of {AUTOCAST}, found {self.autocast!r}")

    def resolved(self, model_context: int) -> KeySpec:
        """The same with window (default: the model's context, up to `DEFAULT_WINDOW`) and context (default: half the
        window) filled in.
        """
        window = min(model_context, DEFAULT_WINDOW) if self.window is None else self.window
        return replace(self, window=window, context=window // 2 if self.context is None else self.context)


@dataclass(frozen=True)
class Settings:
    """How a store is searched and mixed; None is the store's own default (temperature, k, nprobe, rerank)."""

    lambda_: float = DEFAULT_LAMBDA
    temperature: float | None = None
    k: int | None = None
    nprobe: int | None = None
    rerank: str | None = None
    exact: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no mixture can be made with, before a model has run for it."""
        if not 0 <= self.lambda_ <= 1:
            raise ValueError(f"lambda_: expected a weight between 0 and 1, found {self.lambda_}")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: expected a positive finite number, found {self.temperature}")
        if self.k is not None and self.k < 1:
            raise ValueError(f"k: expected at least 1, found {self.k}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def package_version() -> str:
    """Version of this package, "unknown" in a source tree that is not installed."""
    try:
        return version("knnlm")
    except PackageNotFoundError:
        return "unknown"


def describe(loaded: Loaded, keys: KeySpec, *, source: str | None = None, store: Any = None) -> dict[str, Any]:
    """The attributes of a store that `loaded` writes with `keys`; JSON.

    source: folder or name to load the model from again; default: where `loaded` came from. store: path of the store,
    from which a folder is then remembered, so that both can be moved together and the store tells of no other folder.
    """
    keys = resolve(loaded, keys)
    source = getattr(loaded, "source", None) if source is None else source
    model = {
        "name": loaded.name,
        "fingerprint": loaded.fingerprint,
        "dtype": _dtype(loaded),
        "context": int(loaded.context),
        "source": None if source is None else _seen_from(source, store),
        **_computation(loaded),
    }
    return {
        "knnlm": package_version(),
        "model": {name: value for name, value in model.items() if value is not None},
        "tokenizer": {"fingerprint": loaded.tokenizer.fingerprint},
        "vocabulary_size": int(loaded.tokenizer.vocab_size),
        "document_start": int(loaded.tokenizer.bos_id),
        **asdict(keys),
    }


def resolve(loaded: Loaded, keys: KeySpec | None = None, store: Any = None) -> KeySpec:
    """How keys are made with a model: as `keys` say, else as `store` says, else the defaults; all of it filled in.

    A model without a feed-forward module that is known has none of the paper's keys: the input of its output embedding
    is taken instead of "ffn-input", and the result says so, as "module:NAME".
    """
    spec = (keys or key_spec(store) or KeySpec()).resolved(loaded.context)
    if spec.representation == DEFAULT_REPRESENTATION:
        from knnlm.model.capture import fallback

        name = fallback(loaded.model)
        spec = spec if name is None else replace(spec, representation=f"module:{name}", layer=-1)
    return spec


def key_spec(store: Any) -> KeySpec | None:
    """How a store's keys were made, None where its attributes do not say; ValueError where knnlm did not write them."""
    check_attributes(store)
    attributes = getattr(store, "attributes", None) or {}
    if "representation" not in attributes:
        return None
    names = ("representation", "layer", "window", "context", "key_dtype", "autocast")
    return KeySpec(**{name: attributes[name] for name in names if name in attributes})


def check(store: Any, loaded: Loaded, keys: KeySpec | None = None) -> None:
    """Raise IdentityError unless `store` was written by this model and tokenizer, with these keys.

    keys: what the caller wants to use; None is not compared. A store without attributes (made by hand) is only
    checked for its dimension, by the search; of a union of stores each is checked. The message names what differs,
    both sides, and what to do. Keys of another window or context than the store's are compared all the same, with a
    UserWarning: a longer window may be wanted for the LM, but its keys have seen other text than those of the store.
    Raises ValueError for attributes that knnlm did not write.
    """
    keys = None if keys is None else resolve(loaded, keys)
    members = getattr(store, "stores", None)
    if members is not None:  # a union says of itself only what all of its stores agree on
        for member in members:
            check(member, loaded, keys)
        return
    check_attributes(store)
    attributes: Mapping[str, Any] = getattr(store, "attributes", None) or {}
    wrong: list[str] = []

    def compare(what: str, expected: Any, found: Any) -> None:
        if expected is not None and found is not None and expected != found:
            wrong.append(f"{what}: the store has {_short(expected)}, found {_short(found)}")

    model = attributes.get("model") or {}
    tokenizer = attributes.get("tokenizer") or {}
    name = model.get("name")
    again = f". Load {name or 'the model that wrote it'}, or dump the store again with this model"
    held = model.get("dtype")
    remedy = again
    if model.get("fingerprint") not in (None, loaded.fingerprint) and held not in (None, found := _dtype(loaded)):
        wrong.append(
            f"type of the model's weights: loaded as {found}, the store is of {held}: load them with dtype={held!r} "
            f"(in commands --dtype {held})"
        )
        remedy = ""  # it may be the very model
    else:
        compare("model weights" + (f" (written by {name}, this is {loaded.name})" if name else ""),
                model.get("fingerprint"), loaded.fingerprint)  # fmt: skip
    compare("tokenizer", tokenizer.get("fingerprint"), loaded.tokenizer.fingerprint)
    compare("vocabulary size", attributes.get("vocabulary_size"), int(loaded.tokenizer.vocab_size))
    compare("token in front of a document", attributes.get("document_start"), int(loaded.tokenizer.bos_id))
    if keys is not None:
        compare("key representation", attributes.get("representation"), keys.representation)
        compare("layer", attributes.get("layer"), keys.layer)
        if "autocast" in attributes and attributes["autocast"] != keys.autocast:
            wrong.append(
                f"arithmetic (autocast) of the model: the store has {attributes['autocast']}, found {keys.autocast}"
            )
    if not wrong and (found := _computes_otherwise(model, loaded)):
        wrong.append(found)
        remedy = (
            ". Load it with the configuration and the code that it had, or dump the store again with it as it is now"
        )
    if keys is not None and not wrong:
        _warn_of_windows(attributes, keys)
    if wrong:
        where = getattr(store, "path", None)
        raise IdentityError(
            f"the store{f' {where}' if where else ''} does not belong to this model: "
            + "; ".join(wrong)
            + (remedy if len(wrong) == 1 else again)
        )


def _dtype(loaded: Loaded) -> str | None:
    from knnlm.model.modules import dtype_of

    return dtype_of(loaded.model)


def _computation(loaded: Loaded) -> dict[str, Any]:
    """What the weights do not tell of a model: the probe, and the settings that would explain another one."""
    probe = getattr(loaded, "probe", None)
    if probe is None:
        return {}
    from knnlm.model.probe import settings_of_model

    return {"probe": probe, "settings": settings_of_model(loaded.model)}


def _computes_otherwise(stored: Mapping[str, Any], loaded: Loaded) -> str:
    """How a model of the right weights differs from what wrote a store, in words; "" where it does not."""
    held = stored.get("probe")
    context = {stored.get("context"), int(loaded.context)}
    if held is None or (found := getattr(loaded, "probe", None)) is None:
        return ""
    from knnlm.model.probe import BEYOND, LENGTH, distance, tolerance, what_differs

    if len(context) > 1 and min(c or 0 for c in context) < 2 * LENGTH:
        return ""  # one was asked with less context
    apart = distance(held, found)
    if apart <= tolerance(_dtype(loaded)):
        if far := what_differs(stored.get("settings"), loaded.model, BEYOND):
            warnings.warn(
                f"the store was written with {far}: on a short text the model computes the same, further on keys may "
                "be others; load it with the configuration that it had, or dump the store again",
                stacklevel=4,
            )
        return ""
    cause = what_differs(stored.get("settings"), loaded.model)
    return (
        f"what the model computes: its weights are the store's, but log-probabilities of fixed tokens differ by "
        f"{apart:.2g} of their spread: "
        + (f"the store was written with {cause}" if cause else "its code or its buffers are others")
    )


def _seen_from(source: str, store: Any) -> str:
    """A folder as it is named from a store, absolute where there is no way or no store; another name as it is."""
    if not Path(source).is_dir():
        return source
    folder = Path(source).resolve()
    if store is None:
        return folder.as_posix()
    try:
        seen = Path(os.path.relpath(folder, Path(store).resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return folder.as_posix()
    return seen if seen.startswith(".") else f"./{seen}"  # a name on the hub never looks like this


def _warn_of_windows(attributes: Mapping[str, Any], keys: KeySpec) -> None:
    """Say where queries see more or less of a text than the keys of a store did; `keys` are resolved."""
    pairs = [(name, attributes.get(name), getattr(keys, name)) for name in ("window", "context")]
    differ = [f"{name} {found} where the store has {held}" for name, held, found in pairs if held not in (None, found)]
    if differ:
        warnings.warn(
            f"keys are made with {' and '.join(differ)}: leave them out to use the store's, or dump the "
            "store again with these",
            stacklevel=4,
        )


def settings_of(store: Any, **given: Any) -> Settings:
    """Settings for a store: what is given and not None, else what `tune` saved, else the documented defaults.

    Untuned: lambda = 0.25, T = the store's own default temperature, k = min(1024, n). Raises TypeError for an unknown
    name and ValueError for attributes that knnlm did not write.
    """
    check_attributes(store)
    tuned = (getattr(store, "attributes", None) or {}).get("tuned") or {}
    fields = ("lambda_", "temperature", "k", "nprobe", "rerank", "exact")
    chosen = {name: tuned[name] for name in fields if tuned.get(name) is not None}
    chosen.update({name: value for name, value in given.items() if value is not None})
    settings = Settings(**chosen)
    if settings.k is None:
        settings = replace(settings, k=max(1, min(DEFAULT_K, len(store))))
    if settings.temperature is None:
        settings = replace(settings, temperature=default_temperature(store))
    return settings


def stored_temperature(store: Any) -> float | None:
    """The T that a store proposes, None where it proposes none (no index yet, a cache)."""
    info = getattr(store, "info", None)
    found = info().get("default_temperature") if callable(info) else getattr(store, "default_temperature", None)
    return float(found) if found is not None and found > 0 else None


def default_temperature(store: Any) -> float:
    """T for a store that was not tuned: what it proposes, else the same rule on a sample of its keys, else 1.

    The rule is median(d_k - d_1) / 6 over stored keys with their own entries left out, k = n / 10 up to 1024: the last
    neighbor then weighs exp(-6) of the first.
    """
    proposed = stored_temperature(store)
    n = len(store)
    if proposed is not None or n < 2 or not (hasattr(store, "keys") and hasattr(store, "documents")):
        return proposed or 1.0
    ids = spread_ids(store, 64)
    queries = np.concatenate([np.asarray(store.keys(int(i), int(i) + 1), np.float32) for i in ids])
    near = store.search(queries, max(1, min(1024, n // 10)), exclude=np.stack([ids, ids + 1], axis=1))
    return temperature_of(near.distances)


def temperature_of(distances: Any) -> float:
    """The rule of the default temperature: median(d_k - d_1) / 6 over rows (q, k) of neighbors, 1 where that is 0.

    `rust/index/calibration.rs` has it too, for the value that `build` leaves in a store. Rows with a missing neighbor
    do not count.
    """
    d = np.asarray(distances, np.float64)
    d = d[np.isfinite(d).all(axis=1)]
    gap = float(np.median(np.abs(d[:, -1] - d[:, 0]))) if d.size else 0.0
    return gap / 6 if gap > 0 else 1.0


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 32 else repr(value)
