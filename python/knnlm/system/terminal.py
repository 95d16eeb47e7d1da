r"""Foreign text on its way to people: names, attributes, stored text and errors are shown, never obeyed.

A terminal takes orders from the characters that it prints: ESC and C1 begin commands (ECMA-48), U+202E turns the
reading order around, a line end forges a line of ours. `printable` writes them as escapes (``\x1b``), and lone
surrogates, which cannot be printed at all. Every command and the progress lines print through it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # invisible, bidi, line ends
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f"  # format characters, tags
    "\ud800-\udfff]"  # lone surrogates: bytes of a file name that are no UTF-8
)


def printable(text: str, keep: str = "") -> str:
    r"""The text in one line that steers nothing: controls, bidi marks, line ends and surrogates as ``\x1b``, ``\n`` ….

    keep: characters of these that stay, such as "\n\t" for a text that may have lines.
    """
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else escaped(found[0]), text)


def escaped(character: str) -> str:
    r"""One character as ``\n``, ``\x1b``, ``\u202e`` or ``\U000e0001``."""
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def printable_json(text: str) -> str:
    r"""JSON text with the same characters as ``\uXXXX``: the same values; line ends between them stay."""

    def as_json(found: re.Match[str]) -> str:
        if found[0] in "\n":
            return found[0]
        units = found[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))

    return _UNSAFE.sub(as_json, text)


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Within it notes and progress are left out; errors and warnings stay."""
    former = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(former)


def is_quiet() -> bool:
    """Whether nobody wants notes and progress."""
    return _quiet.get()


def say(line: str) -> None:
    """One line of ours on standard error, `printable`; where that is closed or full, nobody can be told."""
    if sys.stderr is None:  # print would take standard output instead
        return
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except (OSError, ValueError):  # full, or closed
        give_up(sys.stderr)


def give_up(stream: Any) -> None:
    """Let what a stream still holds go nowhere, so that the end of the process does not fail on it again."""
    with contextlib.suppress(OSError, ValueError):  # it is no file of the system, or closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
