"""`knnlm tune`: λ, T and k on validation text, saved with the store, and how perplexity moves around them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from knnlm.cli.console import Command, facts, note, print_json
from knnlm.cli.options import Texts, as_json, device, model, text_options, threads
from knnlm.cli.work import count_tokens, load_for, open_store

if TYPE_CHECKING:
    from knnlm.tune import Tuned

_TITLES = {"lambda_": ("Weight of the neighbours", "λ"), "temperature": ("Temperature", "T"), "k": ("Neighbours", "k")}


@click.command("tune", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("text", nargs=-1, required=True)
@model
@click.option("--k", type=click.IntRange(min=1), default=1024, show_default=True, help="Most neighbours to consider.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), help="Fix T instead of choosing it.")
@click.option("--nprobe", type=click.IntRange(min=1), help="Lists scanned per query.  [default: the store's]")
@click.option("--rerank", type=click.Choice(("none", "keys")), help="Score candidates again.  [default: the store's]")
@click.option("--exact", is_flag=True, help="Scan all raw keys instead of the index.")
@click.option("--plots", type=click.Path(path_type=Path), help="Folder for the plots.  [default: STORE-tuning]")
@click.option("--no-plots", is_flag=True, help="Write no plots.")
@text_options
@device
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
    plots: Path | None,
    no_plots: bool,
    text_field: str,
    split_documents: str | None,
    split: str,
    max_documents: int | None,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Choose λ, T and k on validation TEXT and save them with STORE; `eval`, `generate` and `inspect` use them.

    The text must not be in the store; where it is, each document's own entries are left out.

    \b
    Example:
      knnlm tune store validation.txt
    """
    from knnlm.perplexity import neighbours_of
    from knnlm.progress import Progress
    from knnlm.tune import save_tuned
    from knnlm.tune import tune as choose

    texts = Texts(text, text_field, split_documents, split, max_documents)
    with Progress(json=as_json) as progress, open_store(store) as opened:
        loaded = load_for(opened, model, device, threads)
        documents = texts.read()
        total = count_tokens(loaded, documents, progress)
        progress.track("score", total, "tok")
        cached = neighbours_of(
            loaded,
            documents,
            opened,
            k=max(1, min(k, len(opened))),
            nprobe=nprobe,
            rerank=rerank,
            exact=exact,
            threads=threads,
            progress=progress,
            total=total,
        )
        tuned = choose(cached, temperature=temperature)
        save_tuned(opened, tuned, nprobe=nprobe, rerank=rerank, exact=exact or None)
    folder = None if no_plots else plots or store.with_name(f"{store.name}-tuning")
    written = [] if folder is None else _plots(tuned, folder)
    texts.finish()
    if as_json:
        print_json(
            {**tuned.to_dict(curves=True), "store": str(store), "plots": written, "excluded": cached.excluded_documents}
        )
        return
    facts(
        {
            "λ": f"{tuned.lambda_:.3f}",
            "T": f"{tuned.temperature:.4g}",
            "k": f"{tuned.k}",
            "perplexity": f"{tuned.perplexity:.2f}, the model alone {tuned.lm_perplexity:.2f} "
            f"({100 * (tuned.perplexity / tuned.lm_perplexity - 1):+.1f} %), on {tuned.tokens:,} tokens",
        }
    )
    if cached.excluded_documents:
        note(f"{cached.excluded_documents} documents are in the store: their own entries were left out")
    note(f"saved in {store}" + (f"; plots in {folder}" if folder else ""))


def _plots(tuned: Tuned, folder: Path) -> list[str]:
    from knnlm.plots import Line, Plot, save

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (title, label) in _TITLES.items():
        if name not in tuned.curves:
            continue
        curve = tuned.curves[name]
        plot = Plot(
            f"{title}, validation text",
            label,
            [Line("kNN-LM", curve.x, curve.perplexity)],
            log_x=name != "lambda_",
            level=("model alone", tuned.lm_perplexity),
            chosen=float(getattr(tuned, name)),
        )
        path = folder / f"perplexity-{name.rstrip('_')}.svg"
        save(plot, path)
        written.append(str(path))
    return written
