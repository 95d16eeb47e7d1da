"""The folder that a command makes: the place itself, whatever link or shorthand names it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from knnlm.store.output_folder import place_of
from knnlm.system.usage import UsageError


class OutFolder(click.Path):
    """A path of a folder to make. A link stays: what it leads to is made or replaced; `.` and `..` get their names."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Refuse at the start what leads nowhere."""
        try:
            return place_of(Path(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)
