"""One way to load a language model: our checkpoint folder, or any causal LM of Hugging Face.

Everything behind this file sees a module whose output has ``.logits`` (B, T, v), a `Tokenizer`, the context length,
and a fingerprint that ties a store to the weights that made its keys. Next: `capture.py` hooks the module.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from knnlm.model.checkpoint import read_config, read_model
from knnlm.model.fingerprint import fingerprint_of
from knnlm.model.from_hub import asked, asked_for_weights, to_dtype
from knnlm.model.hub_name import check_hub_name
from knnlm.model.modules import config_of, device_of
from knnlm.model.suitable import (
    check_causal,
    check_config,
    check_tokenizer,
    check_vocabulary,
    context_of,
    hugging_face_tokenizer,
    layers_of,
)
from knnlm.model.weights import check_file, check_fit, made_on_meta, read_json, read_shapes
from knnlm.system.counted import counted
from knnlm.system.extras import module
from knnlm.system.log import LOG
from knnlm.system.usage import UsageError
from knnlm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model with what is needed to use it."""

    model: nn.Module  # evaluation mode; output has .logits (B, T, v)
    tokenizer: Tokenizer
    context: int  # longest input in tokens
    name: str  # for people
    source: str | None = None  # folder or name that it can be loaded from again
    revision: str | None = None  # of a name on the hub: branch, tag or commit that was asked for

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, see `fingerprint_of`; computed once."""
        return fingerprint_of(self.model)

    @cached_property
    def probe(self) -> list[float] | None:
        """What the model computes, see `probe.probe_of`; computed once."""
        from knnlm.model.probe import probe_of  # runs the model, which is below this file

        return probe_of(self)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return device_of(self.model)


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The given device, or the GPU if there is one, or the CPU. Raises ValueError for a device that is not here."""
    if device is not None:
        try:
            found = torch.device(device)
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            here = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
            here += ["mps"] if torch.backends.mps.is_available() else []
            raise ValueError(
                f"device: expected one that torch has here ({', '.join(here)}), found {str(device)!r}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        return found
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_model(
    path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **model_kwargs: Any,
) -> LoadedModel:
    """Load a model folder written by `train`, or a Hugging Face causal LM from a folder or by its hub name.

    ``device`` None takes the GPU if there is one; ``dtype`` None keeps the type of the file, else a torch dtype or its
    name. ``revision`` is a branch, tag or commit of a name on the hub. ``model_kwargs`` go to ``from_pretrained`` of
    the model (``attn_implementation``, ``device_map``, ``token``, ``cache_dir`` …), those of the hub (`HUB`) to that of
    its configuration and its tokenizer, too. Weights are read from safetensors only. Code that comes with a model runs
    only with ``trust_remote_code``, with your rights: only for a model that you trust.

    Raises:
        FileNotFoundError: a folder that holds no model, or not all of it.
        ImportError: transformers is needed and missing.
        TypeError, UsageError: ``model_kwargs`` or ``revision`` for a model that knnlm wrote.
        ValueError: a damaged or unusable model, or one that is no causal language model.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(
            f"model: expected the folder or name of a model, found a {type(path).__name__}; a model that is loaded "
            "already goes to KNNLM as it is"
        )
    if device is not None and "device_map" in model_kwargs:
        raise ValueError("device: expected it or device_map, found both; leave one of them out")
    where = pick_device(device)
    wanted = to_dtype(dtype)
    folder, began = Path(path), time.perf_counter()
    if not folder.exists():
        check_hub_name(path)
    if folder.is_dir():
        config = read_config(folder)
        if config is not None:
            _refuse_options(path, revision, model_kwargs)
            tokenizer = Tokenizer.load(folder)
            check_tokenizer(tokenizer, str(folder))
            if tokenizer.vocab_size > config.vocab_size:
                raise ValueError(
                    f"expected a tokenizer of at most {config.vocab_size} ids in {folder}, "
                    f"found {tokenizer.vocab_size}: model and tokenizer do not belong together"
                )
            model = read_model(folder).to(device=where, dtype=wanted).eval()
            return _told(LoadedModel(model, tokenizer, config.context, folder.resolve().name, str(path)), began)
        if not (folder / "config.json").is_file():
            adapter = (folder / "adapter_config.json").is_file()
            raise FileNotFoundError(
                f"expected config.json of a model in {folder}, found "
                + (
                    "an adapter (PEFT): merge it into its model and save that, or load both yourself and give KNNLM "
                    "the object"
                    if adapter
                    else "none; give the folder of a checkpoint"
                )
            )
    elif folder.exists():
        raise ValueError(f"{folder}: expected the folder of a model, found a file; give the folder that it is in")
    shared = {"revision": revision, "trust_remote_code": trust_remote_code}
    shared = {name: value for name, value in shared.items() if value is not None}
    found = _told(_load_hugging_face(str(path), where, wanted, shared, model_kwargs), began)
    return found if revision is None or folder.is_dir() else replace(found, revision=revision)


def _told(loaded: LoadedModel, began: float) -> LoadedModel:
    """The same, told to the logger."""
    sizes = sum(parameter.numel() for parameter in loaded.model.parameters())
    types = {str(parameter.dtype).removeprefix("torch.") for parameter in loaded.model.parameters()}
    LOG.debug(
        "model %s from %s: %s, %s, on %s, context %s; loaded in %.1f s",
        loaded.name,
        loaded.source,
        counted(sizes, "parameter"),
        ", ".join(sorted(types)),
        loaded.device,
        f"{loaded.context:,}",
        time.perf_counter() - began,
    )
    return loaded


HUB = ("token", "cache_dir", "local_files_only", "force_download", "proxies", "subfolder")
"""Options of `from_pretrained` that say where files come from: the same for weights, configuration and tokenizer."""


def _refuse_options(path: str | Path, revision: str | None, model_kwargs: dict[str, Any]) -> None:
    """Raise for what only a Hugging Face model has."""
    if revision is not None:
        raise UsageError(
            f"{path}: expected no revision of a model that knnlm train wrote, found {revision!r}: leave it out"
        )
    if model_kwargs:
        raise TypeError(
            f"{path}: expected device and dtype alone for a model that knnlm train wrote, found "
            f"{', '.join(model_kwargs)}: no option of knnlm is called so, and options of from_pretrained are for "
            "models of Hugging Face alone; leave it out"
        )


def read_model_context(model: nn.Module) -> int:
    """Longest input of a model, from its configuration. Raises ValueError for one that no model can read."""
    return context_of(config_of(model))


def _load_hugging_face(
    name: str, device: torch.device, dtype: torch.dtype | None, shared: dict[str, Any], model_kwargs: dict[str, Any]
) -> LoadedModel:
    transformers = module("transformers", f"{name} is not a folder written by knnlm: it")
    everywhere = shared | {option: model_kwargs[option] for option in HUB if option in model_kwargs}
    folder = Path(name) if Path(name).is_dir() else None
    if folder is not None:
        _check_files(folder)
    config = asked(name, transformers.AutoConfig.from_pretrained, **everywhere)
    check_config(config, name)
    if folder is not None:
        _check_sizes(transformers, config, folder, shared["trust_remote_code"])
    auto = asked(name, transformers.AutoTokenizer.from_pretrained, **everywhere)
    tokenizer = hugging_face_tokenizer(auto, config, name)
    model = asked_for_weights(name, transformers.AutoModelForCausalLM, dtype, **shared, **model_kwargs)
    check_vocabulary(tokenizer, model, name)
    model = (model if "device_map" in model_kwargs else model.to(device)).eval()
    check_causal(model, name)
    return LoadedModel(model, tokenizer, context_of(config), name.rstrip("/").split("/")[-1], name)


TOKENIZER_FILES = ("tokenizer.json", "*.model", "*.tiktoken", "vocab*", "*vocab.json", "merges.txt")


def _check_files(folder: Path) -> None:
    """Raise ValueError, with its name, for a file of a Hugging Face folder that is not what it should be.

    Raises FileNotFoundError where there is no file that a tokenizer could be made of.
    """
    if not any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES):
        raise FileNotFoundError(
            f"expected the model's tokenizer at {folder / 'tokenizer.json'}, found none: copy tokenizer.json (and what "
            "came with it) there, from where the model came from"
        )
    for file in (folder / "config.json", *sorted(folder.glob("tokenizer*.json"))):
        read_json(file)
    for file in sorted(folder.glob("*.model")):
        check_file(file)


def _check_sizes(transformers: Any, config: Any, folder: Path, trusted: bool) -> None:
    """Raise ValueError where config.json speaks of a much larger model than the weights beside it are of."""
    shapes = read_shapes(folder)
    if layers_of(config) > len(shapes):
        raise ValueError(
            f"{folder}: expected weights of {layers_of(config):,} layers, as config.json says, found {len(shapes):,} "
            "tensors: the two do not belong together"
        )
    make = transformers.AutoModelForCausalLM.from_config
    skeleton = made_on_meta(lambda: make(config, trust_remote_code=trusted))
    if skeleton is not None:
        check_fit(skeleton, shapes, folder, packed=16 if getattr(config, "quantization_config", None) else 1)
