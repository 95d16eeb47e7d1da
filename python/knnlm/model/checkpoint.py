"""Checkpoints without pickle: weights for users, and the whole state of a training run for resuming it.

A model folder holds ``config.json`` (with ``"model_type": "knnlm-transformer"``), ``model.safetensors`` and
``tokenizer.json``. ``training.safetensors`` beside them holds weights, moments of the optimiser, generator states, and
in its header the JSON state: one file, replaced by one rename, so a kill never leaves halves of two states.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.model.weights import made_on_meta, read_header, read_json
from knnlm.system.making import make_with_parents
from knnlm.system.own_files import replacing_path, write_text
from knnlm.text.tokenizer import Tokenizer

MODEL_TYPE = "knnlm-transformer"
CONFIG_FILE, WEIGHTS_FILE, STATE_FILE = "config.json", "model.safetensors", "training.safetensors"
TOKENIZER_FILE = "tokenizer.json"


def _save_atomically(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    with replacing_path(path) as partial:
        save_file(tensors, partial, metadata)


def _weights(model: TransformerLM) -> dict[str, torch.Tensor]:
    """Parameters by name, once each: tied weights have one name in ``named_parameters``."""
    return {name: p.detach().contiguous().cpu() for name, p in model.named_parameters()}


def _check_shapes(
    config: TransformerConfig,
    own: Mapping[str, torch.Tensor],
    found: Mapping[str, tuple[int, ...]],
    source: Path,
) -> None:
    """Raise ValueError unless a file holds the parameters of a model, by name and shape."""
    if set(own) != set(found):
        raise ValueError(
            f"expected the parameters of {config} in {source}, found {len(found)} of another model: "
            f"missing {sorted(set(own) - set(found))[:3]}, unknown {sorted(set(found) - set(own))[:3]}"
        )
    for name, parameter in own.items():
        if tuple(parameter.shape) != tuple(found[name]):
            raise ValueError(
                f"expected {name} of shape {tuple(parameter.shape)} in {source}, found {tuple(found[name])}"
            )


@torch.no_grad()
def _copy_weights(model: TransformerLM, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])


def save_model(folder: str | Path, model: TransformerLM, tokenizer: Tokenizer) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``tokenizer.json``; each file is whole at any time."""
    folder = Path(folder)
    make_with_parents(folder)
    config = {"model_type": MODEL_TYPE, **asdict(model.config)}
    for name, text in ((CONFIG_FILE, json.dumps(config, indent=1)), (TOKENIZER_FILE, tokenizer.to_json())):
        write_text(folder / name, text)
    _save_atomically(_weights(model), folder / WEIGHTS_FILE, {"format": "pt"})


def read_config(folder: str | Path) -> TransformerConfig | None:
    """The sizes of one of our models, or None where the folder holds none. Raises ValueError for a damaged file."""
    file = Path(folder) / CONFIG_FILE
    if not file.exists():
        return None
    data = read_json(file)
    if not isinstance(data, dict) or data.pop("model_type", None) != MODEL_TYPE:
        return None
    try:
        return TransformerConfig(**data)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected the sizes of a {MODEL_TYPE} in {file}, found: {error}") from error


def read_model(folder: str | Path) -> TransformerLM:
    """Load one of our models on the CPU, in evaluation mode.

    Raises ValueError, before anything of the model's size is allocated, where config and weights do not fit.
    """
    folder = Path(folder)
    config = read_config(folder)
    if config is None:
        raise ValueError(f"expected a {CONFIG_FILE} with model_type {MODEL_TYPE} in {folder}, found none")
    file = folder / WEIGHTS_FILE
    if not file.exists():
        raise FileNotFoundError(f"expected the weights of a model at {file}, found none; copy the whole folder")
    shapes = read_header(file)
    if config.n_layers > len(shapes):
        raise ValueError(
            f"expected weights of {config.n_layers:,} layers in {file}, as {CONFIG_FILE} says, found {len(shapes):,} "
            "tensors: the two do not belong together"
        )
    skeleton = made_on_meta(lambda: TransformerLM(config))
    if skeleton is None:
        raise ValueError(
            f"expected the sizes of a model in {folder / CONFIG_FILE}, found {config}: none can be made of them"
        )
    _check_shapes(config, dict(skeleton.named_parameters()), shapes, file)
    model = TransformerLM(config)
    with safe_open(file, framework="pt") as tensors:
        _copy_weights(model, {name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118
    return model.eval()


def save_state(folder: Path, model: TransformerLM, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write all that a training run needs to go on as if it had not stopped."""
    tensors = {f"model.{name}": value for name, value in _weights(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value).detach().contiguous().cpu()
    tensors["generator.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["generator.cuda"] = torch.cuda.get_rng_state()
    _save_atomically(tensors, folder / STATE_FILE, {"state": json.dumps(state)})


def read_begun(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Sizes of the model and settings of the training whose state is in `folder`; None where there is none.

    A state of an earlier version says no settings, and its sizes are those of the model beside it.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    read_header(path)
    with safe_open(path, framework="pt") as file:
        state = json.loads((file.metadata() or {}).get("state", "{}"))
    if "sizes" in state:
        return state["sizes"], state["config"]
    sizes = read_config(folder)
    return None if sizes is None else (asdict(sizes), {})


def load_state(folder: Path, model: TransformerLM, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a saved state back into ``model``, ``optimizer`` and torch's generators; returns the JSON state."""
    path = folder / STATE_FILE
    read_header(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if "state" not in metadata:
            raise ValueError(
                f"expected a training state in the header of {path}, found none; delete the file to restart"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    named = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    shapes = {name: tuple(value.shape) for name, value in named.items()}
    _check_shapes(model.config, dict(model.named_parameters()), shapes, path)
    _copy_weights(model, named)
    parameters = dict(model.named_parameters())
    for label, value in tensors.items():
        kind, _, rest = label.partition(".")
        key, _, name = rest.partition(".")
        if kind == "optimizer" and name in parameters:
            optimizer.state[parameters[name]][key] = value if key == "step" else value.to(parameters[name].device)
    torch.set_rng_state(tensors["generator.cpu"])
    if "generator.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["generator.cuda"])
    state: dict[str, Any] = json.loads(metadata["state"])
    return state
