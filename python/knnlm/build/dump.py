"""Dumping: the keys of documents go to a store, each with the token that follows, in one commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from knnlm.model.identity import check, describe
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec, key_spec
from knnlm.model.keys import NotFiniteError, Progress, iterate_as
from knnlm.model.loaded import Loaded
from knnlm.store.protocols import Transactional, has_documents, path_of


@dataclass(frozen=True)
class DumpResult:
    """What a dump wrote, and how long it took."""

    tokens: int
    documents: int
    empty_documents: int
    seconds: float
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Names of documents that are not in the store, as the model gave NaN for them, and why."""


def dump(
    loaded: Loaded,
    documents: Iterable[Any],
    store: Any,
    *,
    keys: KeySpec | None = None,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    total: int = 0,
    replace: Sequence[str] = (),
    tolerant: bool | Callable[[Any], bool] = False,
) -> DumpResult:
    """Write every (key, next token) of the documents to a store; what is published is published at the end.

    store: anything with `add(keys, values, document=, metadata=)`; its `commit()`, if it has one, is called before the
    first and after the last document, and `discard()` where something goes wrong between, Ctrl-C included, so an
    interrupted dump publishes nothing. keys: how keys are made (`KeySpec`); default: as the store says. An empty store
    that does not say of which model it is remembers this one and these keys, in a generation after that of the entries.
    A document whose name the store or this dump has already is stored as "name (2)", one without a name as "document 7"
    for the seventh, so that every document can be found by its name. replace: names of documents of the store that go
    in the commit that publishes these, which may use their names; needs `supersede(names)` of the store. tolerant: a
    document with a key that is not finite is left out and reported instead of ending the dump; what was written of it
    before, with keys that are right, is deleted in a generation after that of the entries, by `delete(names)` of the
    store; as a function, it says of a document whether it may be.

    Raises:
        IdentityError: the store belongs to another model, tokenizer, representation or arithmetic; nothing is done.
        NotFiniteError: a key that is not finite; if `tolerant`, before any other, or in every document.
        ValueError: a window that the model cannot read; what `store.add` refuses.
    """
    check(store, loaded, keys)
    spec = resolve(loaded, keys, store)
    started = time.perf_counter()
    tokens = documents_seen = 0
    offered = _Counted(documents)
    chunks = iterate_as(
        loaded,
        offered,
        spec,
        batch_tokens=batch_tokens,
        scores=False,
        tolerant=bool(tolerant),
        progress=None if progress is None else lambda _, done, total: progress("dump", done, total),
        total=total,
    )
    if isinstance(store, Transactional):
        store.commit()  # what was added before is not part of this dump
    unclaimed = _is_unclaimed(store)
    names = _Names(store, replace)
    name = ""
    failed: list[tuple[str, str]] = []
    partly: list[str] = []
    failing = -1
    try:
        if replace:
            store.supersede(list(replace))
        for chunk in chunks:
            if chunk.index == failing:
                continue
            if chunk.bad is not None:
                if not tokens or (callable(tolerant) and not tolerant(chunk.document)):
                    raise NotFiniteError(chunk.bad)
                failing = chunk.index
                failed.append((chunk.document.name, chunk.bad))
                partly += [name] * (chunk.start > 0)
                continue
            if chunk.start == 0:
                name = names.take(chunk.document.name or f"document {chunk.index + 1}")
            metadata = None if chunk.start else chunk.document.metadata
            store.add(chunk.key, chunk.tokens, document=name, metadata=metadata)
            tokens += len(chunk.tokens)
            documents_seen += chunk.last
        if failed and not documents_seen:
            raise NotFiniteError(failed[0][1])
    except BaseException:
        if isinstance(store, Transactional):
            store.discard()
        raise
    if isinstance(store, Transactional):
        store.commit()
    if partly:
        tokens -= store.delete(partly)
    if unclaimed and tokens:
        store.set_attributes({**describe(loaded, spec, store=path_of(store) or None), **store.attributes})
    empty = offered.count - documents_seen - len(failed)
    return DumpResult(tokens, documents_seen, empty, time.perf_counter() - started, failed)


def _is_unclaimed(store: Any) -> bool:
    """Whether a store that can remember never had an entry and does not say how its keys are made."""
    return has_documents(store) and key_spec(store) is None and not store.next_id


class _Names:
    """Gives every document a name of its own: a store extends the document of the last name, and finds by name."""

    def __init__(self, store: Any, free: Iterable[str] = ()) -> None:
        # Read once: asking the store for every document would commit what was added before each of them.
        self._used = {info.name for info in store.documents()} if has_documents(store) else set()
        self._used.difference_update(free)

    def take(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._used:
            number += 1
            name = f"{wanted} ({number})"
        self._used.add(name)
        return name


class _Counted:
    """Counts what passes, so that documents without a token can be reported."""

    def __init__(self, documents: Iterable[Any]) -> None:
        self.documents, self.count = documents, 0

    def __iter__(self) -> Iterator[Any]:
        for document in self.documents:
            self.count += 1
            yield document
