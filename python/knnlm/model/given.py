"""Given model: what a caller hands over as a model or a tokenizer, as the package knows them. Torch only if needed."""

from __future__ import annotations

import os
from typing import Any

from knnlm.model.loaded import Loaded
from knnlm.model.of_store import load_for
from knnlm.store.datastore import Datastore


def given_model(model: Any, tokenizer: Any = None, store: Datastore | None = None, **load: Any) -> Loaded:
    """A model by its folder or name, an object, or with None the one that `store` remembers, ready for use.

    tokenizer: of a torch module. load: arguments of `load_model`, for a model that has to be loaded.

    Raises:
        TypeError: arguments that are of no use for such a model; what is no model.
        Others: as `load_for` and `load_model`.
    """
    named = model is None or isinstance(model, (str, os.PathLike))
    if not named:
        useless = [name for name, value in load.items() if value not in (None, False)]
        if useless:
            raise TypeError(
                f"{useless[0]}: expected it with the name of a model, found a {type(model).__name__} that is loaded "
                "already: leave it out, and load the model as it should be"
            )
        return as_loaded(model, tokenizer)
    if tokenizer is not None:
        raise TypeError(
            "tokenizer: expected none, as a model that is loaded by name comes with its own; to use another one load "
            "the model yourself and give both"
        )
    if store is not None:
        found: Loaded = load_for(store, model, **load)
        return found
    from knnlm.model.load import load_model

    return load_model(model, **load)


def as_loaded(model: Any, tokenizer: Any = None) -> Loaded:
    """A module with its tokenizer as `load_model` gives it; what is loaded already stays as it is.

    Raises TypeError if there is no tokenizer, ValueError for an encoder-decoder or another model that is not causal.
    """
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        raise TypeError(
            f"model: expected a model, found its name {str(model)!r}: KNNLM.from_pretrained loads it, or give "
            f"load_model({str(model)!r})"
        )
    if hasattr(model, "model") and hasattr(model, "tokenizer") and tokenizer is None:
        loaded: Loaded = model
        return loaded
    from torch import nn

    from knnlm.model.load import LoadedModel, read_model_context
    from knnlm.model.modules import config_of, unwrapped
    from knnlm.model.suitable import check_causal, check_config, check_vocabulary

    module: Any = model.model if hasattr(model, "fingerprint") else model
    if not isinstance(module, nn.Module):
        raise TypeError(f"model: expected what load_model returns or a torch module, found a {type(model).__name__}")
    if tokenizer is None:
        raise TypeError(f"a {type(model).__name__} needs its tokenizer: KNNLM(model, datastore, tokenizer=...)")
    module = unwrapped(module)
    config: Any = config_of(module)
    source = getattr(config, "_name_or_path", None) or None
    name = getattr(model, "name", None) or source or type(module).__name__
    own = as_tokenizer(tokenizer, config, name)
    if hasattr(config, "model_type"):
        check_config(config, name)
        check_vocabulary(own, module, name)
        check_causal(module, name)
    return LoadedModel(module, own, read_model_context(module), name, source)


def as_tokenizer(tokenizer: Any, config: Any = None, where: str = "tokenizer") -> Any:
    """Our interface for a tokenizer of ours, a fast Hugging Face one, one of the `tokenizers` library, or a path.

    config: the model's, which may name what goes in front of a document where the tokenizer does not.
    """
    if hasattr(tokenizer, "bos_id") and hasattr(tokenizer, "fingerprint"):
        return tokenizer
    from knnlm.model.suitable import check_tokenizer, hugging_face_tokenizer
    from knnlm.text.tokenizer import BackendTokenizer, Tokenizer

    if isinstance(tokenizer, str) or hasattr(tokenizer, "__fspath__"):
        found = Tokenizer.load(tokenizer)
        if isinstance(found, BackendTokenizer) and hasattr(config, "model_type"):
            return hugging_face_tokenizer(found.backend, config, str(tokenizer))
        check_tokenizer(found, str(tokenizer))
        return found
    return hugging_face_tokenizer(tokenizer, config, where)
