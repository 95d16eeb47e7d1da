"""Key choice: how keys are made with a model: as asked, as a store has them, or as the paper does. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from knnlm.model.key_spec import DEFAULT_REPRESENTATION, KeySpec, key_spec
from knnlm.model.loaded import Loaded
from knnlm.system.counted import counted
from knnlm.system.log import LOG


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
    LOG.debug(
        "keys: %s of layer %d; windows of %s, each token sees %s before it at least; arithmetic %s",
        spec.representation,
        spec.layer,
        counted(spec.window or 0, "token"),
        f"{spec.context:,}",
        spec.autocast or "of the model",
    )
    return spec
