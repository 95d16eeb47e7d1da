"""`knnlm eval`: perplexity of a text with and without the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from knnlm.cli.console import Command, facts, print_json, table, warn
from knnlm.cli.options import (
    Loading,
    Mixing,
    Texts,
    as_json,
    cache_option,
    loading_options,
    mixing_options,
    model,
    ngram_option,
    text_argument,
    text_options,
    threads,
)
from knnlm.cli.work import blend_text, load_for, note_defaults, shown, warn_of_lambda, warn_of_overlap
from knnlm.store.opening import open_store
from knnlm.system.counted import counted
from knnlm.text.texts import Reading

if TYPE_CHECKING:
    from knnlm.evaluate.evaluate_store import StoreEvaluation


KNOWN_TEXT = "the perplexity with the store is lower than on text that it does not know, that of the model alone is not"
"""What it means for a result that the store has a part of the text."""


@click.command("eval", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@text_argument()
@model
@mixing_options
@cache_option
@ngram_option
@click.option(
    "--overlap/--no-overlap",
    "overlap",
    default=True,
    show_default=True,
    help="Look for the text's 13-grams in the store, all of whose values are read for it.",
)
@click.option(
    "--exclude",
    type=click.Choice(("document", "entry", "none")),
    default="document",
    show_default=True,
    help="What to leave out where the very text is in the store: its document, each token's own entry, nothing.",
)
@text_options
@loading_options
@threads
@as_json
def command(
    store: Path,
    text: tuple[str, ...],
    model: str | None,
    mixing: Mixing,
    cache: bool,
    ngram: bool,
    overlap: bool,
    exclude: str,
    reading: Reading,
    loading: Loading,
    threads: int | None,
    as_json: bool,
) -> None:
    """Perplexity of TEXT under the model alone and with STORE, by token and by word.

    λ, T and k are those that `knnlm tune` saved, and so are the weights of --cache and --ngram. Warns when the text
    overlaps the store. A document for which the model gives NaN is left out and named, and the exit code is 1 then.

    \b
    Example:
      knnlm eval store held-out.txt
      knnlm eval store held-out.txt --lambda 0.3 --temperature 10 --exact
    """
    from knnlm.evaluate.evaluate_store import evaluate_store
    from knnlm.lm.combiners import compared
    from knnlm.lm.retriever import Retriever
    from knnlm.lm.settings import settings_of
    from knnlm.report.progress import Progress

    texts = Texts(text, reading)
    with Progress(json=as_json) as progress, open_store(store) as opened:
        mixing = mixing.within(opened)
        settings = settings_of(opened, **mixing.given(), threads=threads)
        combiners = compared(opened, settings, cache=cache, ngram=ngram)
        loaded = load_for(opened, model, loading, threads)
        note_defaults(opened, settings, **mixing.given())
        report = shown(progress)
        done = evaluate_store(
            loaded,
            texts.tokenised(loaded.tokenizer),
            Retriever(opened, settings, exclude),
            combiners,
            overlap=overlap,
            scoring=texts.counting(report, "score"),
            progress=report,
        )
    found, blended = done["store"], done.get("blended")
    texts.finish()
    _warn(found, exclude, ngram)
    warn_of_lambda(mixing.lambda_, blended is not None)
    if as_json:
        more = {} if blended is None else {"blended": blended.to_dict()}
        print_json({**found.to_dict(), **more, "store": str(store), "read": texts.summary()})
    else:
        _show(found, blended)
    if found.failed:
        click.get_current_context().exit(1)


def _warn(found: StoreEvaluation, exclude: str, ngram: bool) -> None:
    if found.excluded_documents:
        left_out = {"document": "each one's own document", "entry": "each token's own entry", "none": "nothing"}
        warn(
            f"of the evaluated text the store has {counted(found.excluded_documents, 'document')}; left out: "
            f"{left_out[exclude]}"
        )
        if ngram:
            warn("the 5-gram model has counted those documents too: its part of the result is of text that it knows")
    warn_of_overlap(found.overlap_13gram, KNOWN_TEXT)
    if found.settings["lambda_"] == 1 and np.isinf(found.perplexity):
        warn(
            "with a lambda of 1 the model has no say, and a token that is not among its neighbors has p = 0: give "
            "--lambda below 1, or knnlm tune chooses one"
        )


def _blended_name(blended: StoreEvaluation | None) -> str:
    weights = {} if blended is None else blended.settings["blend"]["weights"]
    return "and what is blended in" if weights.get("knn") else "model and cache, without the store"


def _change(one: StoreEvaluation) -> str:
    """Of the perplexity against the model alone, with the interval by document where there is one."""
    change = f"{100 * one.change:+.1f} %"
    if one.interval is None:
        return change
    return f"{change} ({100 * (one.interval.ratio_low - 1):+.1f} to {100 * (one.interval.ratio_high - 1):+.1f})"


def _change_name(found: StoreEvaluation) -> str:
    return "change" if found.interval is None else f"change ({100 * found.interval.level:.0f} % interval)"


def _show(found: StoreEvaluation, blended: StoreEvaluation | None) -> None:
    def word(value: float | None) -> str:
        return "–" if value is None or not np.isfinite(value) else f"{value:.2f}"

    model_speed = found.tokens / found.model_seconds if found.model_seconds else float("nan")
    rows = [["model alone", f"{found.lm_perplexity:.2f}", word(found.lm_word_perplexity), "", f"{model_speed:,.0f}"]]
    for name, one in (("with the store", found), (_blended_name(blended), blended)):
        if one is not None:
            rows.append(
                [
                    name,
                    f"{one.perplexity:.2f}",
                    word(one.word_perplexity),
                    _change(one),
                    f"{one.tokens_per_second:,.0f}",
                ]
            )
    table(None, ["", "perplexity", "by word", _change_name(found), "tokens/s"], rows)
    used: dict[str, Any] = found.settings
    facts(
        {
            "scored": f"{counted(found.tokens, 'token')}, {counted(found.words, 'word')}, "
            f"{counted(len(found.document_tokens), 'document')}",
            "settings": f"λ {used['lambda_']:.3f}, T {used['temperature']:.4g}, k {used['k']}",
            "search": "exact"
            if used["exact"]
            else f"index, nprobe {used['nprobe'] or 'default'}, rerank {used['rerank'] or 'default'}",
            "retrieved": f"{100 * found.retrieved:.1f} % of the tokens are among their neighbors",
            **({} if blended is None else {"blended": blend_text(blended.settings["blend"])}),
            **(
                {}
                if found.overlap_13gram is None
                else {"overlap": f"{100 * found.overlap_13gram:.2f} % of the tokens are in a 13-gram of the store"}
            ),
        }
    )
