"""`knnlm tune`: λ, T and k on validation text, saved with the store, and how perplexity moves around them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from knnlm.cli.console import Command, facts, note, print_json, refused, warn
from knnlm.cli.options import (
    Loading,
    Texts,
    as_json,
    cache_option,
    loading_options,
    model,
    ngram_option,
    overwrite,
    text_argument,
    text_options,
    threads,
    tuned_exact_option,
)
from knnlm.cli.work import blend_text, load_for, shown, warn_of_overlap
from knnlm.store.opening import open_store
from knnlm.system.counted import counted
from knnlm.system.extras import installed, require
from knnlm.text.texts import Reading

if TYPE_CHECKING:
    from knnlm.evaluate.tune_store import StoreTuning


TOO_LARGE = "the weight of the store that is chosen on it is too large for other text"
"""What it means for settings that the store has a part of the text that they are chosen on."""


@click.command("tune", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@text_argument()
@model
@click.option("--k", type=click.IntRange(min=1), default=1024, show_default=True, help="Most neighbors to consider.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), help="Fix T instead of choosing it.")
@click.option("--nprobe", type=click.IntRange(min=1), help="Lists scanned per query.  [default: the store's]")
@click.option(
    "--rerank", type=click.Choice(("none", "code", "keys")), help="Score candidates again.  [default: the store's]"
)
@tuned_exact_option
@cache_option
@ngram_option
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    help="Folder for the plots.  [default: STORE-tuning, where those of an earlier tuning are replaced]",
)
@click.option("--no-plots", is_flag=True, help="Write no plots.")
@overwrite
@text_options
@loading_options
@threads
@as_json
def command(
    store: Path,
    text: tuple[str, ...],
    model: str | None,
    k: int,
    temperature: float | None,
    nprobe: int | None,
    rerank: str | None,
    exact: bool,
    cache: bool,
    ngram: bool,
    plots: Path | None,
    no_plots: bool,
    overwrite: bool,
    reading: Reading,
    loading: Loading,
    threads: int | None,
    as_json: bool,
) -> None:
    """Choose λ, T and k on validation TEXT and save them with STORE; `eval`, `generate` and `inspect` use them.

    The text must not be in the store; where it is, each document's own entries are left out. With --cache and --ngram
    their weights are chosen and saved as well.

    \b
    Example:
      knnlm tune store validation.txt
      knnlm tune store validation.txt --cache --ngram
    """
    from knnlm.evaluate.tune_store import tune_store
    from knnlm.report.progress import Progress

    folder = None if no_plots else plots or store.with_name(f"{store.name}-tuning")
    if plots is not None:
        require("matplotlib", use="--plots")
    elif folder is not None and not installed("matplotlib"):
        note("no plots are drawn without matplotlib: pip install 'knnlm[report]'")
        folder = None
    there = sorted(plots.glob("perplexity-*.svg")) if plots is not None and folder is not None else []
    if there and not overwrite:
        raise click.UsageError(
            f"{plots} holds plots of an earlier tuning, such as {there[0].name}: add --overwrite or --no-plots, or "
            "name another folder with --plots"
        )
    texts = Texts(text, reading)
    with Progress(json=as_json) as progress, open_store(store) as opened:
        loaded = load_for(opened, model, loading, threads)
        report = shown(progress)
        done = tune_store(
            loaded,
            opened,
            lambda: texts.tokenised(loaded.tokenizer),
            k=k,
            temperature=temperature,
            nprobe=nprobe,
            rerank=rerank,
            exact=exact,
            cache=cache,
            ngram=ngram,
            threads=threads,
            sizes=folder is not None,
            scoring=texts.counting(report, "score"),
            progress=report,
        )
    tuned, share, unsaved = done.tuned, done.overlap_13gram, done.unsaved
    written = _plots(done, folder) if folder is not None and unsaved is None else []
    texts.finish()
    warn_of_overlap(share, TOO_LARGE)
    if as_json:
        print_json(
            {
                **tuned.to_dict(curves=True),
                "blends": {name: blend.to_dict() for name, blend in done.blends.items()},
                "store": str(store),
                "saved": unsaved is None,
                "plots": written,
                "excluded": done.excluded,
                "overlap_13gram": share,
                "failed": done.failed,
            }
        )
        _not_saved(unsaved)
        return
    facts(
        {
            "λ": f"{tuned.lambda_:.3f}",
            "T": f"{tuned.temperature:.4g}",
            "k": f"{tuned.k}",
            "perplexity": f"{tuned.perplexity:.2f}, the model alone {tuned.lm_perplexity:.2f} "
            f"({100 * (tuned.perplexity / tuned.lm_perplexity - 1):+.1f} %), on {counted(tuned.tokens, 'token')}",
            **{f"with {name}": f"{b.perplexity:.2f}: {blend_text(b.to_dict())}" for name, b in done.blends.items()},
        }
    )
    if done.excluded:
        note(f"of the text the store has {counted(done.excluded, 'document')}: left out, of each, its own entries")
    _not_saved(unsaved)
    note(f"saved in {store}" + (f"; plots in {folder}" if folder else ""))


def _not_saved(error: OSError | None) -> None:
    """Ends the command, which has shown what it found, where the store could not be changed."""
    if error is not None:
        warn(f"not saved, give them to eval and generate yourself: {refused(error)}")
        click.get_current_context().exit(1)


def _place(folder: Path, name: str) -> Path:
    """Where the plot of a curve is."""
    return folder / f"perplexity-{name.rstrip('_')}.svg"


def _plots(done: StoreTuning, folder: Path) -> list[str]:
    from knnlm.report.plots import CURVES, save, tuning_plot

    tuned = done.tuned
    curves = {name: (curve, tuned.lm_perplexity, tuned.tokens) for name, curve in tuned.curves.items()}
    if done.sizes is not None:
        curves["size"] = (done.sizes, done.sizes.fixed["lm_perplexity"], int(done.sizes.fixed["tokens"]))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in CURVES:
        if name not in curves:  # one of an earlier tuning would be taken for one of this
            _place(folder, name).unlink(missing_ok=True)
    for name, (curve, alone, tokens) in curves.items():
        path = _place(folder, name)
        chosen = None if name == "size" else float(getattr(tuned, name))
        save(tuning_plot(name, curve.x, curve.perplexity, alone, chosen, tokens), path)
        written.append(str(path))
    return written
