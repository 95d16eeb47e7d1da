"""Staging: what a long work has done so far, in a folder that outlives its process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PLAN = "plan.json"


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to; what the disk refuses names it."""
    try:
        with open(path, "wb") as file:
            yield file
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def write_for_good(path: Path, content: bytes) -> None:
    """Write or replace a file; it, and every name that was in its folder before, is on disk when the call returns."""
    temporary = path.with_suffix(".tmp")
    with written(temporary) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)


def force(folder: Path) -> None:
    """Have a folder of files on disk for good, whoever wrote them."""
    for path in folder.iterdir():
        if path.is_file():
            sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Have the bytes of a file, or the names in a folder, on disk for good."""
    if os.name != "posix":  # Windows orders names by its journal, and forces no file that is open for reading only
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


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
        write_for_good(self.folder / name, json.dumps(record).encode())

    def remove(self) -> None:
        """Remove the folder: records before what they speak of, the plan at last."""
        for path in (*self.folder.glob("*.json"), *self.folder.glob("*")):
            if path.name != PLAN:
                path.unlink(missing_ok=True)
        (self.folder / PLAN).unlink(missing_ok=True)
        if self.folder.exists():
            self.folder.rmdir()
