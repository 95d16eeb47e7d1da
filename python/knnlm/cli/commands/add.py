"""`knnlm add`: brings a store up to date with a text: only what is new, changed or gone is worked on."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from knnlm.cli.console import Command, duration, note, print_json
from knnlm.cli.options import (
    Loading,
    Reading,
    Texts,
    as_json,
    loading_options,
    model,
    text_argument,
    text_options,
    threads,
)
from knnlm.cli.retraining import advice
from knnlm.cli.work import load_for, open_store, warn_of_failed

if TYPE_CHECKING:
    from knnlm.build.update import Plan
    from knnlm.store.datastore import Datastore
    from knnlm.text.documents import Document


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
    from knnlm.build.dump import dump
    from knnlm.build.update import HASH, plan
    from knnlm.model.key_spec import KeySpec, key_spec
    from knnlm.report.index_progress import index_progress
    from knnlm.report.progress import Progress

    texts = Texts(text, reading, nothing="; knnlm delete removes what the store has of it")
    unread = functools.cache(lambda: texts.report.unread())  # asked once all is read
    started = time.perf_counter()
    with Progress(json=as_json) as progress, open_store(store) as opened:
        planned = opened.generation
        hashed = all((info.metadata or {}).get(HASH) for info in opened.documents())
        loaded = None if hashed else load_for(opened, model, loading, threads)
        work = plan(
            opened,
            texts.shown(progress),
            texts.origins(),
            None if loaded is None else loaded.tokenizer,
            unread=lambda name: unread()(name),
            limited=reading.max_documents is not None,
            texts=False,
        )
        if keep_removed:
            work.removed.clear()
        tokens, failed = 0, list[tuple[str, str]]()
        new = {document.place for document in work.new}
        if not dry_run:
            if not work.to_add and work.to_delete:
                with _as_planned(opened, planned):
                    opened.delete(work.to_delete)
            if work.to_add:  # what goes, goes with the commit of what comes: interrupted, nothing has changed
                loaded = loaded or load_for(opened, model, loading, threads)
                task = progress.track("add", unit="tok")
                with _as_planned(opened, planned):
                    written = dump(
                        loaded,
                        _texts_of(work, texts, store),
                        opened,
                        keys=key_spec(opened) or KeySpec(),
                        batch_tokens=batch_tokens,
                        progress=lambda _, done, total: task.update(done, total),
                        replace=work.to_delete,
                        # One that is changed goes with what it was: without its new text nothing would be left of it.
                        tolerant=lambda document: document.place in new,
                    )
                tokens, failed = written.tokens, written.failed
                if opened.is_built:
                    opened.build(threads=threads, progress=index_progress(progress, "index"))
        info = opened.info()
    texts.finish()
    warn_of_failed(failed)
    result = {
        "store": str(store),
        "added": len(work.new) - len(failed),
        "changed": len(work.changed),
        "removed": len(work.removed),
        "unchanged": work.unchanged,
        "unread": len(work.unread),
        "renamed": work.renamed,
        "elsewhere": work.elsewhere,
        "failed": failed,
        "tokens": tokens,
        "entries": info["n"],
        "retrain_advised": bool(info["retrain_advised"]),
        "seconds": time.perf_counter() - started,
        "dry_run": dry_run,
        "read": texts.summary(),
    }
    if as_json:
        print_json(result)
        return
    verb = "would be " if dry_run else ""
    note(
        f"{store}: {len(work.new) - len(failed):,} documents {verb}added, {len(work.changed):,} changed, "
        f"{len(work.removed):,} removed, "
        f"{work.unchanged:,} unchanged; {info['n']:,} entries, in {duration(time.perf_counter() - started)}"
    )
    _explain(work, reading.max_documents)
    if info["retrain_advised"]:
        note(f"the store has outgrown its index: {info['retrain_reason']}; {advice(info)}")


def _texts_of(work: Plan, texts: Iterable[Document], store: Path) -> Iterator[Document]:
    """The documents of a plan with their texts, which are read again: they need not fit into memory together."""
    from knnlm.build.update import HASH, content_hash
    from knnlm.store.datastore import StoreError

    waiting = {document.place: document for document in work.to_add}
    for document in texts if waiting else ():
        planned = waiting.get(document.place)
        if planned is not None and (planned.metadata or {})[HASH] == content_hash(document.text):
            del waiting[document.place]
            yield replace(planned, text=document.text)
    if waiting:
        raise StoreError(
            f"{store}: expected the text as it was when this began, found {len(waiting):,} documents changed or gone "
            f"meanwhile, such as {next(iter(waiting.values())).name!r}; nothing of this was committed: run knnlm add "
            "again"
        )


@contextmanager
def _as_planned(store: Datastore, generation: int) -> Iterator[None]:
    """Says so where a change, which is whole or not at all, is refused because the store is not the planned one."""
    from knnlm.store.datastore import StoreError

    try:
        yield
    except ValueError as error:
        store.refresh()
        if store.generation == generation:
            raise
        raise StoreError(
            f"{store.path}: expected the store as it was when this began, generation {generation}, found that another "
            f"command changed it meanwhile, to generation {store.generation}; nothing of this one was committed: run "
            "knnlm add again"
        ) from error


def _explain(work: Plan, max_documents: int | None) -> None:
    """Say which documents are not followed, which stayed although TEXT did not show them, and which were renamed."""
    for where, count in work.elsewhere.items():
        note(
            f"unchanged documents that are known from {where}: {count:,}. What is changed or gone in this TEXT stays "
            "in the store as it was there; knnlm add with that TEXT follows it, knnlm delete removes a document"
        )
    if work.unread:
        why = "could not be read" if max_documents is None else "was not read (--max-documents) or could not be"
        note(
            f"{len(work.unread):,} documents stay as they are because their text {why}, such as {work.unread[0]!r}; "
            "knnlm delete removes one that is not wanted"
        )
    if work.renamed:
        name, stored = work.renamed[0]
        note(
            f"{len(work.renamed):,} documents have the name of one that came from elsewhere and get another, such as "
            f"{stored!r} for {name!r}; if this text was only moved, knnlm delete removes the former one"
        )
