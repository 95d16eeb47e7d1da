"""The options of a command in sections, for `--help`: what is particular to it first, what all commands have last."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import click

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Options": (),  # those of no other section
    "Text": (
        "text_field",
        "name_field",
        "split_documents",
        "split",
        "max_documents",
        "max_document_bytes",
        "follow_links",
    ),
    "Keys and windows": ("key", "layer", "keys", "keep_keys", "autocast", "window", "context", "batch_tokens"),
    "Search and mixing": ("lambda_", "temperature", "k", "nprobe", "rerank", "exact", "cache", "ngram"),
    "Model and machine": (
        "model",
        "device",
        "dtype",
        "device_map",
        "revision",
        "trust_remote_code",
        "threads",
        "workers",
        "seed",
    ),
    "Output": ("out", "overwrite", "as_json", "quiet", "verbose", "debug", "help", "_click_default_help"),
}
"""Names of parameters by section."""


def format_options(params: Sequence[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the options in their sections, each in the order that it has in the command."""
    rows: dict[str, list[tuple[str, str]]] = {name: [] for name in SECTIONS}
    home = {param: name for name, names in SECTIONS.items() for param in names}
    if all(param.name != "window" for param in params):  # then they are of something else: a training, an update
        home["context"] = home["batch_tokens"] = "Options"
    for param in params:
        record = param.get_help_record(ctx)
        if record is not None and isinstance(param, click.Option):
            rows[home.get(param.name or "", "Options")].append(_short(*record))
    for name, section in rows.items():
        if section:
            with formatter.section(name):
                formatter.write_dl(section)


def _short(option: str, text: str) -> tuple[str, str]:
    """An option and its help without the words that click has for numbers, and without what they are at least."""
    for long, short in (("INTEGER RANGE", "N"), ("INTEGER", "N"), ("FLOAT RANGE", "X"), ("FLOAT", "X")):
        option = option.replace(long, short)
    return option, re.sub(r"\s+\[x>=?\d+\]", "", re.sub(r"; x>=?\d+\]", "]", text))
