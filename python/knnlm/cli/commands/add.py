"""`knnlm add`: brings a store up to date with a text: only what is new, changed or gone is worked on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from knnlm.cli.console import Command, duration, note, print_json, result
from knnlm.cli.options import Loading, Texts, as_json, loading_options, model, text_argument, text_options, threads
from knnlm.cli.work import load_for, shown
from knnlm.store.new_index import advice
from knnlm.store.opening import open_store
from knnlm.system.counted import counted
from knnlm.text.texts import Reading

if TYPE_CHECKING:
    from knnlm.build.add import AddResult


@click.command("add", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@text_argument()
@model
@click.option("--batch-tokens", type=click.IntRange(min=1), help="Tokens per forward pass.")
@click.option("--keep-removed", is_flag=True, help="Keep documents that are not in TEXT any more.")
@click.option("--dry-run", is_flag=True, help="Only say what would be added, changed and removed.")
@text_options
@loading_options
@threads
@as_json
def command(
    store: Path,
    text: tuple[str, ...],
    model: str | None,
    batch_tokens: int | None,
    keep_removed: bool,
    dry_run: bool,
    reading: Reading,
    loading: Loading,
    threads: int | None,
    as_json: bool,
) -> None:
    """Add the documents of TEXT to STORE; run again, add the new, replace the changed, delete the removed.

    A document is known by the path, glob or data set that was given as TEXT, its name there and the hash of its text.
    Removed are those that came from the same path, glob or data set before and are not there any more; what could not
    be read, and with --max-documents anything else, is not taken for removed. A document with the name of one that came
    from elsewhere is stored beside it as "name (2)"; if both have the same text, it is kept once and goes when it goes
    there. What comes from standard input (-) is never taken for a later state of what came from there before. New
    entries get the codes of the store's index and are searched at once. All of it is one change: interrupted, the store
    is as it was.

    \b
    Examples:
      knnlm add store notes/
      knnlm add store notes/ --dry-run
    """
    from knnlm.build.add import add_texts
    from knnlm.report.progress import Progress

    texts = Texts(text, reading, nothing="; knnlm delete removes what the store has of it")
    with Progress(json=as_json) as progress, open_store(store) as opened:
        done = add_texts(
            opened,
            texts,
            lambda: load_for(opened, model, loading, threads),
            keep_removed=keep_removed,
            dry_run=dry_run,
            batch_tokens=batch_tokens,
            threads=threads,
            progress=shown(progress),
        )
        info = opened.info()
    texts.finish()
    found = {
        "store": str(store),
        **asdict(done),
        "unread": len(done.unread),
        "retrain_advised": bool(done.retrain_advised),
        "dry_run": dry_run,
        "read": texts.summary(),
    }
    if as_json:
        print_json(found)
        return
    verb = "would be " if dry_run else ""
    result(
        f"{store}: {counted(done.added, 'document')} {verb}added, {done.changed:,} changed, {done.removed:,} removed, "
        f"{done.unchanged:,} unchanged; {counted(done.entries, 'entry')}, in {duration(done.seconds)}"
    )
    _explain(done, reading.max_documents)
    if done.retrain_advised:
        note(f"the store has outgrown its index: {done.retrain_advised}; {advice(info)}")


def _explain(done: AddResult, max_documents: int | None) -> None:
    """Say which documents are not followed, which stayed although TEXT did not show them, and which were renamed."""
    for where, count in done.elsewhere.items():
        note(
            f"known from {where}, and unchanged: {counted(count, 'document')}. What is changed or gone in this TEXT "
            "stays in the store as it was there; knnlm add with that TEXT follows it, knnlm delete removes a document"
        )
    if done.unread:
        why = "could not be read" if max_documents is None else "was not read (--max-documents) or could not be"
        note(
            f"kept as before, since the text {why}: {counted(len(done.unread), 'document')}, such as "
            f"{done.unread[0]!r}; knnlm delete removes one that is not wanted"
        )
    if done.renamed:
        name, stored = done.renamed[0]
        note(
            f"under another name, as the store has one from elsewhere: {counted(len(done.renamed), 'document')}, such "
            f"as {stored!r} for {name!r}; if this text was only moved, knnlm delete removes the former one"
        )
