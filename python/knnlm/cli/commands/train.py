"""`knnlm train`: a language model from text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from knnlm.cli.console import Command, duration, print_json
from knnlm.cli.console import result as tell
from knnlm.cli.options import (
    Texts,
    TextSource,
    as_json,
    device,
    out,
    overwrite,
    seed,
    text_argument,
    text_options,
    threads,
)
from knnlm.cli.work import shown
from knnlm.store.output_folder import clear_leftovers, refuse_foreign
from knnlm.system.counted import counted
from knnlm.text.texts import Reading
from knnlm.train.place import beside, training_place

if TYPE_CHECKING:
    from knnlm.train.loop import TrainResult


@click.command("train", cls=Command)
@text_argument()
@out
@click.option(
    "--valid", multiple=True, type=TextSource(), help="Validation text.  [default: one document in 20 of TEXT]"
)
@click.option("--tokenizer", default="bpe", show_default=True, help="bpe, words, or a saved tokenizer.")
@click.option(
    "--vocab-size", type=click.IntRange(min=2), help="Of a new tokenizer.  [default: 8192 for bpe, all words for words]"
)
@click.option("--d-model", type=click.IntRange(min=8), default=384, show_default=True, help="Width of the model.")
@click.option("--layers", type=click.IntRange(min=1), default=6, show_default=True, help="Layers of the model.")
@click.option("--heads", type=click.IntRange(min=1), default=6, show_default=True, help="Attention heads.")
@click.option("--context", type=click.IntRange(min=2), default=256, show_default=True, help="Longest input, tokens.")
@click.option(
    "--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True, help="While training."
)
@click.option("--steps", type=click.IntRange(min=1), help="Stop after so many steps.")
@click.option("--seconds", type=click.FloatRange(min=1), help="Stop after so many seconds.  [default: 600]")
@click.option("--batch-tokens", type=click.IntRange(min=1), default=4096, show_default=True, help="Tokens of a step.")
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True, help="At its highest."
)
@click.option(
    "--optimizer",
    type=click.Choice(("adamw", "muon")),
    default="adamw",
    show_default=True,
    help="muon learns faster when time is short; it wants --learning-rate 3e-3.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with an interrupted training in the output folder: sizes and settings that are not given are its own.",
)
@text_options
@seed
@device
@threads
@overwrite
@as_json
def command(
    text: tuple[str, ...],
    out: Path,
    valid: tuple[str, ...],
    tokenizer: str,
    vocab_size: int | None,
    d_model: int,
    layers: int,
    heads: int,
    context: int,
    dropout: float,
    steps: int | None,
    seconds: float | None,
    batch_tokens: int,
    learning_rate: float,
    optimizer: str,
    resume: bool,
    reading: Reading,
    seed: int,
    device: str | None,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train a decoder-only transformer on TEXT and leave it in a folder for the other commands.

    Ctrl-C stops the training after the step in progress and saves its state; --resume goes on with it. --overwrite
    trains in a folder beside OUT, named OUT.new, which takes the place of OUT once it is whole.

    \b
    Example:
      knnlm train books/ --out model --seconds 600
      knnlm train wiki.train.tokens --valid wiki.valid.tokens --tokenizer words --split-documents wikitext --out model
    """
    clear_leftovers(out, beside(out))
    if out.exists() and any(out.iterdir()) and not (overwrite or resume):
        raise click.UsageError(f"output {out} exists already: choose another name, or add --overwrite or --resume")
    import torch

    if overwrite:
        refuse_foreign(out, (*text, *valid))
    from knnlm.report.progress import Progress
    from knnlm.train.from_texts import Shape, train_from_texts
    from knnlm.train.loop import TrainConfig
    from knnlm.train.resumed import resumed

    if threads is not None:
        torch.set_num_threads(threads)
    config = TrainConfig(
        max_steps=steps,
        max_seconds=600.0 if steps is None and seconds is None else seconds,
        batch_tokens=batch_tokens,
        learning_rate=learning_rate,
        optimizer=optimizer,
        seed=seed,
    )
    shape = Shape(d_model, layers, heads, context, dropout)
    texts = Texts(text, reading)
    valid_texts = Texts(valid, replace(reading, max_documents=None))
    with Progress(json=as_json) as progress, training_place(out, overwrite, resume) as place:
        if resume:
            shape, config = resumed(place, shape, config, _given())
        done = train_from_texts(
            place,
            texts.read(progress),
            valid_texts.read() if valid else None,
            config,
            shape=shape,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            device=device,
            resume=resume,
            progress=shown(progress, train="s" if config.max_steps is None else "steps"),
            on_valid=lambda point: progress.say(reached(point)),
        )
        result = done.result
        if result.interrupted:
            raise KeyboardInterrupt(stopped(result, place, out))
    texts.finish()
    if valid:
        valid_texts.finish()
    if as_json:
        print_json(
            {
                "model": str(out),
                "parameters": sum(parameter.numel() for parameter in done.model.parameters()),
                "vocabulary": done.tokenizer.vocab_size,
                "steps": result.steps,
                "tokens": result.tokens,
                "seconds": result.seconds,
                "valid_perplexity": result.best,
                "curve": result.curve,
                "read": texts.summary(),
                "read_valid": valid_texts.summary(),
            }
        )
        return
    tell(
        f"{out}: {counted(result.steps, 'step')}, {counted(result.tokens, 'token')} in {duration(result.seconds)}, "
        f"validation perplexity {result.best:.2f}"
    )


def _given() -> set[str]:
    """Fields of a training that were said, on the command line or by a variable."""
    context = click.get_current_context()
    fields = {"steps": "max_steps", "seconds": "max_seconds"}
    said = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return {fields.get(name, name) for name in context.params if context.get_parameter_source(name) in said}


def reached(point: Mapping[str, float]) -> str:
    """One validation in a line."""
    return (
        f"validation perplexity {point['valid_perplexity']:.2f} after {counted(int(point['step']), 'step')}, "
        f"{duration(point['seconds'])}"
    )


def stopped(result: TrainResult, place: Path, out: Path) -> str:
    """What an interrupted training leaves, and how to go on."""
    usable = (
        f"{place} is a model with the best weights so far, of validation perplexity {result.best:.2f}"
        if math.isfinite(result.best)
        else f"{place} is a model with the weights of step {result.steps:,}, not validated yet"
        if result.steps
        else "no weights are there to use yet"
    )
    unharmed = f"{out} is as it was. " if place != out else ""
    return (
        f"interrupted after {counted(result.steps, 'step')} and {duration(result.seconds)}; the state is saved in "
        f"{place}, and {usable}. {unharmed}To go on, give the same command with --resume"
    )
