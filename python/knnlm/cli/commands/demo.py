"""`knnlm demo`: the whole method on text that every CPython carries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from knnlm.cli.console import Command, duration, note, print_json, show
from knnlm.cli.options import as_json, device, seed, threads
from knnlm.cli.out_folder import OutFolder
from knnlm.store.output_folder import refuse_foreign
from knnlm.system.extras import require
from knnlm.system.own_files import is_file, remove_tree

PARTS = ("model", "store-docstrings", "store-reference")  # folders of a demo
MARK = "demo.json"  # says that a demo made the folder


@click.command("demo", cls=Command)
@click.option("--out", type=OutFolder(), default=Path("knnlm-demo"), show_default=True, help="Output folder.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=900,
    show_default=True,
    help="Steps of training the model, two minutes on two cores; the rest takes about as long again.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=240.0,
    show_default=True,
    help="The most for training, on a slow or busy machine.",
)
@click.option(
    "--scored", type=click.IntRange(min=200), default=8000, show_default=True, help="Test tokens scored in each case."
)
@click.option("--documents", type=click.IntRange(min=2), help="Use only so many training documents.  [default: all]")
@seed
@device
@threads
@click.option("--overwrite", is_flag=True, help="Run again although the output is there.")
@as_json
def command(
    out: Path,
    steps: int,
    seconds: float,
    scored: int,
    documents: int | None,
    seed: int,
    device: str | None,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train a small model on Python's docstrings, then adapt it, without training, to the language reference.

    Needs no download and less than four minutes on two cores. Ends with a table, tokens with their neighbors, and an
    HTML report.

    \b
    Example:
      knnlm demo
      knnlm demo --out longer --steps 3000 --seconds 900
    """
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise click.UsageError(f"output {out} exists already: choose another name or add --overwrite")
    _refuse_other_output(out)
    require("torch", "jinja2", "matplotlib", use="the demo")
    note("loading torch …")
    import torch

    from knnlm.demo.result import as_terminal
    from knnlm.demo.run import DemoSettings, run
    from knnlm.report.progress import Progress

    if threads is not None:
        torch.set_num_threads(threads)
    for part in PARTS:
        remove_tree(out / part)
    settings = replace(
        DemoSettings(),
        steps=steps,
        seconds=seconds,
        scored=scored,
        train_documents=documents,
        seed=seed,
        device=device,
        threads=threads,
    )
    with Progress(json=as_json) as progress:
        result = run(out, settings, progress)
    if as_json:
        print_json(result.as_json())
        return
    show(as_terminal(result))
    note("")
    note(f"{duration(result.seconds)} in all")


def _refuse_other_output(out: Path) -> None:
    """Raises a usage error if running in `out` would remove what no demo wrote."""
    there = [part for part in PARTS if (out / part).exists()]
    if there and not is_file(out / MARK):
        raise click.UsageError(
            f"{out} holds {', '.join(there)} but no {MARK}, so no demo wrote it: choose another name for --out"
        )
    for part in there:
        refuse_foreign(out / part)
