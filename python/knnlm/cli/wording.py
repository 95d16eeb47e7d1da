"""Wording: what the package says in arguments of Python, said in options of the command that was given."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click

OTHER_NAMES = {
    "n_heads": "heads",
    "n_layers": "layers",
    "max_steps": "steps",
    "max_seconds": "seconds",
    "key_dtype": "keys",
    "representation": "key",
}
"""Arguments of the package whose option has another name: argument, parameter of the command."""

_ARGUMENT = r"[a-z_]+=(?:'[^']*'|\"[^\"]*\"|[^\s(),;]+)"
_BOTH = (
    (re.compile(rf"\({_ARGUMENT}, in commands ([^)]+)\)"), r"(\1)"),  # (dtype='float32', in commands --dtype float32)
    (re.compile(rf"{_ARGUMENT} \(in commands ([^)]+)\)"), r"\1"),  # overwrite=True (in commands --overwrite)
    (re.compile(r"\(in commands ([^)]+)\)"), r"(\1)"),
)


def in_commands(text: str) -> str:
    """A message that names an argument and `(in commands --option)`, with the option alone."""
    for both, option in _BOTH:
        text = both.sub(option, text)
    return text


def in_options(text: str, params: Iterable[click.Parameter]) -> str:
    """The same, and each argument that is an option of the command by the name of the option: d_model, --d-model.

    A name of one word is only taken for an argument at the begin of a message, before a colon: "window: expected …".
    """
    text = in_commands(text)
    flags = {
        str(param.name): max(param.opts, key=len)
        for param in params
        if isinstance(param, click.Option) and param.opts[0].startswith("-")
    }
    flags |= {name: flags[own] for name, own in OTHER_NAMES.items() if own in flags}
    for name, flag in flags.items():
        where = rf"(?<![^\s(·]){name}(?=[\s,:;)=]|$)" if "_" in name else rf"^{name}(?=:\s)"
        text = re.sub(where, flag, text)
    return text
