"""Files and folders of our own: made, read and removed without following a link that somebody has put in their place.

A file that is written is a new one, whatever had its name: a link is replaced, and what it leads to stays as it was. An
output appears whole, under its name, with the permissions that new files get; until then it is
`.NAME.HOST.PROCESS.partial` beside it, which after a kill the next writer of that output removes.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NEW = os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_THERE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_SEGMENT = r"manifest-\d+\.json|(data|codebook|lists|deleted)-[\d-]+\.seg"
STORE = re.compile(rf"lock|({_SEGMENT})(\.tmp)?|(values|documents|text|replaced)\.tmp")
"""Names of the files of a store, those of a writer that died among them."""

_MODEL = r"config\.json|curve\.json|tokenizer\.json|(model|training)\.safetensors"
MODEL = re.compile(rf"{_MODEL}|\.({_MODEL})\.[^/]+\.\d+\.partial")
"""Names of the files of a model of ours."""


def create(path: Path) -> BinaryIO:
    """A new file to write to, in place of a file or link of that name; raises IsADirectoryError for a folder."""
    while True:
        try:
            return os.fdopen(os.open(path, os.O_WRONLY | _NEW, 0o666), "wb")
        except FileExistsError:
            if path.is_dir() and not path.is_symlink():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path)) from None
            remove(path)


def read(path: Path) -> BinaryIO:
    """A file of ours to read; raises FileNotFoundError where there is none, and for a link, a pipe or a device too."""
    try:
        file = os.open(path, os.O_RDONLY | _THERE | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for a writer
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    return os.fdopen(file, "rb")


def check_readable(path: Path) -> None:
    """Raise OSError where a file cannot be opened, with the system's reason, which safetensors does not tell."""
    with open(path, "rb"):
        pass


def is_file(path: Path) -> bool:
    """Whether a file is there, and no link to one."""
    return _is(path, stat.S_ISREG)


def is_folder(path: Path) -> bool:
    """Whether a folder is there, and no link to one."""
    return _is(path, stat.S_ISDIR)


def make_folder(path: Path) -> None:
    """Make a folder unless it is there; raises FileExistsError for a link to one."""
    if not is_folder(path):
        path.mkdir()


def remove(path: Path) -> None:
    """Remove a file, or a link and not what it leads to; no error where there is none."""
    path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, or a file, or a link and not what it leads to; no error where there is none."""
    if is_folder(path):
        shutil.rmtree(path)
    else:
        remove(path)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, in place of what has its name; what the disk refuses names it."""
    with _named(path), create(path) as file:
        yield file


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, which is on disk and at `path` at the end; after an error what was there still is.

    What the disk refuses names `path`. Of a link at `path`, the link is replaced.
    """
    with _whole(path) as partial, _named(path), create(partial) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """The same for a library that writes to a path; its errors are raised as those of the disk that they tell of."""
    with _whole(path) as partial:
        try:
            with create(partial) as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            yield partial
            os.chmod(partial, mode)  # the library may have put its own file there
            sync(partial)
        except Exception as error:
            told = re.search(r"\(os error (\d+)\)", str(error))  # of Rust
            if told is None:
                raise
            raise OSError(int(told[1]), os.strerror(int(told[1])), os.fspath(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file as a whole."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


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
        if is_file(path):
            sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Have the bytes of a file, or the names in a folder, on disk for good."""
    if os.name != "posix":  # Windows orders names by its journal, and forces no file that is open for reading only
        return
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sibling(path: Path, kind: str) -> Path:
    """A name beside `path` that is this process's own."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{kind}")


def leftovers(path: Path) -> list[Path]:
    """What processes that no longer run left beside `path`: half an output, or what they had moved away."""
    pattern = re.compile(re.escape(f".{path.name}.{_host()}.") + r"(\d+)\.(partial|old)")
    parent = path.parent
    if not parent.is_dir():
        return []
    named = ((there, pattern.fullmatch(there.name)) for there in sorted(parent.iterdir()))
    return [there for there, match in named if match is not None and not _runs(int(match[1]))]


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file that gets its name at the end, and is removed after an error."""
    if is_folder(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    for left in leftovers(path):
        if left.suffix == ".partial" and not is_folder(left):
            remove(left)
    partial = sibling(path, "partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.filename == os.fspath(partial):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    finally:
        with suppress(OSError):
            remove(partial)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What the operating system refuses without a name gets this one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _is(path: Path, kind: object) -> bool:
    try:
        return bool(kind(os.lstat(path).st_mode))  # type: ignore[operator]
    except (FileNotFoundError, NotADirectoryError):
        return False


def _host() -> str:
    """This machine in a file name: on a shared disk, a process of another one may still run."""
    return re.sub(r"[^\w-]", "-", platform.node()) or "host"


def _runs(process: int) -> bool:
    if process == os.getpid():
        return True
    if sys.platform == "win32":  # os.kill would end the process there
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is somebody else's
        return True
    return True
