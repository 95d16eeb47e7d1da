"""Resumed: how an interrupted training was begun, for all that is not said anew."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from knnlm.model.checkpoint import read_begun
from knnlm.system.log import LOG
from knnlm.system.usage import UsageError
from knnlm.train.from_texts import Shape
from knnlm.train.loop import TrainConfig

SIZES = {"d_model": "d_model", "layers": "n_layers", "heads": "n_heads", "context": "context", "dropout": "dropout"}
"""Fields of `Shape`, and those of a model's sizes that they are."""

SETTINGS = ("batch_tokens", "learning_rate", "optimizer", "seed")
BUDGET = ("max_steps", "max_seconds")


def resumed(folder: Path, shape: Shape, config: TrainConfig, given: Collection[str]) -> tuple[Shape, TrainConfig]:
    """Shape and settings of the training in `folder`, but for fields of either that are `given`.

    Where nothing is there to go on with, both are as they were. A budget of steps or of seconds stands for both.

    Raises UsageError for a size that is given and that the training does not have.
    """
    begun = read_begun(folder)
    if begun is None:
        return shape, config
    sizes, settings = begun
    for name, theirs in SIZES.items():
        found, wanted = getattr(shape, name), sizes[theirs]
        if name in given and name != "dropout" and found != wanted:
            raise UsageError(
                f"{name}: expected {wanted}, as the training in {folder} has it, found {found}: leave it out, or begin "
                "anew with overwrite=True (in commands --overwrite)"
            )
    taken = {name: sizes[theirs] for name, theirs in SIZES.items() if name not in given}
    kept: dict[str, Any] = {name: settings[name] for name in SETTINGS if name in settings and name not in given}
    if not set(BUDGET) & set(given):
        kept |= {name: settings[name] for name in BUDGET if name in settings}
    shape, config = replace(shape, **taken), replace(config, **kept)
    told = {**asdict(shape), **{name: getattr(config, name) for name in (*SETTINGS, *BUDGET)}}
    LOG.debug("going on with %s", ", ".join(f"{name} {value}" for name, value in told.items() if value is not None))
    return shape, config
