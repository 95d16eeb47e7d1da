"""Sources: the files behind a file, a folder or a glob, in fixed order, and the folders that could not be listed."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

LINK = "is a link to a folder, which is not followed; give the folder that it leads to as a source of its own"
_GLOB = re.compile(r"[*?\[]")


@dataclass
class Listing:
    """What is at a source: files with their names relative to it, sorted by these, and what nobody could look into."""

    files: list[tuple[Path, str]] = field(default_factory=list)
    unlisted: list[tuple[str, str]] = field(default_factory=list)  # name, of a folder with "/" at its end, and reason

    def refuse(self, folder: str, error: OSError) -> None:
        """Note a folder, by its name relative to the source ("." is the source), that cannot be listed."""
        self.leave_out(folder, f"cannot be listed: {error.strerror or error}")

    def leave_out(self, folder: str, reason: str) -> None:
        """Note a folder that was not looked into."""
        self.unlisted.append((f"{folder}/", reason))

    def take(self, files: Iterable[tuple[Path, str]]) -> None:
        """Note files; one that cannot be read as one, or whose name is no text, is left out."""
        for file, name in files:
            if not _may_be_file(file):
                self.unlisted.append((name, "is no file: a device, a pipe or a socket"))
            elif not _is_text(name):
                shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                self.unlisted.append((shown, "has a name that is not UTF-8: rename it"))
            else:
                self.files.append((file, name))


def files_of(source: str | Path) -> Listing:
    """The files of a source.

    Raises:
        FileNotFoundError: nothing is there, or nothing matches a glob all of whose folders can be listed.
    """
    path = Path(source)
    if path.is_dir():
        found = _in_folder(path)
    elif path.is_file():
        found = Listing([(path, path.name)])
    elif _GLOB.search(str(source)):
        found = _matching(path)
        if not (found.files or found.unlisted):
            raise FileNotFoundError(f"expected files that match {source}, found none")
    else:
        raise FileNotFoundError(f"expected a file, folder, glob or hf:NAME, found nothing at {source}")
    found.files.sort(key=lambda item: item[1])
    return found


def origin_of(source: str | Path, split: str) -> str:
    """One name for a source, the same wherever it is asked from; `split` is that of data sets."""
    if str(source).startswith("hf:"):
        where, colon, config = str(source)[3:].partition(":")
        return f"hf:{Path(where).resolve() if Path(where).exists() else where}{colon}{config} {split}"
    return str(Path(source).resolve()) if Path(source).exists() else os.path.abspath(source)


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where that cannot be told."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _in_folder(path: Path) -> Listing:
    """All files under a folder; hidden ones are left out, and links to folders, which could lead in a circle."""
    found = Listing()

    def refused(error: OSError) -> None:
        found.refuse(Path(error.filename).relative_to(path).as_posix(), error)

    for folder, inner, files in os.walk(path, onerror=refused):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for link in (link for name in inner if (link := Path(folder) / name).is_symlink()):
            found.leave_out(link.relative_to(path).as_posix(), LINK)
        visible = (Path(folder) / name for name in files if not name.startswith("."))
        found.take((file, file.relative_to(path).as_posix()) for file in visible)
    return found


def _matching(pattern: Path) -> Listing:
    """The files that match a glob, named from its last folder without a wildcard.

    `glob` is silent about what it cannot list, so that the folders it looked into are listed once more.
    """
    found = Listing()
    base = Path(*_before_wildcards(pattern))
    for folder in _searched(pattern, base):
        try:
            os.scandir(folder).close()
        except (FileNotFoundError, NotADirectoryError):
            continue  # nothing to look into
        except OSError as error:
            found.refuse(folder.relative_to(base).as_posix(), error)
    matches = (Path(name) for name in glob.glob(str(pattern), recursive=True))
    found.take((file, file.relative_to(base).as_posix()) for file in matches if not file.is_dir())
    return found


def _searched(pattern: Path, base: Path) -> list[Path]:
    """The folders that a glob looks into, each once: those that match its first parts, from `base` on."""
    parts = pattern.parts
    ends = range(len(base.parts) + 1, len(parts) + (parts[-1] == "**"))
    matches = (glob.glob(os.path.join(*parts[:end], ""), recursive=True) for end in ends)
    return list(dict.fromkeys([base, *(Path(name) for names in matches for name in sorted(names))]))


def _may_be_file(path: Path) -> bool:
    """Whether it is a file, or something that cannot be looked at, which whoever opens it will report."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _is_text(name: str) -> bool:
    """Whether it can be written as UTF-8: bytes of a name that are none come as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _before_wildcards(path: Path) -> Iterator[str]:
    for part in path.parts[:-1]:
        if _GLOB.search(part):
            return
        yield part
