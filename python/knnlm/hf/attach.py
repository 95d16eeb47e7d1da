"""Attach: a store beside any causal model of Hugging Face, after a check that the model has written it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from knnlm.hf.memory import Memory
from knnlm.lm.settings import settings_of
from knnlm.model.capture import Capture
from knnlm.model.fingerprint import fingerprint_of
from knnlm.model.given import as_loaded
from knnlm.model.identity import check
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec, key_spec
from knnlm.model.load import read_model_context
from knnlm.model.loaded import Loaded
from knnlm.model.modules import config_of, device_of, unwrapped
from knnlm.model.suitable import check_causal, check_config
from knnlm.model.translator import Translator, as_translator
from knnlm.store.opening import as_store
from knnlm.store.protocols import Searchable


def attach(
    model: nn.Module,
    store: str | os.PathLike[str] | Searchable,
    *,
    tokenizer: Any = None,
    lambda_: float | None = None,
    temperature: float | None = None,
    k: int | None = None,
    nprobe: int | None = None,
    rerank: str | None = None,
    exact: bool | None = None,
    threads: int | None = None,
    representation: str | None = None,
    layer: int | None = None,
) -> Memory:
    """Have a model's logits be the log-probabilities of its mixture with a store, until `Memory.detach`.

    Its own `generate` (greedy, sampling, beams, batches, streamers), its loss and everything else that calls it go on
    as before, with p = λ·p_kNN + (1−λ)·p_LM in place of p_LM. Padding that an attention mask names is not looked for.

    model: a causal language model of transformers, wrapped or not (PEFT, DataParallel, torch.compile, which runs
    uncompiled while a store is attached). store: its folder, or a datastore. tokenizer: the model's, if it is to be
    checked, too, and for `Memory.generate` with text. Settings: as of `KNNLM`, by default those that `tune` saved.
    representation, layer: where the key is captured; default: as the store says.

    Raises:
        FileNotFoundError: no store there.
        IdentityError: another model or tokenizer wrote the store.
        ValueError: a model that is no causal language model, or not in memory; one with a store attached already; a
            store of another width.

    Example:
        >>> with knnlm.attach(model, "store") as memory:  # doctest: +SKIP
        ...     model.generate(**inputs, max_new_tokens=50)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a model of transformers, found a {type(model).__name__}")
    loaded = _loaded(model, tokenizer)
    opened = store if isinstance(store, Searchable) else as_store(store)
    try:
        chosen: dict[str, Any] = {"representation": representation, "layer": layer}
        spec = replace(
            key_spec(opened) or KeySpec(), **{name: value for name, value in chosen.items() if value is not None}
        )
        check(opened, loaded, spec)
        keys = resolve(loaded, spec)
        settings = settings_of(
            opened,
            lambda_=lambda_,
            temperature=temperature,
            k=k,
            nprobe=nprobe,
            rerank=rerank,
            exact=exact,
            threads=threads,
        )
        if key_spec(opened) is None:  # it says of no model that it is its own
            _check_width(loaded, keys, opened)
        owns = opened is not store
        return Memory(model, opened, keys, settings, context=loaded.context, tokenizer=tokenizer, owns_datastore=owns)
    except BaseException:
        if opened is not store:
            opened.close()  # type: ignore[attr-defined]
        raise


@torch.no_grad()
def _check_width(loaded: Loaded, keys: KeySpec, store: Searchable) -> None:
    ids = torch.zeros((1, 1), dtype=torch.int64, device=device_of(loaded.model))
    options = {"decoder_input_ids": ids} if isinstance(loaded, Translator) else {}
    with Capture(loaded.model, keys.representation, keys.layer) as capture:
        loaded.model(ids, **options)
        width = int(capture.keys.shape[-1])
    if width != store.dim:
        raise ValueError(
            f"expected keys of {store.dim} numbers, as the store has them, found {width} of {loaded.name}: take the "
            "model and the representation that the store was made with"
        )


@dataclass(frozen=True)
class _Untokenized:
    """A model without its tokenizer: its weights can be compared, and its configuration read."""

    model: nn.Module
    context: int
    name: str
    fingerprint: str
    tokenizer: Any = None
    probe: None = None


def _loaded(model: nn.Module, tokenizer: Any) -> Loaded:
    module = unwrapped(model)
    device_of(module)  # says which weights are not in memory
    if getattr(config_of(module), "is_encoder_decoder", False) and callable(tokenizer):
        return as_translator(module, tokenizer)
    if tokenizer is not None:
        return as_loaded(module, tokenizer)
    config: Any = config_of(module)
    name = getattr(config, "_name_or_path", "") or type(module).__name__
    if not getattr(config, "is_encoder_decoder", False):
        check_config(config, name)
        check_causal(module, name)
    return _Untokenized(module, read_model_context(module), name, fingerprint_of(module))
