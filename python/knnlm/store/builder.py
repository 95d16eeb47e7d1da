"""Builder: what a build takes of a store beyond `Datastore`: codes that are made elsewhere, taken in by one writer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm import _core
from knnlm.store.datastore import Datastore
from knnlm.system.json_text import to_json

Progress = Callable[[str, int, int], None] | None
Keys = NDArray[np.float16] | NDArray[np.float32]


def sampled_keys(entries: int, dim: int, nlist: int | None) -> int:
    """How many keys a build of so many entries samples for its codebook."""
    return min(entries, _core.plan_index(entries, dim, nlist)[1])


class StoreBuilder:
    """A store that is built from parts, which any process may encode, and one that holds the lock takes in."""

    def __init__(self, store: Datastore) -> None:
        self.store, self._core = store, store._core
        self._held: _core.Held | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Commit what was added, move to the newest generation and keep other writers out.

        Raises StoreError if there is another writer.
        """
        self._held = _core.hold(self._core)
        try:
            yield
        finally:
            self._held.release()
            self._held = None

    def encode_part(self, keys: Keys, folder: Path, stem: str, threads: int | None) -> list[Any]:
        """Codes of keys (n, d) in files of a folder, without the lock; what `add_part` is told of them."""
        return list(json.loads(_core.encode_part(self._core, keys, os.fsdecode(folder), stem, threads=threads)))

    def add_part(
        self,
        folder: Path,
        encoded: Sequence[Any],
        documents: Sequence[tuple[str | None, dict[str, Any] | None, int]],
        values: NDArray[np.unsignedinteger[Any]],
        keys: Keys | None,
    ) -> None:
        """Publish documents (name, metadata, number of entries) whose keys were encoded; the files move into the store.

        encoded: of `encode_part`. values: (n,). keys: raw keys (n, d) where the store keeps them, else None.
        """
        told = [
            (name, None if metadata is None else to_json(metadata, "metadata"), count)
            for name, metadata, count in documents
        ]
        _core.add_part(self._core, os.fsdecode(folder), json.dumps(encoded), told, values, keys)
        self._core.commit()

    def calibrate(
        self,
        queries: NDArray[np.float32],
        own: NDArray[np.int64],
        ids: NDArray[np.int64],
        threads: int | None,
        progress: Progress,
    ) -> None:
        """Measure the recall of the index against exact neighbors `ids` (q, k) of queries (q, d).

        own: (q, 2) ids that each query leaves out.
        """
        _core.calibrate(self._core, queries, own, ids, threads=threads, progress=progress)

    def stage_codebook(
        self,
        folder: Path,
        name: str,
        sample: Keys,
        expected: int,
        threads: int | None,
        progress: Progress,
        **index: Any,
    ) -> Any:
        """Learn a codebook for another index from a sample of keys (n, d), into a file; what `reindex` is told of it.

        expected: entries of the store. index: code, nlist and seed, as of `Datastore.build`.
        """
        place, options = os.fsdecode(folder), {"expected": expected, "threads": threads, "progress": progress, **index}
        return json.loads(_core.stage_codebook(self._core, place, name, sample, **options))

    def stage_lists(
        self,
        folder: Path,
        codebook: str,
        keys: Keys,
        runs: Sequence[tuple[int, int]],
        span: tuple[int, int],
        name: str,
        threads: int | None,
    ) -> Any:
        """Codes of keys (n, d) by a staged codebook, into a file, without the lock; what `reindex` is told of it.

        runs: (first id, number) of ids that follow each other. span: the range of ids that the file stands for.
        """
        found = _core.stage_lists(self._core, os.fsdecode(folder), codebook, keys, runs, span, name, threads=threads)
        return json.loads(found)

    def reindex(
        self,
        folder: Path,
        codebook: Any,
        lists: Sequence[Any],
        queries: NDArray[np.float32],
        own: NDArray[np.int64],
        ids: NDArray[np.int64],
        threads: int | None,
        progress: Progress,
    ) -> None:
        """Publish a staged codebook and lists of all entries as the next generation, its recall measured as well.

        The store must be held. Raises FormatError where a staged file is damaged.
        """
        assert self._held is not None, "hold the store first"
        _core.reindex(
            self._core, self._held, os.fsdecode(folder), json.dumps(codebook), json.dumps(lists), queries, own, ids,
            threads=threads, progress=progress,
        )  # fmt: skip
