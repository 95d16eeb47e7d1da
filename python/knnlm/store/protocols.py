"""Protocols: what counts as a datastore, and what a datastore of documents can tell beyond its neighbors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.store.neighbors import Neighbors


@runtime_checkable
class Searchable(Protocol):
    """Anything that can be searched is a datastore: one on disk, several together, a cache of the running text."""

    @property
    def metric(self) -> str:
        """`"l2"` or `"ip"`."""
        ...

    @property
    def dim(self) -> int:
        """Key dimension d."""
        ...

    def __len__(self) -> int:
        """Number of entries n."""
        ...

    def search(
        self,
        queries: Any,
        k: int = ...,
        *,
        nprobe: int | None = None,
        rerank: str | None = None,
        exact: bool = False,
        exclude: Any = None,
        threads: int | None = None,
    ) -> Neighbors:
        """The k nearest entries of each query (..., d); `exclude`: one half-open id range a query, (..., 2) int64."""
        ...


class DocumentRange(Protocol):
    """A document of a store: a half-open range of ids with a name."""

    @property
    def name(self) -> str | None:
        """Its name, None if it has none."""
        ...

    @property
    def start(self) -> int:
        """First id."""
        ...

    @property
    def stop(self) -> int:
        """The id after the last."""
        ...


class DocumentStore(Searchable, Protocol):
    """A datastore that knows its documents: what a prediction can be traced to, and what can be left out by name.

    Deleted documents are not among `documents`; their ids are never used again, so that `next_id` may be more than the
    number of entries, and their values read as all ones.
    """

    @property
    def path(self) -> str:
        """Where it is, "" for one in memory."""
        ...

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What Python has it remember: model, keys, tuned settings."""
        ...

    @property
    def generation(self) -> Any:
        """Another one whenever what is stored has changed."""
        ...

    @property
    def next_id(self) -> int:
        """Every id is below it."""
        ...

    @property
    def default_temperature(self) -> float | None:
        """The T that it proposes, None where it proposes none."""
        ...

    def documents(self) -> Sequence[DocumentRange]:
        """The documents, D of them, in corpus order."""
        ...

    def document_spans(self) -> NDArray[Any]:
        """Their half-open ranges of ids, (D, 2) int64."""
        ...

    def document_of(self, ids: Any) -> NDArray[Any]:
        """Index of each id's document, (...) to (...) int64; -1 for -1."""
        ...

    def values(self, start: int, stop: int) -> NDArray[Any]:
        """Values of a range of ids, (stop - start,)."""
        ...

    def reconstruct(self, ids: Any) -> NDArray[Any]:
        """Keys of ids, (...) to (..., d): as given where it keeps them, else what their codes decode to."""
        ...


@runtime_checkable
class Transactional(Protocol):
    """A store that publishes what was added as a whole, or not at all."""

    def commit(self) -> None:
        """Publish what was added."""
        ...

    def discard(self) -> None:
        """Forget what was added since."""
        ...


_TOLD = (
    "attributes",
    "default_temperature",
    "document_of",
    "document_spans",
    "documents",
    "generation",
    "next_id",
    "path",
    "reconstruct",
    "search",
    "values",
)


_MISSING = object()


def has_documents(store: Any) -> TypeGuard[DocumentStore]:
    """Whether a store is a `DocumentStore`; asks it nothing, as some of the answers take work, or commit."""
    return all(inspect.getattr_static(store, name, _MISSING) is not _MISSING for name in _TOLD)


def attributes_of(store: Any) -> Mapping[str, Any]:
    """What a store remembers; nothing for one without documents, or for None."""
    return store.attributes or {} if has_documents(store) else {}


def next_id_of(store: Searchable) -> int:
    """Every id of a store is below it."""
    return int(store.next_id) if has_documents(store) else len(store)


def path_of(store: Any) -> str:
    """Where a store is, "" for one in memory."""
    return str(store.path) if has_documents(store) else ""


def document_indices(store: Any, ids: ArrayLike) -> NDArray[Any]:
    """Index of each id's document, -1 in a store without documents."""
    if has_documents(store):
        return np.asarray(store.document_of(ids))
    return np.full(np.shape(ids), -1, np.int64)
