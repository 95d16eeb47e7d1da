"""`knnlm inspect`: each token of a text with its neighbors in context, in the terminal or as an HTML page."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knnlm.cli.console import Command, note, print_json, show, write_out
from knnlm.cli.options import (
    Loading,
    Mixing,
    Texts,
    Words,
    as_json,
    cache_option,
    loading_options,
    mixing_options,
    model,
    ngram_option,
    one_text_options,
    overwrite,
    text_argument,
    threads,
)
from knnlm.cli.work import blend_text, load_for, note_defaults, warn_of_lambda
from knnlm.store.opening import open_store
from knnlm.store.output_folder import refuse_existing
from knnlm.system.counted import counted
from knnlm.system.extras import require
from knnlm.system.terminal import printable
from knnlm.text.texts import Reading

if TYPE_CHECKING:
    from knnlm.lm.explain import Explanation
    from knnlm.report.rows import TokenRow
    from knnlm.store.why import Why


TOKENS, PAGE_TOKENS = 20, 5000


@click.command("inspect", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@text_argument(required=False)
@click.option("--string", type=Words(), help="Inspect this text instead of files.")
@model
@mixing_options
@cache_option
@ngram_option
@click.option("--neighbors", type=click.IntRange(min=1), default=5, show_default=True, help="Shown for each token.")
@click.option("--first", type=click.IntRange(min=0), default=0, show_default=True, help="First token shown.")
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    help=f"Tokens shown of each text.  [default: {TOKENS}, on a page {PAGE_TOKENS:,}]",
)
@click.option(
    "--why",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="ID",
    help="Say why the entry with this id is a neighbor of each token, or why not; again for more.",
)
@click.option("--html", type=click.Path(path_type=Path), help="Write a page to this file instead of the table.")
@one_text_options
@loading_options
@threads
@overwrite
@as_json
def command(
    store: Path,
    text: tuple[str, ...],
    string: str | None,
    model: str | None,
    mixing: Mixing,
    cache: bool,
    ngram: bool,
    neighbors: int,
    first: int,
    tokens: int | None,
    why: tuple[int, ...],
    html: Path | None,
    reading: Reading,
    loading: Loading,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Show where each prediction of TEXT comes from: its nearest neighbors in STORE, in context.

    Of several documents the first is shown, unless --max-documents asks for more.

    \b
    Examples:
      knnlm inspect store --string "It was a bright cold day"
      knnlm inspect store held-out.txt --first 100 --tokens 50 --html neighbors.html
      knnlm inspect store held-out.txt --first 100 --tokens 1 --why 4711
    """
    from knnlm.knn_lm import KNNLM
    from knnlm.report.progress import Progress
    from knnlm.report.rows import rows
    from knnlm.report.table import to_table
    from knnlm.text.inputs import Text

    if (string is None) == (not text):
        raise click.UsageError("expected text to inspect: files, or --string TEXT")
    if html is not None:
        require("jinja2", "matplotlib", use="--html")
        refuse_existing(html, overwrite)
    texts = Texts(text, replace(reading, max_documents=reading.max_documents or 2))
    shown: list[TokenRow] = []
    reasons: list[tuple[TokenRow, Why]] = []
    pages: list[Explanation] = []
    page = ""
    count = tokens or (TOKENS if html is None else PAGE_TOKENS)
    with Progress(json=as_json) as progress, open_store(store) as opened:
        loaded = load_for(opened, model, loading, threads)
        mixing = mixing.within(opened)
        lm = KNNLM(loaded, opened, **mixing.given(), threads=threads, cache=cache, ngram=ngram)
        note_defaults(opened, lm.settings, **mixing.given())
        warn_of_lambda(mixing.lambda_, cache or ngram)
        documents: Iterable[Any] = [Text("string", string)] if string is not None else texts
        task = progress.track("search", unit="tok")
        names: list[str] = []
        more = False
        for document in documents:
            if names and reading.max_documents is None:
                more = True
                break
            names.append(document.name)
            explained = lm.explain(
                document, start=first, stop=first + count, progress=lambda _, done, total: task.update(done, total)
            )
            if html is not None:
                pages.append(explained)
            own = list(rows(explained, loaded.tokenizer, neighbors=neighbors, left=24, right=6))
            shown += own
            reasons += [(row, explained.why(row.position, id_)) for row in own for id_ in why]
        settings, blend = lm.settings, lm.combiner.to_dict() if cache or ngram else None
        if html is not None and shown:
            from knnlm.report.why_page import why_page

            mixed = f"λ {settings.lambda_:.3f}" if blend is None else blend_text(blend)
            facts = {"store": str(store), "settings": f"{mixed}, T {settings.temperature:.4g}, k {settings.k}"}
            page = why_page(f"Why: {', '.join(names)}", facts, pages, loaded.tokenizer, neighbors)
    texts.finish()
    if more:
        note(f"only {names[0]}, the first document, is shown: --max-documents 2 and so on shows more")
    if not shown:
        raise ValueError(f"expected tokens from position {first} on, found a shorter text")
    if as_json:
        print_json(
            {
                "store": str(store),
                "settings": settings.to_dict(),
                **({} if blend is None else {"blend": blend}),
                "documents": names,
                "more": more,
                "tokens": [asdict(row) for row in shown],
                **({"why": [{"position": row.position, **asdict(one)} for row, one in reasons]} if why else {}),
            }
        )
    elif html is None:
        show(to_table(shown, plain=not sys.stdout.isatty()))
        for row, one in reasons:
            write_out(printable(f"{row.position} {row.token!r}, entry {one.id}: {one}\n", keep="\n"))
    if html is not None:
        from knnlm.system.own_files import write_text

        write_text(html, page)
        note(f"{html}: {counted(len(shown), 'token')} with neighbors")
