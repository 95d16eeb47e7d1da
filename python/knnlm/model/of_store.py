"""The model of a store: the one that is given, or the one that the store remembers; never code that a store names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from knnlm.model.identity import check
from knnlm.store.attributes import check_attributes
from knnlm.store.datastore import Datastore
from knnlm.system.usage import UsageError


def load_for(
    store: Datastore,
    model: str | Path | None = None,
    *,
    load: Callable[..., Any] | None = None,
    dtype: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **model_kwargs: Any,
) -> Any:
    """The given model, or the one that a store remembers, in the type of weights that made the store's keys.

    model: folder or name, None = as the store remembers. load: in place of `load_model`; it gets the name and the other
    arguments, which are those of `load_model`. Code of a model is only run if the model is given: whoever made a store
    could have it name any.

    Raises:
        UsageError: none is given and none is remembered, or it is gone; code is to be trusted without a model.
        IdentityError: the model or the tokenizer did not write the store.
        ValueError: the store's attributes are not what knnlm writes.
    """
    check_attributes(store)
    remembered = store.attributes.get("model") or {}
    if model is None:
        if trust_remote_code:
            raise UsageError(
                "trust_remote_code runs the code of the model that is given, found no model: a store is not trusted "
                "to name one; give the model, too (in commands --trust-remote-code with --model NAME)"
            )
        model, its_revision = remembered_model(store)
        revision = its_revision if revision is None else revision
    loaded = (load or _load_model())(
        model,
        dtype=remembered.get("dtype") if dtype is None else dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        **model_kwargs,
    )
    check(store, loaded)
    return loaded


def _load_model() -> Callable[..., Any]:
    from knnlm.model.load import load_model

    return load_model


def remembered_model(store: Datastore) -> tuple[str, str | None]:
    """Folder or name that a store's model is loaded from again, and its revision.

    Raises UsageError if none is remembered, or it is gone; ValueError for attributes that knnlm did not write.
    """
    check_attributes(store)
    remembered = store.attributes.get("model") or {}
    source = remembered.get("source")
    revision = remembered.get("revision")
    if source is None:
        raise UsageError(
            f"the store {store.path} remembers no model that could be loaded: give the model (in commands --model NAME)"
        )
    if not (source.startswith(".") or os.path.isabs(source)):  # a name on the hub never looks like this
        return str(source), revision
    folder = Path(os.path.normpath(Path(store.path).resolve() / source))
    if not folder.exists():
        raise UsageError(
            f"the store {store.path} was written by the model {remembered.get('name')} (fingerprint "
            f"{str(remembered.get('fingerprint'))[:12]}), expected at {folder}, found nothing there: store and model "
            "are to be moved together, or give the model (in commands --model)"
        )
    return str(folder), revision
