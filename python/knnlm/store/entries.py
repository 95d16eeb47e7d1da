"""What a store tells about its entries: their values, documents and places in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from knnlm.store.protocols import DocumentStore
from knnlm.system.counted import counted
from knnlm.system.json_text import from_json


@dataclass(frozen=True)
class DocumentInfo:
    """A document: the entries with ids in `start .. stop`."""

    name: str | None
    start: int
    stop: int
    metadata: dict[str, Any] | None = None

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class LostDocument:
    """A document of which bytes are damaged, so that it cannot be kept.

    name: None where it has none, or it cannot be read. start, stop: its ids; where the records of documents that follow
    each other are damaged, all their ids at the first of them. sections: what of it is damaged, such as "Values".
    """

    name: str | None
    start: int
    stop: int
    sections: tuple[str, ...]

    def __len__(self) -> int:
        return self.stop - self.start


class Documents(Sequence[DocumentInfo]):
    """Documents of a store in corpus order, each read from the mapped file when asked for."""

    def __init__(self, n: int, read: Callable[[int], tuple[str | None, int, int, str | None]]) -> None:
        self._n = n
        self._read = read

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> DocumentInfo: ...
    @overload
    def __getitem__(self, index: slice) -> list[DocumentInfo]: ...
    def __getitem__(self, index: int | slice) -> DocumentInfo | list[DocumentInfo]:
        """Read one document, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._n))]
        position = index + self._n if index < 0 else index
        if not 0 <= position < self._n:
            raise IndexError(f"document {index} of a store with {counted(self._n, 'document')}")
        name, start, stop, metadata = self._read(position)
        facts = None if metadata is None else from_json(metadata, f"metadata of the document {name!r}")
        return DocumentInfo(name, start, stop, facts)

    def __iter__(self) -> Iterator[DocumentInfo]:
        return (self[i] for i in range(self._n))

    def __repr__(self) -> str:
        return f"<{counted(self._n, 'document')}>"


@dataclass(frozen=True)
class Entries:
    """Entries by id. An id of −1 (a missing neighbor) has a value of all ones, document −1 and position −1."""

    ids: NDArray[np.int64]  # (...)
    values: NDArray[np.unsignedinteger[Any]]  # (...), uint32 or uint64
    documents: NDArray[np.int64]  # (...), index into `Datastore.documents()`
    positions: NDArray[np.int64]  # (...), entries before it in its document
    _of_store: Documents

    @property
    def names(self) -> NDArray[np.object_]:
        """Name of each entry's document `(...)`; None where it has none or is missing."""
        indices, inverse = np.unique(self.documents, return_inverse=True)
        known = np.array([None if i < 0 else self._of_store[int(i)].name for i in indices] or [None], dtype=object)
        return known[inverse].reshape(self.documents.shape)


def lost_documents(found: Iterable[tuple[str | None, int, int, list[str]]]) -> list[LostDocument]:
    """As the core tells of them."""
    return [LostDocument(name, start, stop, tuple(sections)) for name, start, stop, sections in found]


def values_of_documents(
    store: DocumentStore, progress: Callable[[int], None] = lambda _: None
) -> Iterator[NDArray[np.unsignedinteger[Any]]]:
    """Values (L,) of each document of a store, in corpus order, read as they are asked for.

    progress: told how many entries these are so far.
    """
    read = 0
    for start, stop in store.document_spans().tolist():
        read += stop - start
        progress(read)
        yield store.values(start, stop)


def document_lists(
    documents: Sequence[Any] | None, what: str, queries: int
) -> tuple[list[list[int | str]], list[int]] | None:
    """Sort `allow` or `deny` into distinct lists of documents and the list of each query.

    documents: names or indices for all queries, or one sequence of them per query. Raises ValueError for anything else.
    """
    if documents is None:
        return None
    if isinstance(documents, (str, bytes)):
        raise ValueError(f"{what}: expected a list of documents, found one string: write [{documents!r}]")
    if not isinstance(documents, Iterable):
        raise ValueError(f"{what}: expected a list of documents, found {documents!r}: write [{documents!r}]")
    given = list(documents)
    per_query = [isinstance(item, (list, tuple, set, frozenset, np.ndarray)) for item in given]
    if not any(per_query):
        return [_keys(given, what)], [0] * queries
    if not all(per_query) or len(given) != queries:
        raise ValueError(
            f"{what}: expected documents, or one list of documents for each of {counted(queries, 'query')}, found "
            f"{len(given)} elements of which {sum(per_query)} are lists"
        )
    lists: dict[tuple[int | str, ...], int] = {}
    of_query = [lists.setdefault(tuple(_keys(item, what)), len(lists)) for item in given]
    return [list(key) for key in lists], of_query


def _keys(documents: Any, what: str) -> list[int | str]:
    keys: list[int | str] = []
    for document in documents:
        if isinstance(document, str):
            keys.append(document)
        elif isinstance(document, (int, np.integer)) and not isinstance(document, bool) and document >= 0:
            keys.append(int(document))
        else:
            raise ValueError(f"{what}: expected names or indices of documents, found {document!r}")
    return keys
