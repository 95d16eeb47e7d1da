"""Our store in the search benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from engine_faiss import BATCH, Clock
from engine_sets import Array

Found = tuple[Array, Array]


class Knnlm:
    """Our store, built with default parameters; raw keys are not kept."""

    def __init__(self, path: Path) -> None:
        import knnlm

        self.store = knnlm.Datastore.open(path)
        self.info = self.store.info()
        self.bytes_per_key = self.info["search_bytes_per_entry"]  # without values
        self.second = "SecondCodes" in self.info["sections"]

    def facts(self) -> dict[str, Any]:
        """What decides its speed beside the settings."""
        return {name: self.info[name] for name in ("nlist", "code") if name in self.info}

    @staticmethod
    def build(keys: Array, path: Path, threads: int, code: str | None) -> dict[str, float]:
        """Adds and builds; the second part is what FAISS calls train and add."""
        import knnlm

        started = Clock()
        store = knnlm.Datastore.create(path, dim=keys.shape[1])
        for at in range(0, len(keys), BATCH):
            part = keys[at : at + BATCH]
            store.add(part, np.arange(at, at + len(part), dtype=np.uint32))
        store.commit()
        copied = started.read()
        clock = Clock()
        store.build(seed=0, threads=threads, **({"code": code} if code else {}))
        wall, cpu = clock.read()
        store.close()
        return {"copy_seconds": copied[0], "train_and_add_seconds": wall, "train_and_add_cpu_seconds": cpu}

    def settings(self, k: int) -> Iterator[dict[str, Any]]:
        """Asked recall, and lists of the first level alone."""
        asked = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.88, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
        for recall in asked if k >= 512 else asked[::2]:
            if self.reaches(k, {"recall": recall}):
                yield {"recall": recall}
        if self.second:
            for nprobe in (4, 8, 12, 16, 24, 32, 48, 64):
                yield {"nprobe": nprobe, "rerank": "none"}

    def reaches(self, k: int, setting: dict[str, Any]) -> bool:
        """Whether the store's codes can find what is asked for: it refuses to promise more."""
        try:
            self.store.search(np.zeros((1, self.store.dim), np.float32), k, threads=1, **setting)
        except ValueError:
            return False
        return True

    def scanned(self, queries: Array, k: int, setting: dict[str, Any]) -> float:
        """Mean number of codes that a query looks at."""
        options = {name: setting.get(name) for name in ("nprobe", "recall", "depth", "rerank")}
        return float(self.store._core.entries_scanned(queries, k, **options).mean())

    def search(self, queries: Array, k: int, threads: int, **setting: Any) -> Found:
        found = self.store.search(queries, k, threads=threads, **setting)
        return found.distances, found.ids
