"""Adding: a store is brought up to date with texts: only what is new, changed or gone is worked on."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from knnlm.build.dump import dump
from knnlm.build.update import Plan, plan
from knnlm.model.key_spec import KeySpec, key_spec
from knnlm.model.loaded import Loaded
from knnlm.store.datastore import Datastore, StoreError
from knnlm.system.counted import counted
from knnlm.system.log import LOG, log_failed
from knnlm.text.documents import Document
from knnlm.text.stamp import HASH, content_hash, facts_of
from knnlm.text.texts import GivenTexts, Progress, Texts


@dataclass(frozen=True)
class AddResult:
    """What an update did, or with `dry_run` would do: documents by kind, tokens of what was added, entries now.

    unread: names of documents that stay because their text, or all of it, could not be read or was not. renamed: new
    documents that have another name than where they come from, both names. elsewhere: how many of the unchanged the
    store has from another origin, by that. failed: new documents that are not in the store, as the model gave NaN for
    them, and why. retrain_advised: why the store has outgrown its index, "" where it has not. documents: names in the
    store of those that were "added", "changed" and "removed".
    """

    added: int
    changed: int
    removed: int
    unchanged: int
    tokens: int
    entries: int
    seconds: float
    unread: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    elsewhere: dict[str, int] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)
    retrain_advised: str = ""
    documents: dict[str, list[str]] = field(default_factory=dict)


def add_texts(
    store: Datastore,
    texts: Texts,
    load: Callable[[], Loaded],
    *,
    keep_removed: bool = False,
    dry_run: bool = False,
    batch_tokens: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> AddResult:
    """Add what is new in texts, replace what has changed, delete what is gone: one change, whole or not at all.

    A document is known by its source, its name there and the hash of its text; see `update.plan`. Of texts that were
    given without a source nothing counts as gone: one with the name of a document that has none either is that
    document, one without a name is always new. Entries get the codes of the store's index and are searched at once.

    load: gives the store's model; asked only if there is something to run it over. keep_removed: keep documents that
    are gone. dry_run: change nothing. progress: called with (stage, done, total); stages "read" (bytes), "add" (tokens)
    and those of `Datastore.build`.

    Raises:
        IdentityError: the model is not the store's.
        StoreError: another process writes, or changed the store or the text meanwhile; nothing was committed then.
        NotFiniteError: the model gives NaN for a document that has changed, or for all that is new.
    """
    started = time.perf_counter()
    planned = store.generation
    if isinstance(texts, GivenTexts):
        texts.first = _next_number(store)
    unread = functools.cache(lambda: texts.report.unread())  # asked once all is read
    hashed = all(facts_of(info).get(HASH) for info in store.documents())
    loaded = None if hashed else load()
    work = plan(
        store,
        _shown(texts, progress),
        texts.origins,
        None if loaded is None else loaded.tokenizer,
        unread=lambda name: unread()(name),
        limited=texts.limited,
        texts=False,
    )
    if isinstance(texts, GivenTexts):
        work.unread.clear()  # nobody expected them to come again
    if keep_removed:
        work.removed.clear()
    tokens, failed = 0, list[tuple[str, str]]()
    # A document that has changed goes with what it was: without its new text nothing would be left of it.
    new = {document.place for document in work.new}
    if not dry_run:
        if not work.to_add and work.to_delete:
            with _as_planned(store, planned):
                store.delete(work.to_delete)
        if work.to_add:  # what goes, goes with the commit of what comes: interrupted, nothing has changed
            loaded = loaded or load()
            with _as_planned(store, planned):
                written = dump(
                    loaded,
                    _texts_of(work, texts, store),
                    store,
                    keys=key_spec(store) or KeySpec(),
                    batch_tokens=batch_tokens,
                    progress=None if progress is None else lambda _, done, total: progress("add", done, total),
                    replace=work.to_delete,
                    tolerant=lambda document: document.place in new,
                )
            tokens, failed = written.tokens, written.failed
            if store.is_built:
                store.build(threads=threads, progress=progress)
    log_failed(failed)
    left_out = {name for name, _ in failed}
    named = {
        "added": [document.name for document in work.new if document.name not in left_out],
        "changed": [document.name for document in work.changed],
        "removed": list(work.removed),
    }
    for kind, names in named.items():
        for name in names:
            LOG.debug("%s%s: %s", "would be " if dry_run else "", kind, name)
    info = store.info()
    return AddResult(
        added=len(work.new) - len(failed),
        changed=len(work.changed),
        removed=len(work.removed),
        unchanged=work.unchanged,
        tokens=tokens,
        entries=int(info["n"]),
        seconds=time.perf_counter() - started,
        unread=work.unread,
        renamed=work.renamed,
        elsewhere=work.elsewhere,
        failed=failed,
        retrain_advised=str(info["retrain_reason"]) if info["retrain_advised"] else "",
        documents=named,
    )


def _next_number(store: Datastore) -> int:
    """A number that no "document N" of the store has."""
    numbers = (re.fullmatch(r"document (\d{1,15})( \(\d+\))?", info.name or "") for info in store.documents())
    return 1 + max((int(found[1]) for found in numbers if found is not None), default=len(store.documents()))


def _shown(texts: Texts, progress: Progress | None) -> Iterator[Document]:
    """The documents, while it is told how much is read."""
    for document in texts:
        yield document
        if progress is not None:
            progress("read", int(texts.report.position), texts.report.size)
    if progress is not None and texts.report.size:  # what was skipped behind the last document is read, too
        progress("read", texts.report.size, texts.report.size)


def _texts_of(work: Plan, texts: Iterable[Document], store: Datastore) -> Iterator[Document]:
    """The documents of a plan with their texts, which are read again: they need not fit into memory together."""
    waiting = {document.place: document for document in work.to_add}
    for document in texts if waiting else ():
        planned = waiting.get(document.place)
        if planned is not None and facts_of(planned)[HASH] == content_hash(document.text):
            del waiting[document.place]
            yield replace(planned, text=document.text)
    if waiting:
        raise StoreError(
            f"{store.path}: expected the text as it was when this began, found "
            f"{counted(len(waiting), 'document')} changed or gone meanwhile, such as "
            f"{next(iter(waiting.values())).name!r}; nothing of this was committed: call add "
            "again (in commands knnlm add)"
        )


@contextmanager
def _as_planned(store: Datastore, generation: int) -> Iterator[None]:
    """Says so where a change, which is whole or not at all, is refused because the store is not the planned one."""
    try:
        yield
    except ValueError as error:
        store.refresh()
        if store.generation == generation:
            raise
        raise StoreError(
            f"{store.path}: expected the store as it was when this began, generation {generation}, found that another "
            f"command changed it meanwhile, to generation {store.generation}; nothing of this one was committed: call "
            "add again (in commands knnlm add)"
        ) from error
