"""`knnlm generate`: text from the model and the store together, or from the model alone."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from knnlm.cli.console import Command, print_json, write_out
from knnlm.cli.options import (
    Loading,
    Mixing,
    Words,
    as_json,
    cache_option,
    loading_options,
    mixing_options,
    model,
    ngram_option,
    seed,
    threads,
)
from knnlm.cli.streams import input_bytes
from knnlm.cli.work import load_for, note_defaults, warn_of_lambda
from knnlm.store.opening import open_store
from knnlm.system.terminal import printable
from knnlm.text.decoding import encoding_of


@click.command("generate", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--prompt", type=Words(), help="Text to continue, - for standard input.  [default: -]")
@model
@mixing_options
@cache_option
@ngram_option
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=100, show_default=True, help="Tokens to generate."
)
@click.option("--do-sample", is_flag=True, help="Draw each token.  [default: take the likeliest]")
@click.option(
    "--sampling-temperature",
    type=click.FloatRange(min=0, min_open=True),
    help="Flatter above 1, steeper below; with --do-sample.  [default: 1]",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Draw from so many likeliest tokens only.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw from the likeliest with so much mass.")
@click.option("--without-store", is_flag=True, help="Use the model alone, for comparison.")
@seed
@loading_options
@threads
@as_json
def command(
    store: Path,
    prompt: str | None,
    model: str | None,
    mixing: Mixing,
    cache: bool,
    ngram: bool,
    max_new_tokens: int,
    do_sample: bool,
    sampling_temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    without_store: bool,
    seed: int,
    loading: Loading,
    threads: int | None,
    as_json: bool,
) -> None:
    """Continue a prompt with the model and STORE together.

    \b
    Examples:
      knnlm generate store --prompt "It was a"
      echo "It was a" | knnlm generate store --do-sample --sampling-temperature 0.8 --top-p 0.95 --seed 3
    """
    from knnlm.knn_lm import KNNLM

    if not do_sample and (sampling_temperature, top_k, top_p) != (None, None, None):
        raise click.UsageError("--sampling-temperature, --top-k and --top-p say how to draw: give --do-sample, too")
    if without_store:
        _refuse_of_store(mixing, ngram)
    if prompt is None and sys.stdin is not None and sys.stdin.isatty():
        raise click.UsageError("expected a prompt: --prompt TEXT, or text on standard input")
    if prompt is None or prompt == "-":
        prompt = _standard_input().rstrip("\n")
    with open_store(store) as opened:
        loaded = load_for(opened, model, loading, threads)
        mixing = mixing.within(opened)
        used = {} if without_store else mixing.given()
        lm = KNNLM(loaded, None if without_store else opened, **used, threads=threads, cache=cache, ngram=ngram)
        if not without_store:
            note_defaults(opened, lm.settings, **mixing.given())
            warn_of_lambda(mixing.lambda_, cache or ngram)
        pieces = []
        if not as_json:
            write_out(_shown(prompt))
        for piece in lm.stream(
            prompt,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=1.0 if sampling_temperature is None else sampling_temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        ):
            pieces.append(piece)
            if not as_json:
                write_out(_shown(piece))
    if as_json:
        settings = None if without_store else lm.settings.to_dict()
        blend = {"blend": lm.combiner.to_dict()} if cache or ngram else {}
        print_json({"prompt": prompt, "text": "".join(pieces), "settings": settings, **blend, "seed": seed})
        return
    write_out("\n")


def _refuse_of_store(mixing: Mixing, ngram: bool) -> None:
    """Raise a usage error for what says how a store is searched and mixed in, beside --without-store."""
    given = [name for name, value in (*mixing.given().items(), ("ngram", ngram or None)) if value is not None]
    if given:
        raise click.UsageError(f"--{given[0].rstrip('_')} is of the store: leave it out, or --without-store")


def _standard_input() -> str:
    if sys.stdin is None:
        raise click.UsageError("expected a prompt: --prompt TEXT, or text on standard input, found that closed")
    data = input_bytes().read()
    encoding = encoding_of(data[:4])
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        raise ValueError(f"standard input: expected text in {name}, found {error}") from error


def _shown(text: str) -> str:
    """What goes out: a terminal is steered by nothing that a model writes; a file or a pipe gets the text as it is."""
    return printable(text, keep="\n\t") if sys.stdout is not None and sys.stdout.isatty() else text
