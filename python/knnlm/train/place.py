"""Place: the folder that a training works in, and how it takes the place of a model that is there. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from knnlm.store.output_folder import refuse_foreign, take_place
from knnlm.system.log import LOG
from knnlm.system.own_files import remove_tree
from knnlm.system.usage import UsageError

STATE_FILE = "training.safetensors"
"""What an interrupted training goes on from; of `model/checkpoint.py`, which needs torch."""


def beside(out: Path) -> Path:
    """Folder of a training that is to replace `out`."""
    return out.with_name(f"{out.name}.new")


@contextmanager
def training_place(out: Path, overwrite: bool, resume: bool) -> Iterator[Path]:
    """Where to train: `out`, or with --overwrite a folder beside it that takes its place at the end.

    What an interrupted training leaves there is kept for --resume; what has no state to go on with is removed.
    """
    new = beside(out)
    if not overwrite or not out.exists():
        if resume and (new / STATE_FILE).is_file():
            LOG.info(
                f"{new} holds an interrupted training that is to replace {out}: overwrite and resume (in commands "
                "--overwrite --resume) go on with it"
            )
        yield out
        return
    if new.is_symlink():
        raise UsageError(
            f"{new} is a link: expected an earlier training that was to replace {out}, or nothing; remove it"
        )
    if resume and not (new / STATE_FILE).is_file():
        yield out
        return
    if not resume and new.exists():
        refuse_foreign(new)
        remove_tree(new)
        LOG.info(f"removed {new}, an earlier training that was to replace {out}")
    try:
        yield new
        take_place(new, out, overwrite)
    finally:
        if new.exists() and not (new / STATE_FILE).is_file():
            remove_tree(new)
