"""Fingerprint of weights: the same for the same weights, however they are wrapped, where they are and who loaded them.

A PEFT adapter that is active makes other keys, so it is other weights; one that is there but not active, or disabled,
counts for nothing, and one that was merged is in the weights themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from torch import Tensor, nn

from knnlm.model.modules import device_of, unwrapped

_INSIDE = ("_orig_mod.", "base_layer.", "original_module.")
"""What torch.compile and PEFT put into names, anywhere."""

_FRONT = ("module.", "base_model.model.")
"""What DataParallel, PEFT and hand-made wrappers put in front of all of them."""


def fingerprint_of(model: nn.Module) -> str:
    """SHA-256, hexadecimal, over name, shape, dtype and bytes of every parameter in order of name.

    Independent of device, file format, folder and wrappers. Converting to another dtype changes it, as it changes the
    keys. Raises ValueError for weights that are not in memory.
    """

    def digest(item: tuple[str, Tensor]) -> bytes:
        name, parameter = item
        value = parameter.detach().cpu().contiguous()
        raw = hashlib.sha256(cast(Any, value.reshape(-1).view(torch.uint8).numpy()))  # lets go of the GIL
        return f"{name} {tuple(value.shape)} {value.dtype} {raw.hexdigest()}\n".encode()

    model = unwrapped(model)
    device_of(model)
    named = dict(_active(model))
    for prefix in _FRONT:
        while named and all(name.startswith(prefix) for name in named):
            named = {name.removeprefix(prefix): parameter for name, parameter in named.items()}
    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
        return hashlib.sha256(b"".join(pool.map(digest, sorted(named.items())))).hexdigest()


def _active(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters by their names without wrappers; of adapters, only those that do something, and their scales."""
    adapted = {name: module for name, module in model.named_modules() if _is_adapted(module)}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        holder = next((p for i in range(len(parts), 0, -1) if (p := ".".join(parts[:i])) in adapted), None)
        if holder is not None:
            inner = parts[len(holder.split(".")) :]
            if inner[0] not in ("base_layer", "original_module") and not set(inner) & _adapters(adapted[holder]):
                continue
        for inside in _INSIDE:
            name = name.replace(inside, "")
        yield name, parameter
    for name, module in adapted.items():
        scales = getattr(module, "scaling", None) or {}
        for adapter in sorted(_adapters(module)):
            if isinstance(scale := scales.get(adapter), (int, float)):
                yield f"{name}.scaling.{adapter}", torch.tensor(float(scale), dtype=torch.float64)


def _is_adapted(module: nn.Module) -> bool:
    """Whether it is a module of PEFT around another one; `active_adapters` and `disable_adapters` are its names."""
    inner = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
    return isinstance(inner, nn.Module) and hasattr(module, "disable_adapters")


def _adapters(module: Any) -> set[str]:
    if module.disable_adapters:
        return set()
    active = getattr(module, "active_adapters", None) or getattr(module, "active_adapter", None) or ()
    merged = set(getattr(module, "merged_adapters", None) or ())
    return {active} - merged if isinstance(active, str) else set(active) - merged
