"""Union: several stores searched as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.store.arrays import to_integer, to_integers
from knnlm.store.attributes import check_attributes, described_alike
from knnlm.store.neighbors import MISSING, Neighbors, merge
from knnlm.store.protocols import DocumentRange, DocumentStore, has_documents
from knnlm.system.memory import refuse_answer


class UnionDocument(NamedTuple):
    """A document of one of the stores, with the ids that it has in the union."""

    name: str | None
    start: int
    stop: int


class StoreUnion:
    """Several stores searched as one; entry `id` of store `s` is `id + offsets[s]` here.

    Where a store grows (`add`, `refresh`), the ids of those after it move: what was found before has the ids of then.
    attributes: what all stores that have any agree on, so that queries are made as all of their keys were. Raises
    ValueError if there is no store, if dimensions, metrics or the making of the keys differ, or for attributes that
    knnlm did not write.
    """

    def __init__(self, stores: Sequence[DocumentStore]) -> None:
        """Join `stores` in the given order, which also orders equal distances."""
        if not stores or len({(store.dim, store.metric) for store in stores}) != 1:
            raise ValueError("expected at least one store, all of one dimension and one metric")
        if wrong := [store for store in stores if not has_documents(store)]:
            raise TypeError(f"stores: expected datastores with documents, found a {type(wrong[0]).__name__}")
        self.stores = list(stores)
        for store in self.stores:
            check_attributes(store)
        described = [dict(store.attributes) for store in stores if store.attributes]
        for name in ("representation", "layer", "window", "context", "autocast"):
            ways = {repr(attributes[name]) for attributes in described if name in attributes}
            if len(ways) > 1:
                raise ValueError(
                    f"expected stores whose keys were made alike, found {name} {' and '.join(sorted(ways))}; "
                    "dump one of them again"
                )
        first = described[0] if described else {}
        self.attributes: dict[str, Any] = {
            name: value
            for name, value in first.items()
            if all(name in a and described_alike({name: value}, {name: a[name]}) for a in described)
        }
        self.dim, self.metric, self.path = stores[0].dim, stores[0].metric, ""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """The first id of each store, and the id after the last, (stores + 1,); of the stores as they are now."""
        # Ids of a store end at next_id, which deleted entries make larger than its length.
        return np.cumsum([0, *(store.next_id for store in self.stores)], dtype=np.int64)

    def __len__(self) -> int:
        """Entries of all stores."""
        return sum(len(store) for store in self.stores)

    @property
    def next_id(self) -> int:
        """Every id is below it."""
        return int(self.offsets[-1])

    @property
    def generation(self) -> tuple[Any, ...]:
        """Those of its stores."""
        return tuple(store.generation for store in self.stores)

    @property
    def default_temperature(self) -> float | None:
        """The middle one of those that its stores propose."""
        proposed = sorted(t for store in self.stores if (t := store.default_temperature) is not None)
        return proposed[len(proposed) // 2] if proposed else None

    def documents(self) -> Sequence[DocumentRange]:
        """Documents of all stores, one store after the other, with the ids of the union."""
        return [
            UnionDocument(info.name, info.start + int(offset), info.stop + int(offset))
            for store, offset in zip(self.stores, self.offsets, strict=False)
            for info in store.documents()
        ]

    def document_spans(self) -> NDArray[np.int64]:
        """Their half-open ranges of ids, (D, 2)."""
        spans = [store.document_spans() + offset for store, offset in zip(self.stores, self.offsets, strict=False)]
        return np.concatenate(spans)

    def document_of(self, ids: Any) -> NDArray[np.int64]:
        """Index into `documents()` of each id, (...); -1 for -1."""
        wanted = np.asarray(ids, np.int64)
        found = np.full(wanted.shape, MISSING, np.int64)
        offsets, before = self.offsets, 0
        for store, start, end in zip(self.stores, offsets[:-1], offsets[1:], strict=True):
            own = (wanted >= start) & (wanted < end)
            indices = store.document_of(wanted[own] - start)
            found[own] = np.where(indices < 0, MISSING, indices + before)
            before += len(store.document_spans())
        return found

    def values(self, start: int, stop: int) -> NDArray[np.unsignedinteger[Any]]:
        """Values of a range of ids, (stop - start,)."""
        bounds = zip(self.stores, self.offsets[:-1], self.offsets[1:], strict=True)
        parts = [
            store.values(max(0, start - int(first)), min(stop, int(end)) - int(first))
            for store, first, end in bounds
            if start < end and stop > first
        ]
        return np.concatenate(parts or [self.stores[0].values(0, 0)])

    def reconstruct(self, ids: Any) -> NDArray[np.float32]:
        """Keys of ids, (...) to (..., d): as given where the store keeps them, else what their codes decode to."""
        wanted = np.asarray(ids, np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.next_id):
            raise ValueError(f"ids: expected ids in 0..{self.next_id}, found {wanted.min()} to {wanted.max()}")
        found = np.empty((*wanted.shape, self.dim), np.float32)
        for store, first, end in zip(self.stores, self.offsets[:-1], self.offsets[1:], strict=True):
            own = (wanted >= first) & (wanted < end)
            if own.any():
                found[own] = store.reconstruct(wanted[own] - first)
        return found

    def search(
        self,
        queries: Any,
        k: int = 1024,
        *,
        nprobe: int | None = None,
        rerank: str | None = None,
        exact: bool = False,
        exclude: ArrayLike | None = None,
        threads: int | None = None,
    ) -> Neighbors:
        """Search every store and merge by (distance, store, id)."""
        k, parts, offsets = to_integer(k, "k", 1, 2**32), [], self.offsets
        refuse_answer(int(np.prod(np.shape(queries)[:-1], dtype=np.int64)), k, len(self), 4 + 8 + 8 + 8)
        ranges = None if exclude is None else to_integers(exclude, "exclude", np.int64, 0, 2**63 - 1, "give ids")
        for store, start, end in zip(self.stores, offsets[:-1], offsets[1:], strict=True):
            own = None if ranges is None else np.clip(ranges - start, 0, end - start)
            most = min(k, max(1, len(store)))  # what cannot be there is added by the merge
            parts.append(
                store.search(queries, most, nprobe=nprobe, rerank=rerank, exact=exact, exclude=own, threads=threads)
            )
        merged, stores = merge(parts, k)
        ids = np.where(merged.found, merged.ids + offsets[stores], MISSING)
        return Neighbors(merged.distances, merged.values, ids, self.metric)
