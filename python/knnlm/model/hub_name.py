"""Hub name: a name that is no folder here is one of the Hugging Face hub, or a slip; said before the hub is asked."""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from knnlm.system.log import LOG

HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
"""What the hub can have: MODEL or OWNER/MODEL."""

MOST = 10_000
"""Entries of a folder that are looked at for a near name."""


def check_hub_name(name: str | os.PathLike[str]) -> None:
    """Say that a name is asked of the hub, as no such folder is here, with the folders that are called nearly so.

    Raises FileNotFoundError for what no model of the hub is called, such as a path.
    """
    given = os.fspath(name)
    meant = did_you_mean(given)
    if HUB_NAME.fullmatch(given) is None or given.startswith("."):
        raise FileNotFoundError(
            f"expected a model folder, found nothing at {given}"
            + (f": {meant}" if meant else ", and no model on the Hugging Face hub is called so: check the path")
        )
    said = f"{given}: there is no such folder here, the Hugging Face hub is asked for it"
    LOG.log(logging.WARNING if meant else logging.INFO, f"{said}; {meant}" if meant else said)


def did_you_mean(given: str) -> str:
    """The folders beside `given` that are called nearly so, as a question; "" where there are none."""
    path = Path(given)
    names: list[str] = []
    with suppress(OSError, ValueError), os.scandir(path.parent) as entries:  # no such parent, or a NUL in its name
        names = [entry.name for entry in islice(entries, MOST) if entry.is_dir()]
    near = get_close_matches(path.name, names, 3)
    return f"did you mean {' or '.join(str(path.parent / one) for one in near)}?" if near else ""
