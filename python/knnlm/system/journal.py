"""Staging: what a long work has done so far, in a folder that outlives its process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from knnlm.system.own_files import is_folder, make_folder, read, remove, write_for_good

PLAN = "plan.json"


class Staging:
    """A folder with a plan, which says what is worked on, and JSON records of what is done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plan(self) -> Any:
        """The plan of an interrupted work, None if there is none."""
        return self.read(PLAN)

    def begin(self, plan: Any) -> None:
        """Throw away what is there and start with a plan."""
        self.remove()
        make_folder(self.folder)
        self.write(PLAN, plan)

    def read(self, name: str) -> Any:
        """A record, None where there is none that is whole: in a folder and a file of our own, never by a link."""
        if not is_folder(self.folder):
            return None
        try:
            with read(self.folder / name) as file:
                return json.loads(file.read().decode("utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, name: str, record: Any) -> None:
        """Write a record; it, and every file whose name was there before, is on disk for good when the call returns."""
        write_for_good(self.folder / name, json.dumps(record).encode())

    def remove(self) -> None:
        """Remove the folder: records before what they speak of, the plan at last. Of a link, the link alone."""
        if is_folder(self.folder):
            for path in (*self.folder.glob("*.json"), *self.folder.glob("*")):
                if path.name != PLAN:
                    remove(path)
            remove(self.folder / PLAN)
            self.folder.rmdir()
        else:
            remove(self.folder)
