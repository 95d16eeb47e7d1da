"""The folder that a command makes: the place itself, whatever link or shorthand names it."""

from __future__ import annotations

import os
from pathlib import Path

import click


class OutFolder(click.Path):
    """A path of a folder to make. A link stays: what it leads to is made or replaced; `.` and `..` get their names."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Refuse at the start what leads nowhere."""
        given = Path(value)
        if not given.is_symlink() and given.name not in ("", ".."):
            return given
        place = Path(os.path.realpath(given))
        if place.is_symlink() or not place.parent.is_dir():
            self.fail(
                f"expected a link that leads to a folder, or to a free name in one that is there, found that {given} "
                f"leads to {place}; make {place.parent}, or remove the link",
                param,
                ctx,
            )
        if not place.name:
            self.fail(f"expected a folder with a name, found {place}; choose another path", param, ctx)
        return place
