"""Options that several commands share: input text, model, device, key capture, windows, output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from knnlm.cli.console import report_reading

if TYPE_CHECKING:
    from knnlm.documents import Document

F = TypeVar("F", bound=Callable[..., Any])

REPRESENTATIONS = (
    "ffn-input",
    "ffn-input-pre-norm",
    "attention-input",
    "attention-input-pre-norm",
    "block-output",
    "normed-output",
)
NAMED_SPLITS = ("wikitext", "pep", "chapter", "markdown")

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
seed = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all randomness.")
device = click.option("--device", help="Where the model runs: cpu, cuda, …  [default: a GPU if there is one]")
threads = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of the model and of the search.  [default: all cores]"
)
model = click.option("--model", help="Model folder or Hugging Face name.  [default: the one that the store remembers]")
out = click.option("--out", type=click.Path(path_type=Path), required=True, help="Output folder.")


def text_options(command: F) -> F:
    """Options that say how input text is read; `Texts` collects them."""
    for option in reversed(
        (
            click.option(
                "--text-field", default="text", show_default=True, help="Field of JSONL input that holds text."
            ),
            click.option(
                "--split-documents",
                metavar="PATTERN",
                help=f"A line that matches starts a new document: a regular expression, or {', '.join(NAMED_SPLITS)}.",
            ),
            click.option("--split", default="train", show_default=True, help="Split of a hf: data set."),
            click.option(
                "--max-documents", type=click.IntRange(min=1), help="Read at most this many documents.  [default: all]"
            ),
        )
    ):
        command = option(command)
    return command


def window_options(command: F) -> F:
    """Options of running the model over text: window, context, batch."""
    for option in reversed(
        (
            click.option(
                "--window", type=click.IntRange(min=1), help="Tokens fed at once.  [default: the model's most]"
            ),
            click.option(
                "--context",
                type=click.IntRange(min=0),
                help="Earlier tokens that each scored token sees at least.  [default: half the window]",
            ),
            click.option(
                "--batch-tokens", type=click.IntRange(min=1), help="Tokens fed at a time.  [default: by the vocabulary]"
            ),
        )
    ):
        command = option(command)
    return command


def key_options(command: F) -> F:
    """Options of what is stored: representation, layer, raw keys."""
    for option in reversed(
        (
            click.option(
                "--key",
                type=click.Choice(REPRESENTATIONS),
                default="ffn-input",
                show_default=True,
                help="Which hidden state is the key.",
            ),
            click.option("--layer", type=int, default=-1, show_default=True, help="Layer of the key; -1 is the last."),
            click.option(
                "--keys",
                type=click.Choice(("float16", "float32", "none")),
                default="float16",
                show_default=True,
                help="Raw keys kept in the store; without them there is no exact search.",
            ),
        )
    ):
        command = option(command)
    return command


def mixing_options(command: F) -> F:
    """Options of searching and mixing that stand above what the store remembers."""
    for option in reversed(
        (
            click.option("--lambda", "lambda_", type=click.FloatRange(0, 1), help="Weight of the neighbours."),
            click.option("--temperature", type=click.FloatRange(0, min_open=True), help="T of p_kNN."),
            click.option("--k", type=click.IntRange(min=1), help="Neighbours.  [default of all three: as tuned]"),
            click.option(
                "--nprobe", type=click.IntRange(min=1), help="Lists scanned per query.  [default: the store's]"
            ),
            click.option("--rerank", type=click.Choice(("none", "keys")), help="Score candidates again with raw keys."),
            click.option("--exact", is_flag=True, help="Scan all raw keys instead of the index."),
        )
    ):
        command = option(command)
    return command


@dataclass
class Texts:
    """Input text: sources and how to read them. Keeps account of what was skipped or repaired."""

    sources: tuple[str, ...]
    text_field: str = "text"
    split_documents: str | None = None
    split: str = "train"
    max_documents: int | None = None

    def __post_init__(self) -> None:
        from knnlm.documents import ReadReport

        self.report = ReadReport()

    def __iter__(self) -> Iterator[Document]:
        from knnlm.documents import read_documents

        documents = read_documents(
            self.sources,
            text_field=self.text_field,
            split_pattern=self.split_documents,
            split=self.split,
            report=self.report,
        )
        for count, document in enumerate(documents, start=1):
            yield document
            if count == self.max_documents:
                return

    def read(self) -> list[Document]:
        """All documents.

        Raises:
            ValueError: there are none, with the reasons.
        """
        documents = list(self)
        if not documents:
            reasons = "; ".join(self.report.lines())
            raise ValueError(f"expected text in {', '.join(self.sources)}, found no document to read. {reasons}")
        return documents

    def finish(self) -> None:
        """Says what was skipped or repaired, if anything was."""
        if self.report.skipped or self.report.notes:
            report_reading(self.report.lines())

    def summary(self) -> dict[str, Any]:
        """What was read, for JSON."""
        return {
            "documents": self.report.documents,
            "bytes": self.report.bytes,
            "skipped": [list(pair) for pair in self.report.skipped],
            "notes": [list(pair) for pair in self.report.notes],
        }
