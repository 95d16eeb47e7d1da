"""Staging: what a long work has done so far, in a folder that outlives its process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

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
        self.folder.mkdir()
        self.write(PLAN, plan)

    def read(self, name: str) -> Any:
        """A record, None where there is none that is whole."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, name: str, record: Any) -> None:
        """Write a record; it, and every file whose name was there before, is on disk for good when the call returns."""
        path = self.folder / name
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # Windows orders names by its journal
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def remove(self) -> None:
        """Remove the folder: records before what they speak of, the plan at last."""
        for path in (*self.folder.glob("*.json"), *self.folder.glob("*")):
            if path.name != PLAN:
                path.unlink(missing_ok=True)
        (self.folder / PLAN).unlink(missing_ok=True)
        if self.folder.exists():
            self.folder.rmdir()
