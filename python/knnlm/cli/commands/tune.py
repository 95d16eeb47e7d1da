"""`knnlm tune`: λ, T and k on validation text, saved with the store, and how perplexity moves around them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knnlm.cli.console import Command, facts, note, print_json, refused, warn
from knnlm.cli.options import (
    Loading,
    Reading,
    Texts,
    as_json,
    cache_option,
    exact_option,
    loading_options,
    model,
    ngram_option,
    overwrite,
    text_argument,
    text_options,
    threads,
)
from knnlm.cli.work import blend_text, load_for, open_store, overlap_share, warn_of_failed, warn_of_overlap
from knnlm.system.extras import installed, require

if TYPE_CHECKING:
    from knnlm.evaluate.tune import Tuned
    from knnlm.lm.blend import Blend
    from knnlm.lm.scored_text import Cached
    from knnlm.text.inputs import TokenDocument

SIZE_TOKENS = 8000  # scored for the plot against the store's size


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
@exact_option
@cache_option
@ngram_option
@click.option("--plots", type=click.Path(path_type=Path), help="Folder for the plots.  [default: STORE-tuning]")
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
    exact: bool | None,
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
    from knnlm.evaluate.size_curve import size_curve
    from knnlm.evaluate.tune import save_tuned
    from knnlm.evaluate.tune import tune as choose
    from knnlm.lm.blend import CACHE_SIZE, ORDER, cache_thetas, ngram_of
    from knnlm.lm.score import check_scores, neighbors_of
    from knnlm.lm.settings import Settings
    from knnlm.report.progress import Progress
    from knnlm.store.temperature import default_temperature

    folder = None if no_plots else plots or store.with_name(f"{store.name}-tuning")
    if plots is not None:
        require("matplotlib", use="--plots")
    elif folder is not None and not installed("matplotlib"):
        note("no plots are drawn without matplotlib: pip install 'knnlm[report]'")
        folder = None
    there = sorted(folder.glob("perplexity-*.svg")) if folder is not None else []
    if there and not overwrite:
        raise click.UsageError(
            f"{folder} holds plots of an earlier tuning, such as {there[0].name}: add --overwrite or --no-plots, or "
            "name another folder with --plots"
        )
    texts = Texts(text, reading)
    with Progress(json=as_json) as progress, open_store(store) as opened:
        loaded = load_for(opened, model, loading, threads)
        check_scores(loaded, texts.tokenised(loaded.tokenizer), opened)
        thetas = cache_thetas(default_temperature(opened)) if cache else []
        progress("5-gram", 0, 1) if ngram else None
        counted = ngram_of(opened, ORDER, int(loaded.tokenizer.vocab_size)) if ngram else None
        progress("5-gram", 1, 1) if ngram else None
        heads = _Heads(texts.tokenised(loaded.tokenizer))
        cached = neighbors_of(
            loaded,
            heads,
            opened,
            k=max(1, min(k, len(opened))),
            nprobe=nprobe,
            rerank=rerank,
            exact=bool(exact),
            threads=threads,
            cache_thetas=thetas,
            cache_size=CACHE_SIZE,
            cache_metric=opened.metric,
            ngram=counted,
            progress=texts.callback(progress, "score"),
        )
        progress("tune", 0, 1)
        tuned = choose(cached, temperature=temperature)
        share = overlap_share(cached, opened, progress)
        blends = _blends(cached, tuned, thetas, ngram, opened.metric)
        progress("tune", 1, 1)
        search = {"nprobe": nprobe, "rerank": rerank, "exact": exact or None}
        unsaved = None
        try:
            save_tuned(
                opened, tuned, **search, blends={name: blend.to_dict() for name, blend in blends.items()} or None
            )
        except OSError as error:  # what took minutes to find is shown first
            unsaved = error
        written = []
        if folder is not None and unsaved is None:
            curves = {name: (curve.x, curve.perplexity, tuned.lm_perplexity) for name, curve in tuned.curves.items()}
            if not cached.excluded_documents:  # a search leaves out one range of entries: the rest of the store
                settings = Settings(tuned.lambda_, tuned.temperature, tuned.k, nprobe, rerank, bool(exact), threads)
                sizes = size_curve(loaded, heads.documents, opened, settings, progress=progress)
                curves["size"] = (sizes.x, sizes.perplexity, sizes.fixed["lm_perplexity"])
            written = _plots(tuned, curves, folder)
    texts.finish()
    warn_of_failed(cached.failed)
    warn_of_overlap(share)
    if as_json:
        print_json(
            {
                **tuned.to_dict(curves=True),
                "blends": {name: blend.to_dict() for name, blend in blends.items()},
                "store": str(store),
                "saved": unsaved is None,
                "plots": written,
                "excluded": cached.excluded_documents,
                "overlap_13gram": share,
                "failed": cached.failed,
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
            f"({100 * (tuned.perplexity / tuned.lm_perplexity - 1):+.1f} %), on {tuned.tokens:,} tokens",
            **{f"with {name}": f"{b.perplexity:.2f}: {blend_text(b.to_dict())}" for name, b in blends.items()},
        }
    )
    if cached.excluded_documents:
        note(f"{cached.excluded_documents} documents are in the store: their own entries were left out")
    _not_saved(unsaved)
    note(f"saved in {store}" + (f"; plots in {folder}" if folder else ""))


def _not_saved(error: OSError | None) -> None:
    """Ends the command, which has shown what it found, where the store could not be changed."""
    if error is not None:
        warn(f"not saved, give them to eval and generate yourself: {refused(error)}")
        click.get_current_context().exit(1)


class _Heads:
    """Passes documents on and keeps the first tokens of the first ones, for the plot against the store's size."""

    def __init__(self, documents: Iterable[TokenDocument]) -> None:
        self._passing, self.documents = documents, list[Any]()

    def __iter__(self) -> Iterator[TokenDocument]:
        left = SIZE_TOKENS
        for document in self._passing:
            head = document.tokens[: min(left, SIZE_TOKENS // 8)]
            if len(head):
                self.documents.append(replace(document, tokens=head, text=None))
                left -= len(head)
            yield document


def _blends(cached: Cached, tuned: Tuned, thetas: Sequence[float], ngram: bool, metric: str) -> dict[str, Blend]:
    """Weights of every combination of the asked components, by its name."""
    from knnlm.lm.blend import blend_name, fit_blend
    from knnlm.lm.score import cache_name

    log_p_knn = cached.log_p_knn(tuned.temperature, tuned.k) if thetas or ngram else None
    found = {}
    for with_cache in (False, True)[: 1 + bool(thetas)]:
        for with_ngram in (False, True)[: 1 + ngram]:
            if log_p_knn is not None and (with_cache or with_ngram):
                found[blend_name(with_cache, with_ngram)] = fit_blend(
                    cached.log_p_lm,
                    log_p_knn,
                    {theta: cached.features[cache_name(theta)] for theta in thetas} if with_cache else None,
                    cached.features["ngram"] if with_ngram else None,
                    metric=metric,
                )
    return found


def _plots(tuned: Tuned, curves: Mapping[str, tuple[list[float], list[float], float]], folder: Path) -> list[str]:
    from knnlm.report.plots import save, tuning_plot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (x, y, alone) in curves.items():
        chosen = None if name == "size" else float(getattr(tuned, name))
        path = folder / f"perplexity-{name.rstrip('_')}.svg"
        save(tuning_plot(name, x, y, alone, chosen, "validation text"), path)
        written.append(str(path))
    return written
