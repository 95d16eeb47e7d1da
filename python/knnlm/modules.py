"""Modules: what the other files ask of a model's module tree, whoever made the model."""

from __future__ import annotations

from torch import nn


def output_embedding(model: nn.Module) -> nn.Module | None:
    """The module that turns hidden states (..., d) into logits (..., v), as the model itself names it, or None."""
    getter = getattr(model, "get_output_embeddings", None)
    found = getter() if callable(getter) else None
    return found if isinstance(found, nn.Module) else None


def name_of(model: nn.Module, module: nn.Module) -> str:
    """Name of a module of `model`, as in `named_modules`; raises ValueError if it is none of them."""
    for name, candidate in model.named_modules():
        if candidate is module:
            return str(name)
    raise ValueError(f"expected a module of {type(model).__name__}, found another {type(module).__name__}")


def token_limit(model: nn.Module) -> int | None:
    """Ids below this one have an embedding and a logit; None where the model does not say."""
    getter = getattr(model, "get_input_embeddings", None)
    embedding = getter() if callable(getter) else None
    sizes = [getattr(embedding, "num_embeddings", None), getattr(output_embedding(model), "out_features", None)]
    known = [int(size) for size in sizes if isinstance(size, int)]
    return min(known, default=None)


def config_of(model: nn.Module) -> object | None:
    """The configuration of a model or, of a wrapper without one, of the first module inside that has one."""
    return next((found for module in model.modules() if (found := getattr(module, "config", None)) is not None), None)
