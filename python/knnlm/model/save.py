"""Save: a model and its tokenizer as a folder that `load_model` reads, whoever made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from knnlm.model.checkpoint import save_model
from knnlm.model.loaded import Loaded
from knnlm.model.modules import unwrapped
from knnlm.model.transformer import TransformerLM
from knnlm.system.extras import module


def save_loaded(loaded: Loaded, folder: Path) -> None:
    """Write weights, configuration and tokenizer; a chat template and all else that a tokenizer came with stay.

    Raises ValueError for a model with an adapter (PEFT), TypeError for a module that cannot be saved.
    """
    model: Any = unwrapped(loaded.model)
    if isinstance(model, TransformerLM):
        save_model(folder, model, loaded.tokenizer)
        return
    if not hasattr(model, "save_pretrained"):
        raise TypeError(
            f"expected a model of knnlm or of transformers to save, found a {type(model).__name__}: save it yourself, "
            "and give it to KNNLM.open with the store"
        )
    if any(name.endswith("base_layer") for name, _ in model.named_modules()):
        raise ValueError(
            f"expected a whole {type(model).__name__} to save, found one with an adapter (PEFT): merge it first, "
            "model.merge_and_unload()"
        )
    model.save_pretrained(folder)
    _tokenizer(loaded).save_pretrained(folder)


def _tokenizer(loaded: Loaded) -> Any:
    """The tokenizer of transformers that a model came with, or one made of what the `tokenizers` library has."""
    tokenizer: Any = loaded.tokenizer
    if hasattr(tokenizer.original, "save_pretrained"):
        return tokenizer.original
    transformers: Any = module("transformers", "a model of transformers")
    start = tokenizer.backend.id_to_token(tokenizer.bos_id)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, bos_token=start)
