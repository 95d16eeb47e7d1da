"""From hub: what is asked of transformers, by the folder or the name of a model, with errors that name it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from knnlm.model.hub_name import did_you_mean
from knnlm.system.extras import module


def asked_for_weights(name: str, kind: Any, dtype: torch.dtype | None, **options: Any) -> Any:
    """A model of an auto class of transformers; weights from safetensors only, and all of them.

    dtype: None keeps the type of the file. Raises ValueError where weights are missing, which would be random.
    """
    release = module("transformers", name).__version__
    model, report = asked(
        name,
        kind.from_pretrained,
        **{_dtype_name(release): dtype or "auto"},
        **options,
        use_safetensors=True,
        output_loading_info=True,
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{name}: expected all weights of a {type(model).__name__}, found none for {len(missing)} of them, such as "
            f"{missing[0]}, which would be random: give the folder of a whole model of this kind"
        )
    return model


def asked(name: str, load: Callable[..., Any], **options: Any) -> Any:
    """What transformers loads; its errors with the name of the model, and none with advice to run its code."""
    try:
        return load(name, **options)
    except (MemoryError, torch.OutOfMemoryError, ImportError):
        raise
    except Exception as error:  # of every type, a bare Exception among them
        said = str(error)
        if "trust_remote_code" in said:
            raise ValueError(
                f"{name}: expected a model that the installed transformers knows, found one that brings code of its "
                "own, which was not run. If you have read it and trust it, give the model by its name with "
                "trust_remote_code=True (in commands --model NAME --trust-remote-code)"
            ) from error
        if isinstance(error, OSError) and "safetensors" in said:
            raise ValueError(
                f"{name}: expected weights as safetensors, found none; a pickle can hold code and is not read: take a "
                "revision that has model.safetensors, or convert the weights and give the folder"
            ) from error
        kind = OSError if isinstance(error, OSError) else ValueError
        here = Path(name).is_dir()
        meant = "" if here else did_you_mean(name)
        raise kind(
            f"expected a model with its tokenizer at {name}{f' ({meant})' if meant else ''}, found: "
            f"{'' if here else 'there is no such folder, and as a name on the hub: '}{said}"
        ) from error


def to_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A type of weights by its name. Raises ValueError for what is none."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"expected a floating-point type such as float32 or bfloat16, found {dtype!r}")
    return found


def _dtype_name(release: str) -> str:
    """What a release of transformers calls the type of weights."""
    return "dtype" if tuple(int(part) for part in release.split(".")[:2]) >= (4, 56) else "torch_dtype"
