"""Replacing: another text for a document of a store, in one change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from knnlm.build.dump import dump
from knnlm.model.key_spec import KeySpec, key_spec
from knnlm.model.loaded import Loaded
from knnlm.store.datastore import Datastore
from knnlm.text.documents import Document
from knnlm.text.stamp import stamp


def replace_document(
    store: Datastore, name: str, text: Document, load: Callable[[], Loaded], *, threads: int | None = None
) -> tuple[int, int]:
    """Put a text in the place of the document `name`, at once: interrupted, the old one stays. Entries: old, new.

    text: its metadata stand above those that the store has of the document, whose origin stays. load: gives the
    store's model.

    Raises:
        ValueError: there is no such document.
        IdentityError: the model is not the store's.
    """
    index = store.find_document(name)
    if index is None:
        raise ValueError(f"expected a document of {store.path} to replace, found none named {name!r}")
    info = store.documents()[index]
    facts = stamp(Document(name, text.text, text.metadata)).metadata or {}  # without a place: the origin stays
    new = Document(name, text.text, {**(info.metadata or {}), **facts})
    written = dump(load(), [new], store, keys=key_spec(store) or KeySpec(), replace=[name])
    if store.is_built:
        store.build(threads=threads)
    return info.stop - info.start, written.tokens


def text_for(name: str, found: Sequence[Document], file: Path) -> Document:
    """The only text of a file, or of several the one of that name, or whose line (rows.jsonl#3) the document is."""
    line = name.rpartition("#")[2]
    fitting = [
        one
        for one in found
        if len(found) == 1 or (one.name == name if one.named else one.name.rpartition("#")[2] == line)
    ]
    if len(fitting) != 1:
        raise ValueError(
            f"expected one text for {name!r} in {file}, found {len(found):,}: {found[0].name!r} to "
            f"{found[-1].name!r}; put the right one into a file of its own"
        )
    return fitting[0]
