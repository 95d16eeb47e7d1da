"""Protocols: what counts as a datastore."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

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
