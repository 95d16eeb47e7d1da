"""Standard streams of a command: closed, full or of another encoding, they end in a message, not in a traceback."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import click

from knnlm.system.terminal import give_up, printable, printable_json, say
from knnlm.text.standard_input import StandardInput


def prepare() -> None:
    """Make the streams take any text, and keep files of ours from getting the numbers of closed ones."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # of λ an ASCII terminal gets \\u03bb


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings of libraries in one line, with what they quote from files made printable."""

    def plain(message: Warning | str, *_: object, **__: object) -> str:
        return f"warning: {printable(str(message))}\n"

    former = warnings.formatwarning
    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = former


def standard_input(text_field: str) -> StandardInput:
    """What is on standard input, to its end. Raises a usage error where that is closed."""
    return StandardInput(input_bytes(), text_field)


def input_bytes() -> BinaryIO:
    """Standard input; says so where somebody has to type it. Raises a usage error where it is closed."""
    if sys.stdin is None:
        raise click.UsageError("expected text on standard input, found that closed")
    if sys.stdin.isatty():
        say("reading standard input; Ctrl-D in a line of its own ends it")
    return sys.stdin.buffer


def show_usage(error: click.ClickException, as_json: bool) -> None:
    """A wrong usage on standard error, and as JSON on standard output if that was asked for."""
    with suppress(OSError):
        if as_json and sys.stdout is not None:
            click.echo(printable_json(json.dumps({"error": error.format_message()}, ensure_ascii=False)))
    vars(error)["message"] = printable(error.message)  # some versions of click declare it final
    if sys.stderr is not None:  # click would take standard output instead
        with suppress(OSError):
            error.show()


def give_up_on(error: OSError) -> None:
    """Say that standard output cannot be written."""
    if sys.stdout is not None:
        give_up(sys.stdout)
    say(f"knnlm: standard output: {error.strerror or error}")
