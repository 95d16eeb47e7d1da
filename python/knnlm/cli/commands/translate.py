"""`knnlm translate`: lines of text into another language, with a store of parallel text beside the model."""

from __future__ import annotations

from pathlib import Path

import click

from knnlm.cli.console import Command, facts, print_json, write_out
from knnlm.cli.options import Loading, Mixing, as_json, loading_options, mixing_options, model, threads
from knnlm.store.opening import open_store
from knnlm.system.extras import require
from knnlm.system.terminal import printable


@click.command("translate", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("text", type=click.Path(path_type=Path))
@model
@mixing_options
@click.option("--num-beams", type=click.IntRange(min=1), default=4, show_default=True, help="Beams of the search.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Lines translated at a time."
)
@click.option("--source-lang", help="Language of TEXT, for a model of many.  [default: the store's]")
@click.option("--target-lang", help="Language to write, for a model of many.  [default: the store's]")
@click.option("--without-store", is_flag=True, help="Use the model alone, for comparison.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="True translations, line by line: say BLEU and chrF of what was written instead of writing it.",
)
@loading_options
@threads
@as_json
def command(
    store: Path,
    text: Path,
    model: str | None,
    mixing: Mixing,
    num_beams: int,
    batch_size: int,
    source_lang: str | None,
    target_lang: str | None,
    without_store: bool,
    reference: Path | None,
    loading: Loading,
    threads: int | None,
    as_json: bool,
) -> None:
    """Translate TEXT, a line each, by the model that wrote STORE and the parallel text in it.

    \b
    Examples:
      knnlm translate store de.txt > en.txt
      knnlm translate store de.txt --reference en.txt
    """
    require("transformers", use="knnlm translate")
    if reference is not None:
        require("sacrebleu", use="--reference")
    import torch

    from knnlm.mt.knn_mt import KNNMT
    from knnlm.mt.pairs import read_lines

    if threads is not None:
        torch.set_num_threads(threads)
    lines = read_lines(text)
    empty = [number for number, line in enumerate(lines, 1) if not line.strip()]
    with open_store(store) as opened:
        options = {**mixing.within(opened).given(), "source_lang": source_lang, "target_lang": target_lang}
        given = {name: value for name, value in options.items() if value is not None}
        with KNNMT.open(opened, model, threads=threads, **given, **loading.given()) as mt:
            translate = mt.translate_alone if without_store else mt.translate
            full = [line for line in lines if line.strip()]
            written = iter(translate(full, num_beams=num_beams, batch_size=batch_size))
            found = [next(written) if line.strip() else "" for line in lines]
            settings = None if without_store else mt.settings.to_dict()
    scores = None if reference is None else _scores(found, read_lines(reference), reference)
    if as_json:
        print_json({"translations": found, "settings": settings, "scores": scores, "empty_lines": empty})
    elif scores is not None:
        facts({name: str(value) for name, value in scores.items()})
    else:
        write_out("".join(f"{printable(line)}\n" for line in found))


def _scores(found: list[str], true: list[str], path: Path) -> dict[str, object]:
    if len(true) != len(found):
        raise ValueError(f"{path}: expected as many lines as were translated, {len(found):,}, found {len(true):,}")
    from knnlm.mt.judge import judged

    return judged(found, true)
