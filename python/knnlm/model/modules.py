"""Modules: what the other files ask of a model's module tree, whoever made the model and whatever it is wrapped in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, (Distributed)DataParallel and PEFT wrappers: the same weights, run as they are.

    Hooks on the modules of a compiled model are not seen by what is compiled already, and a wrapper hides what its
    model's forward accepts. PEFT's adapters are inside of the model and stay as active as they are. Raises ValueError
    for an adapter that puts positions of its own in front of the text.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        elif hasattr(model, "peft_config") and callable(getattr(model, "get_base_model", None)):
            if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
                raise ValueError(
                    f"{type(model).__name__}: expected a model that reads the text alone, found a prompt-learning "
                    "adapter, which puts positions of its own in front: use an adapter inside of the layers, such as "
                    "LoRA, or the model without it"
                )
            inner = cast(Any, model).get_base_model()
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


def is_compiled(model: nn.Module) -> bool:
    """Whether some of its modules were compiled in place."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
        for module in model.modules()
    )


def eager(compiled: bool) -> AbstractContextManager[object]:
    """Runs modules that were compiled in place as they were before, so that hooks are seen; nothing for others."""
    stance = getattr(torch.compiler, "set_stance", None)  # torch 2.6
    return stance("force_eager") if compiled and stance is not None else nullcontext()


def autocast(device: torch.device, name: str | None) -> AbstractContextManager[object]:
    """torch's autocast to the type of a name; None: the model's own arithmetic."""
    return nullcontext() if name is None else torch.autocast(device.type, getattr(torch, name))


@contextmanager
def casts_kept() -> Iterator[None]:
    """Weights that autocast casts meanwhile are cast once, not at each pass; they must not change until the end.

    What torch does between the passes inside of one autocast, without autocast for what is between them.
    """
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


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


def dtype_of(model: nn.Module) -> str | None:
    """Name of the type of most of a model's floating-point weights, such as "float32"; None where it has none."""
    counts: Counter[str] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return max(counts, key=lambda name: counts[name], default=None)


def device_of(model: nn.Module) -> torch.device:
    """Where the ids go: the device of the first parameter. Raises ValueError where weights are not in memory."""
    first: nn.Parameter | None = None
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(
                f"expected the weights of {type(model).__name__} in memory, found {name} on the meta device "
                "(offloaded, or never loaded): load the model without device_map and offloading, where all of it fits"
            )
        first = parameter if first is None else first
    if first is None:
        raise ValueError(f"expected a model with weights, found none in {type(model).__name__}")
    return first.device
