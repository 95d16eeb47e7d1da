"""Union: several stores searched as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.store.arrays import to_integer, to_integers
from knnlm.store.attributes import check_attributes, described_alike
from knnlm.store.neighbors import MISSING, Neighbors, merge
from knnlm.store.protocols import Searchable
from knnlm.system.memory import refuse_answer


class StoreUnion:
    """Several stores searched as one; entry `id` of store `s` is `id + offsets[s]` here.

    Where a store grows (`add`, `refresh`), the ids of those after it move: what was found before has the ids of then.
    attributes: what all stores that have any agree on, so that queries are made as all of their keys were. Raises
    ValueError if there is no store, if dimensions, metrics or the making of the keys differ, or for attributes that
    knnlm did not write.
    """

    def __init__(self, stores: Sequence[Searchable]) -> None:
        """Join `stores` in the given order, which also orders equal distances."""
        if not stores or len({(store.dim, store.metric) for store in stores}) != 1:
            raise ValueError("expected at least one store, all of one dimension and one metric")
        self.stores = list(stores)
        for store in self.stores:
            check_attributes(store)
        told = [dict(found) for store in stores if (found := getattr(store, "attributes", None))]
        for name in ("representation", "layer", "window", "context", "autocast"):
            ways = {repr(attributes[name]) for attributes in told if name in attributes}
            if len(ways) > 1:
                raise ValueError(
                    f"expected stores whose keys were made alike, found {name} {' and '.join(sorted(ways))}; "
                    "dump one of them again"
                )
        first = told[0] if told else {}
        self.attributes: dict[str, Any] = {
            name: value
            for name, value in first.items()
            if all(name in a and described_alike({name: value}, {name: a[name]}) for a in told)
        }
        self.dim, self.metric = stores[0].dim, stores[0].metric

    @property
    def offsets(self) -> NDArray[np.int64]:
        """The first id of each store, and the id after the last, (stores + 1,); of the stores as they are now."""
        # Ids of a store end at next_id, which deleted entries make larger than its length.
        ends = [int(getattr(store, "next_id", len(store))) for store in self.stores]
        return np.cumsum([0, *ends], dtype=np.int64)

    def __len__(self) -> int:
        """Entries of all stores."""
        return sum(len(store) for store in self.stores)

    @property
    def next_id(self) -> int:
        """Every id is below it."""
        return int(self.offsets[-1])

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
