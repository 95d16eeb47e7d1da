"""Sources: the files behind a file, a folder or a glob, in fixed order, each once, and what was left out.

A link within a folder or a glob may lead anywhere: it is followed to files of the same source only, unless asked for
more. Files of the kernel (/proc, /sys), devices, pipes and sockets are never read.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from knnlm.text.standard_input import StandardInput

LINK = "is a link to a folder, which is not followed (follow_links=True, in commands --follow-links, does)"
LINK_OUT = "is a link out of the source, which is not followed (follow_links=True, in commands --follow-links, does)"
NOWHERE = "is a link that leads nowhere"
NO_FILE = "is no file: a device, a pipe or a socket"
KERNEL = "is not read: it belongs to the kernel's /proc or /sys"
_GLOB = re.compile(r"[*?\[]")


@dataclass
class Listing:
    """What is at a source: files with their names relative to it, sorted by these, and what nobody could look into.

    The paths are those of the files themselves, with no link in them.
    """

    files: list[tuple[Path, str]] = field(default_factory=list)
    unlisted: list[tuple[str, str]] = field(default_factory=list)  # name, of a folder with "/" at its end, and reason
    notes: list[tuple[str, str]] = field(default_factory=list)  # name of what is another file or folder of the source

    def without(self, taken: dict[Path, str], source: str) -> None:
        """Leave out files that an earlier source has, and note those of this one: path to what was given."""
        there = [(path, name) for path, name in self.files if path in taken]
        if there:
            path, name = there[0]
            others = f"of its files {len(there):,}, such as {name}, are also part of {taken[path]}"
            self.notes.append((source, f"{others}: each is read once"))
            self.files = [item for item in self.files if item[0] not in taken]
        taken.update((path, source) for path, _ in self.files)


def files_of(source: str | os.PathLike[str], follow_links: bool = False) -> Listing:
    """The files of a source; a link that is itself the source is followed.

    Raises:
        FileNotFoundError: nothing is there, or nothing matches a glob all of whose folders can be listed.
        ValueError: it is a pipe, a device, a part of the kernel, or an empty name.
    """
    if not str(source):  # the current folder for Path: what a variable of a shell that is not set becomes
        raise ValueError("expected a file, folder, glob or hf:NAME, found an empty name")
    path = Path(source)
    if path.exists():
        kind, real = path.stat(), Path(os.path.realpath(path))
        if not (stat.S_ISREG(kind.st_mode) or stat.S_ISDIR(kind.st_mode)):
            raise ValueError(
                f"expected a file or a folder, found a pipe or a device at {source}: text is read more than once, so "
                "write it to a file first"
            )
        if _of_kernel(real, kind):
            raise ValueError(f"expected text, found {source}, which belongs to the kernel's /proc or /sys")
        search = _Search(real if stat.S_ISDIR(kind.st_mode) else real.parent, follow_links)
        if stat.S_ISDIR(kind.st_mode):
            search.run(("**",))
        else:
            search.take(real, path.name)
    elif _GLOB.search(str(source)):
        base = Path(*_before_wildcards(path))
        search = _Search(Path(os.path.realpath(base)), follow_links)
        search.run(path.parts[len(base.parts) :])
        if not (search.files or search.links or search.unlisted):
            raise FileNotFoundError(f"expected files that match {source}, found none")
    else:
        raise FileNotFoundError(f"expected a file, folder, glob or hf:NAME, found nothing at {source}")
    return search.listing()


def origin_of(source: str | os.PathLike[str], split: str) -> str:
    """One name for a source, the same wherever it is asked from; `split` is that of data sets."""
    if isinstance(source, StandardInput):
        return source.origin
    if str(source).startswith("hf:"):
        where, colon, config = str(source)[3:].partition(":")
        name = f"hf:{Path(where).resolve() if Path(where).exists() else where}{colon}{config} {split}"
    else:
        name = str(Path(source).resolve()) if Path(source).exists() else os.path.abspath(source)
    return os.fsencode(name).decode("utf-8", "backslashreplace")  # a path may hold bytes that are no text


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where that cannot be told."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def opened(path: Path) -> int:
    """A file of a `Listing` opened for reading: the descriptor.

    Raises:
        OSError: it cannot be opened, or is a link, a pipe or a device by now.
    """
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"expected a file, found something else at {path}")
    return descriptor


class _Search:
    """Goes through the folders of a source, by the parts of a glob; names are relative to the source."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self.files: dict[str, Path] = {}
        self.links: dict[str, Path] = {}  # to files, by name: where they lead
        self.unlisted: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._root, self._follow = root, follow_links
        self._waiting: list[_Place] = []
        self._linked: list[_Place] = []  # looked into at last, so that a folder is found by its own name

    def run(self, parts: tuple[str, ...]) -> None:
        """Take the files below the root that match the parts; `**` is any folders, at the end any files as well."""
        self._waiting.append((self._root, "", parts))
        done: dict[tuple[Path, tuple[str, ...]], str] = {}
        while self._waiting or self._linked:
            linked = not self._waiting
            path, name, parts = (self._linked if linked else self._waiting).pop()
            if (path, parts) not in done:
                done[path, parts] = name
                self._match(path, name, parts)
            elif linked:
                self._notes[name] = f"is a link to the folder {done[path, parts] or '.'}, which is read once"

    def take(self, path: Path, name: str, linked: bool = False) -> None:
        """Take a file, unless a link led out of the source or its name is no text."""
        text = _text(name)
        if text is None:
            self._leave_out(name, "has a name that is not UTF-8: rename it")
        elif not linked:
            self.files[text] = path
        elif self._follow or self._root in path.parents:
            self.links[text] = path
        else:
            self._leave_out(name, LINK_OUT)

    def listing(self) -> Listing:
        """What was found, each file once: a link to one that is there is noted only."""
        held = {path: name for name, path in self.files.items()}
        for name, path in sorted(self.links.items()):
            if path in held:
                self._notes[name] = f"is a link to {held[path]}, which is read once"
            else:
                held[path] = name
        files = sorted(held.items(), key=lambda item: item[1])
        return Listing(files, list(self.unlisted.items()), list(self._notes.items()))

    def _match(self, path: Path, name: str, parts: tuple[str, ...]) -> None:
        part, rest = parts[0], parts[1:]
        if part != "**" and not _GLOB.search(part):
            place = Path(os.path.normpath(path / part))  # it may be ".."
            if os.path.lexists(place):
                self._look(place, _joined(name, part), rest, take=not rest)
            return
        if part == "**" and rest:
            self._waiting.append((path, name, rest))
        for entry in self._entries(path, name):
            hidden = entry.startswith(".") and not part.startswith(".")
            if not hidden and (part == "**" or fnmatch.fnmatch(entry, part)):
                deeper = parts if part == "**" else rest
                self._look(path / entry, _joined(name, entry), deeper, take=not rest)

    def _entries(self, path: Path, name: str) -> list[str]:
        try:
            with os.scandir(path) as entries:
                return sorted(entry.name for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return []  # gone meanwhile, or nothing to look into
        except OSError as error:
            self._leave_out(f"{name or '.'}/", f"cannot be listed: {error.strerror or error}")
            return []

    def _look(self, path: Path, name: str, deeper: tuple[str, ...], take: bool) -> None:
        """Take what is at a path if it is a file and `take`; a folder is looked into if there is a part for it."""
        try:
            kind = path.lstat()
            linked = stat.S_ISLNK(kind.st_mode)
            if linked:
                kind, path = path.stat(), Path(os.path.realpath(path))
        except OSError as error:
            if take:
                gone = isinstance(error, FileNotFoundError) or error.errno == errno.ELOOP
                self._leave_out(name, NOWHERE if gone else f"cannot be read: {error.strerror or error}")
            return
        if stat.S_ISDIR(kind.st_mode):
            if not deeper:
                return
            if _of_kernel(path, kind):
                self._leave_out(f"{name}/", KERNEL)
            elif linked and not self._follow:
                self._leave_out(f"{name}/", LINK)
            else:
                (self._linked if linked else self._waiting).append((path, name, deeper))
        elif not take:
            return
        elif _of_kernel(path, kind):
            self._leave_out(name, KERNEL)
        elif not stat.S_ISREG(kind.st_mode):
            self._leave_out(name, NO_FILE)
        else:
            self.take(path, name, linked)

    def _leave_out(self, name: str, reason: str) -> None:
        self.unlisted[name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")] = reason


_Place = tuple[Path, str, tuple[str, ...]]
"""A folder to look into: its path, its name in the source, and the parts of the glob that are left."""


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _of_kernel(path: Path, kind: os.stat_result) -> bool:
    return kind.st_dev in _kernel_devices() or (path.parts[:1] == ("/",) and path.parts[1:2] in (("proc",), ("sys",)))


@lru_cache(maxsize=1)
def _kernel_devices() -> frozenset[int]:
    """The devices of /proc and /sys, wherever they are mounted as well; none where they are plain folders."""
    devices = set()
    for folder in ("/proc", "/sys"):
        if os.path.ismount(folder):
            devices.add(os.stat(folder).st_dev)
    return frozenset(devices)


def _text(name: str) -> str | None:
    """A file name as text: that of the system may be bytes that are none, which come as lone surrogates."""
    try:
        return os.fsencode(name).decode("utf-8")
    except UnicodeError:
        return None


def _before_wildcards(path: Path) -> Iterator[str]:
    for part in path.parts[:-1]:
        if _GLOB.search(part):
            return
        yield part
