"""`knnlm eval`: perplexity of a text with and without the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from knnlm.cli.console import Command, facts, print_json, table, warn
from knnlm.cli.options import Texts, as_json, device, mixing_options, model, text_options, threads
from knnlm.cli.work import count_tokens, load_for, open_store

if TYPE_CHECKING:
    from knnlm.cached import Cached, Evaluation
    from knnlm.datastore import Datastore

OVERLAP = 0.01  # a larger share of evaluated tokens in the store's 13-grams is worth a warning


@click.command("eval", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("text", nargs=-1, required=True)
@model
@mixing_options
@click.option(
    "--exclude",
    type=click.Choice(("document", "entry", "none")),
    default="document",
    show_default=True,
    help="What to leave out where the very text is in the store: its document, each token's own entry, nothing.",
)
@text_options
@device
@threads
@as_json
def command(
    store: Path,
    text: tuple[str, ...],
    model: str | None,
    lambda_: float | None,
    temperature: float | None,
    k: int | None,
    nprobe: int | None,
    rerank: str | None,
    exact: bool,
    exclude: str,
    text_field: str,
    split_documents: str | None,
    split: str,
    max_documents: int | None,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Perplexity of TEXT under the model alone and with STORE, by token and by word.

    λ, T and k are those that `knnlm tune` saved. Warns when the text overlaps the store.

    \b
    Example:
      knnlm eval store held-out.txt
      knnlm eval store held-out.txt --lambda 0.3 --temperature 10 --exact
    """
    from knnlm.identity import settings_of
    from knnlm.perplexity import neighbours_of, score
    from knnlm.progress import Progress

    texts = Texts(text, text_field, split_documents, split, max_documents)
    with Progress(json=as_json) as progress, open_store(store) as opened:
        loaded = load_for(opened, model, device, threads)
        documents = texts.read()
        settings = settings_of(
            opened,
            lambda_=lambda_,
            temperature=temperature,
            k=k,
            nprobe=nprobe,
            rerank=rerank,
            exact=exact or None,
        )
        total = count_tokens(loaded, documents, progress)
        progress.track("score", total, "tok")
        cached = neighbours_of(
            loaded,
            documents,
            opened,
            k=settings.k or 1,
            nprobe=settings.nprobe,
            rerank=settings.rerank,
            exact=settings.exact,
            threads=threads,
            exclude=exclude,
            progress=progress,
            total=total,
        )
        found = score(cached, replace(settings, threads=threads))
        progress("overlap", 0, 1)
        share = _overlap(cached, opened)
        progress("overlap", 1, 1)
    texts.finish()
    _warn(share, found, exclude)
    if as_json:
        print_json({**found.to_dict(), "overlap_13gram": share, "store": str(store), "read": texts.summary()})
        return
    _show(found, share)


def _overlap(cached: Cached, store: Datastore) -> float:
    """Share of the scored tokens that lie in a 13-gram of the store."""
    from knnlm.overlap import overlap_13gram

    scored = [cached.tokens[a:b] for a, b in zip(cached.offsets, cached.offsets[1:], strict=False)]
    return overlap_13gram(scored, (store.values(info.start, info.stop) for info in store.documents()))


def _warn(share: float, found: Evaluation, exclude: str) -> None:
    if found.excluded_documents:
        left_out = {"document": "their own document was", "entry": "their own entries were", "none": "nothing was"}
        warn(f"{found.excluded_documents} of the evaluated documents are in the store; {left_out[exclude]} left out")
    if share > OVERLAP:
        warn(
            f"{100 * share:.1f} % of the evaluated tokens are in a run of 13 tokens that the store has too: "
            "the perplexity is of text that is partly known"
        )


def _show(found: Evaluation, share: float) -> None:
    def word(value: float | None) -> str:
        return "–" if value is None or not np.isfinite(value) else f"{value:.2f}"

    model_speed = found.tokens / found.model_seconds if found.model_seconds else float("nan")
    table(
        None,
        ["", "perplexity", "by word", "change", "tokens/s"],
        [
            ["model alone", f"{found.lm_perplexity:.2f}", word(found.lm_word_perplexity), "", f"{model_speed:,.0f}"],
            [
                "with the store",
                f"{found.perplexity:.2f}",
                word(found.word_perplexity),
                f"{100 * (found.perplexity / found.lm_perplexity - 1):+.1f} %",
                f"{found.tokens_per_second:,.0f}",
            ],
        ],
    )
    used: dict[str, Any] = found.settings
    facts(
        {
            "scored": f"{found.tokens:,} tokens, {found.words:,} words, {len(found.document_tokens):,} documents",
            "settings": f"λ {used['lambda_']:.3f}, T {used['temperature']:.4g}, k {used['k']}",
            "search": "exact"
            if used["exact"]
            else f"index, nprobe {used['nprobe'] or 'default'}, rerank {used['rerank'] or 'default'}",
            "retrieved": f"{100 * found.retrieved:.1f} % of the tokens are among their neighbours",
            "overlap": f"{100 * share:.2f} % of the tokens are in a 13-gram of the store",
        }
    )
