"""One way to load a language model: our checkpoint folder, or any causal LM of Hugging Face.

Everything behind this file sees a module whose output has ``.logits`` (B, T, v), a `Tokenizer`, the context length,
and a fingerprint that ties a store to the weights that made its keys. Next: `capture.py` hooks the module.
"""

from __future__ import annotations

import hashlib
import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from knnlm.checkpoint import read_config, read_model
from knnlm.tokens import BackendTokenizer, Tokenizer

UNKNOWN_CONTEXT = 2048  # for a model that states no longest sequence
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")


@dataclass(frozen=True)
class LoadedModel:
    """A model with what is needed to use it."""

    model: nn.Module  # evaluation mode; output has .logits (B, T, v)
    tokenizer: Tokenizer
    context: int  # longest input in tokens
    name: str  # for people

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, see `fingerprint_of`; computed once."""
        return fingerprint_of(self.model)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device


def fingerprint_of(model: nn.Module) -> str:
    """SHA-256, hexadecimal, over name, shape, dtype and bytes of every parameter in order of name.

    Independent of device, file format and folder. Converting to another dtype changes it, as it changes the keys.
    """

    def digest(item: tuple[str, nn.Parameter]) -> bytes:
        name, parameter = item
        value = parameter.detach().cpu().contiguous()
        raw = hashlib.sha256(cast(Any, value.reshape(-1).view(torch.uint8).numpy()))  # lets go of the GIL
        return f"{name} {tuple(value.shape)} {value.dtype} {raw.hexdigest()}\n".encode()

    parameters = sorted(model.named_parameters())
    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
        return hashlib.sha256(b"".join(pool.map(digest, parameters))).hexdigest()


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The given device, or the GPU if there is one, or the CPU."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_model(
    path: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> LoadedModel:
    """Load a model folder written by `train`, or a Hugging Face causal LM from a folder or by its hub name.

    ``device`` None takes the GPU if there is one; ``dtype`` None keeps the type of the file, else a torch dtype or its
    name. Raises FileNotFoundError for a folder that holds no model, ImportError where transformers is needed and
    missing, ValueError for a damaged or unusable model.
    """
    where = pick_device(device)
    wanted = _dtype(dtype)
    folder = Path(path)
    if folder.is_dir() and read_config(folder) is not None:
        model: nn.Module = read_model(folder)
        tokenizer = Tokenizer.load(folder)
        context = read_model_context(model)
        if tokenizer.vocab_size > model.config.vocab_size:  # type: ignore[union-attr,operator]
            raise ValueError(
                f"expected a tokenizer of at most {model.config.vocab_size} ids in {folder}, "  # type: ignore[union-attr]
                f"found {tokenizer.vocab_size}: model and tokenizer do not belong together"
            )
        return LoadedModel(model.to(device=where, dtype=wanted).eval(), tokenizer, context, folder.resolve().name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"expected config.json of a model in {folder}, found none; give the folder of a checkpoint"
        )
    return _load_hugging_face(str(path), where, wanted)


def read_model_context(model: nn.Module) -> int:
    """Longest input of a model, from its configuration."""
    config: Any = getattr(model, "config", None)
    if isinstance(context := getattr(config, "context", None), int):
        return context
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    for name in _CONTEXT_NAMES:
        if isinstance(value := getattr(config, name, None), int) and value > 0:
            return value
    return UNKNOWN_CONTEXT


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"expected a floating-point type such as float32 or bfloat16, found {dtype!r}")
    return found


def _load_hugging_face(name: str, device: torch.device, dtype: torch.dtype | None) -> LoadedModel:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(
            f"{name} is not a folder written by knnlm, so it needs Hugging Face transformers, which is not installed: "
            "pip install 'knnlm[hf]'"
        ) from error
    try:
        auto = transformers.AutoTokenizer.from_pretrained(name)
        model = transformers.AutoModelForCausalLM.from_pretrained(name, torch_dtype=dtype or "auto")
    except (OSError, ValueError) as error:
        raise type(error)(f"expected a causal language model with tokenizer at {name}, found: {error}") from error
    backend = getattr(auto, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"expected a fast tokenizer (tokenizer.json) for {name}, found {type(auto).__name__}")
    bos_id = auto.bos_token_id if auto.bos_token_id is not None else auto.eos_token_id
    tokenizer = BackendTokenizer(type(backend).from_str(backend.to_str()), bos_id)
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise ValueError(f"expected a tokenizer of at most {rows} ids at {name}, found {tokenizer.vocab_size}")
    return LoadedModel(model.to(device).eval(), tokenizer, read_model_context(model), name.rstrip("/").split("/")[-1])
