"""Update: which documents of a text are new to a store, changed or gone, by the hash of their content. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from knnlm.text.documents import NAMED, Document
from knnlm.text.stamp import HASH, ORIGIN, READ_AS, content_hash, facts_of, stamp


@dataclass
class Plan:
    """What an update does, document by document; the names are those in the store.

    unread: documents of the store that stay because their text, or all of it, could not be read or was not.
    elsewhere: how many of the unchanged the store has from another origin, by that.
    """

    new: list[Document] = field(default_factory=list)
    changed: list[Document] = field(default_factory=list)
    unchanged: int = 0
    removed: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    elsewhere: dict[str, int] = field(default_factory=dict)

    @property
    def to_delete(self) -> list[str]:
        """Names whose entries go."""
        return [document.name for document in self.changed] + self.removed

    @property
    def to_add(self) -> list[Document]:
        """Documents whose keys are needed."""
        return [*self.changed, *self.new]

    @property
    def renamed(self) -> list[tuple[str, str]]:
        """New documents that get another name than they have at their origin: both names."""
        names = ((_shown(_name_at_origin(document)), document.name) for document in self.new)
        return [(there, stored) for there, stored in names if there != stored]


def plan(
    store: Any,
    documents: Iterable[Document],
    origins: Collection[str],
    tokenizer: Any = None,
    *,
    unread: Callable[[str], bool] = lambda name: False,
    limited: bool = False,
    texts: bool = True,
) -> Plan:
    """Compare documents with those that a store holds of the same origins, by name.

    A document is removed if the store has it from one of `origins` and it is not there any more. One that the store
    holds from another origin is neither changed nor removed: if the text is the same it is there already, if not the
    new one gets a name of its own, "name (2)". One whose origin is not known is taken for the first of its name. A file
    of several of `origins` may be known from another of them than the one that shows it now.

    store: a `Datastore`. documents: what is at `origins` (`sources.origin_of`) now, as `read_documents` gives it.
    tokenizer: tells whether a document that a store holds without a hash is the same, by its tokens; without one it
    counts as changed. unread: tells of a name at its origin whether reading it failed (`ReadReport.unread`), asked
    after the last document: what the store has of it stays as it is. limited: the documents are not all there are, so
    that nothing counts as removed. texts: whether what is new or changed keeps its text in the plan; else it is "".
    """
    held, out = _Held(store, origins, tokenizer), Plan()
    seen: set[tuple[str | None, str]] = set()
    new: list[tuple[Document, str]] = []
    differ: list[tuple[Document, str, str, str]] = []
    for document in documents:
        origin, name = document.place or (None, document.name)
        seen.add((origin, name))
        known = content_hash(document.text)
        kept = document if texts else replace(document, text="")
        info = held.ours.get((origin, name)) or held.unknown.pop(name, None)
        if info is not None:
            if held.same(info, document, known):
                out.unchanged += 1
            else:
                differ.append((kept, known, name, str(info.name)))
            continue
        copy = next((info for info in held.others.get(name, ()) if held.same(info, document, known)), None)
        if copy is None:
            new.append((kept, known))
        else:
            out.unchanged += 1
            where = str(facts_of(copy)[ORIGIN])
            out.elsewhere[where] = out.elsewhere.get(where, 0) + 1
    for document, known, name, stored in differ:
        if unread(name):
            out.unread.append(stored)
        else:
            out.changed.append(stamp(replace(document, name=stored), known))
    left = {key: info for key, info in held.ours.items() if key not in seen}
    new, again = _known_from_another(new, left)
    out.unchanged += len(again)
    for key, info in left.items():
        if key not in again:
            (out.unread if limited or unread(key[1]) else out.removed).append(str(info.name))
    named = _names_of_their_own([document for document, _ in new], held.names, {_shown(name) for _, name in seen})
    out.new = [stamp(document, known) for document, (_, known) in zip(named, new, strict=True)]
    return out


def _known_from_another(
    new: list[tuple[Document, str]], left: dict[tuple[str | None, str], Any]
) -> tuple[list[tuple[Document, str]], set[tuple[str | None, str]]]:
    """What is new after all, and the keys of `left` that are the rest: the same file and text from another origin."""
    waiting: dict[tuple[str, str], list[tuple[str | None, str]]] = {}
    for key, info in left.items():
        waiting.setdefault((str(facts_of(info).get(HASH)), key[1].rpartition("/")[2]), []).append(key)
    out, again = [], set()
    for document, known in new:
        origin, name = document.place or (None, document.name)
        keys = waiting.get((known, name.rpartition("/")[2]), [])
        same = next((key for key in keys if key[0] != origin), None)
        if same is None:
            out.append((document, known))
        else:
            keys.remove(same)
            again.add(same)
    return out, again


class _Held:
    """The documents of a store by their names at their origins, apart for `origins`, for none, and for all others."""

    def __init__(self, store: Any, origins: Collection[str], tokenizer: Any) -> None:
        self._store, self._tokenizer = store, tokenizer
        self.ours: dict[tuple[str | None, str], Any] = {}
        self.unknown: dict[str, Any] = {}
        self.others: dict[str, list[Any]] = {}
        self.names: set[str] = set()
        for info in store.documents():
            if info.name is None:
                continue
            self.names.add(info.name)
            name, origin = _name_at_origin(info), facts_of(info).get(ORIGIN)
            if origin is None:
                self.unknown[name] = info
            elif origin in origins:
                self.ours[origin, name] = info
            else:
                self.others.setdefault(name, []).append(info)

    def same(self, info: Any, document: Document, hashed: str) -> bool:
        """Whether a document of the store has the text of this one, which has that hash."""
        known = facts_of(info).get(HASH)
        if known is None and self._tokenizer is not None:
            return np.array_equal(self._store.values(info.start, info.stop), self._tokenizer.encode(document.text))
        return bool(known == hashed)


def _name_at_origin(document: Any) -> str:
    return str(facts_of(document).get(READ_AS, document.name))


def _shown(name: str) -> str:
    """A name at an origin as people know it: that of a row without its file."""
    return name.partition(NAMED)[2] or name


def _names_of_their_own(documents: Iterable[Document], held: set[str], read: set[str]) -> list[Document]:
    """The documents, each with a name of its own: one that is held takes a number, and no other that was read."""
    used, out = set(held), []
    for document in documents:
        wanted = document.name if document.place is None else _shown(document.place[1])
        name, number = wanted, 1
        while name in used or (number > 1 and name in read):
            number += 1
            name = f"{wanted} ({number})"
        used.add(name)
        out.append(replace(document, name=name))
    return out
