"""Weights: what the files of a model folder hold, looked at before anything of their size is allocated.

Only safetensors are read: a pickle runs code when it is loaded.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_POINTER = b"version https://git-lfs"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

Shapes = dict[str, tuple[int, ...]]


def check_file(path: Path) -> None:
    """Raise ValueError for what is no plain file, or only a pointer of Git LFS; OSError where it cannot be read."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFCHR: "device", stat.S_IFSOCK: "socket"}
        raise ValueError(f"{path}: expected a file, found a {kinds.get(stat.S_IFMT(mode), 'special file')}")
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(
                f"{path}: expected the file itself, found a pointer of Git LFS: run git lfs pull in {path.parent}"
            )


def read_json(path: Path) -> Any:
    """The JSON of a file. Raises ValueError with its name for anything else."""
    check_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, found: {error}; copy the file again") from error


def read_header(path: Path) -> Shapes:
    """Names and shapes of the tensors in a safetensors file. Raises ValueError for a damaged one."""
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path}: expected whole weights (safetensors), found {path.stat().st_size:,} bytes that are not: {error}; "
            "copy or download the file again"
        ) from error


def read_shapes(folder: Path) -> Shapes:
    """Names and shapes of all weights of a Hugging Face folder, in one file or in several.

    Raises:
        FileNotFoundError: there are no weights, or not all that the index names.
        ValueError: weights of another format, or damaged ones.
    """
    if (folder / SINGLE).exists():
        return read_header(folder / SINGLE)
    if not (folder / INDEX).exists():
        if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES):
            raise ValueError(_converted(folder, pickles[0]))
        raise FileNotFoundError(
            f"expected weights at {folder / SINGLE}, found none; copy them there, or give another folder"
        )
    index = read_json(folder / INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{folder / INDEX}: expected a weight_map of tensors to files, found none")
    shapes: Shapes = {}
    for name in sorted(set(names.values())):
        if Path(name).name != name:
            raise ValueError(f"{folder / INDEX}: expected names of files beside it, found {name!r}")
        if not (folder / name).exists():
            raise FileNotFoundError(f"expected weights at {folder / name}, which {INDEX} names, found none: copy them")
        shapes |= read_header(folder / name)
    return shapes


def _converted(folder: Path, pickle: str) -> str:
    return (
        f"{folder}: expected weights in {SINGLE}, found {pickle}, a pickle, which can hold code and is not read. "
        f"Convert it: python -c \"import torch, safetensors.torch as s; w = torch.load('{pickle}', map_location='cpu', "
        "weights_only=True); s.save_file({n: t.clone().contiguous() for n, t in w.items()}, "
        f"'{SINGLE}', {{'format': 'pt'}})\", in that folder; this reads tensors and runs nothing"
    )


def made_on_meta(make: Callable[[], nn.Module]) -> nn.Module | None:
    """A model without memory for its weights, for its shapes; None where a model cannot be made so."""
    try:
        with torch.device("meta"):
            return make()
    except Exception:
        return None


def check_fit(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], where: Path, packed: int = 1) -> None:
    """Raise ValueError where a model is much larger than the weights that are there for it.

    packed: weights that one stored number may hold, of a quantised file.
    """
    stored = packed * sum(_numel(shape) for shape in shapes.values())
    wanted = sum(_numel(tuple(parameter.shape)) for parameter in model.parameters())
    if wanted > 2 * stored + (1 << 20):  # tied weights may be stored once; small ones do not matter
        raise ValueError(
            f"{where}: expected weights of some {wanted:,} numbers, by config.json beside them, found {stored:,}: the "
            "two do not belong together"
        )


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= int(size)
    return count
