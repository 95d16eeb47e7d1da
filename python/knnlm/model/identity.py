"""Identity: what a store remembers of the model that wrote it, and the check that a model may search it. No torch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import IdentityError, KeySpec
from knnlm.model.loaded import Loaded
from knnlm.store.attributes import check_attributes
from knnlm.store.protocols import attributes_of, path_of
from knnlm.store.union import StoreUnion


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
        "revision": getattr(loaded, "revision", None),
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


def check(store: Any, loaded: Loaded, keys: KeySpec | None = None) -> None:
    """Raise IdentityError unless `store` was written by this model and tokenizer, with these keys.

    keys: what the caller wants to use; None is not compared, nor is a tokenizer that is None. A store without
    attributes (made by hand) is only checked for its dimension, by the search; of a union of stores each is checked.
    The message names what differs, both sides, and what to do. Keys of another window or context than the store's are
    compared all the same, with a UserWarning: a longer window may be wanted for the LM, but its keys have seen other
    text than those of the store. Raises ValueError for attributes that knnlm did not write.
    """
    keys = None if keys is None else resolve(loaded, keys)
    if isinstance(store, StoreUnion):  # it says of itself only what all of its stores agree on
        for member in store.stores:
            check(member, loaded, keys)
        return
    check_attributes(store)
    attributes = attributes_of(store)
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
    if loaded.tokenizer is not None:
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
        where = path_of(store)
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


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 32 else repr(value)
