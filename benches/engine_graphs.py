"""hnswlib, usearch and ScaNN in the search benchmark."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from engine_faiss import BATCH, Clock
from engine_sets import Array

Found = tuple[Array, Array]
CONSTRUCTION = 100  # width of the walk while a graph is built


def times(clock: Clock) -> dict[str, float]:
    """Wall and processor seconds under the names of the record."""
    wall, cpu = clock.read()
    return {"train_and_add_seconds": wall, "train_and_add_cpu_seconds": cpu}


class Hnswlib:
    """hnswlib, float32 vectors."""

    def __init__(self, path: Path, m: int = 16) -> None:
        import hnswlib

        about = json.loads(path.with_suffix(".json").read_text())
        self.index = hnswlib.Index(space="l2", dim=about["d"])
        self.index.load_index(str(path))
        self.bytes_per_key = path.stat().st_size / about["n"]

    @staticmethod
    def build(keys: Array, path: Path, threads: int, m: int) -> dict[str, float]:
        import hnswlib

        clock = Clock()
        index = hnswlib.Index(space="l2", dim=keys.shape[1])
        index.init_index(max_elements=len(keys), M=m, ef_construction=CONSTRUCTION, random_seed=1)
        index.set_num_threads(threads)
        for at in range(0, len(keys), BATCH):
            part = np.asarray(keys[at : at + BATCH], np.float32)
            index.add_items(part, np.arange(at, at + len(part)))
        facts = times(clock)
        index.save_index(str(path))
        path.with_suffix(".json").write_text(json.dumps({"n": len(keys), "d": keys.shape[1]}))
        return facts

    def settings(self, k: int) -> Iterator[dict[str, Any]]:
        for ef in (8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144):
            if ef >= k:
                yield {"ef": ef}

    def search(self, queries: Array, k: int, threads: int, ef: int = 16) -> Found:
        self.index.set_ef(ef)
        try:
            ids, distances = self.index.knn_query(queries, k, num_threads=threads)
        except RuntimeError:  # the walk of some query ended with fewer than k
            return np.full((len(queries), k), np.inf, np.float32), np.full((len(queries), k), -1)
        return distances, ids.astype(np.int64)


class Usearch:
    """usearch with bfloat16 vectors."""

    def __init__(self, path: Path, dtype: str = "bf16") -> None:
        from usearch.index import Index

        self.index = Index.restore(str(path))
        self.bytes_per_key = path.stat().st_size / len(self.index)

    @staticmethod
    def build(keys: Array, path: Path, threads: int, dtype: str) -> dict[str, float]:
        from usearch.index import Index

        clock = Clock()
        index = Index(ndim=keys.shape[1], metric="l2sq", dtype=dtype, connectivity=16, expansion_add=CONSTRUCTION)
        for at in range(0, len(keys), BATCH):
            part = np.asarray(keys[at : at + BATCH], np.float32)
            index.add(np.arange(at, at + len(part)), part, threads=threads)
        facts = times(clock)
        index.save(str(path))
        return facts

    def settings(self, k: int) -> Iterator[dict[str, Any]]:
        for ef in (16, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144):
            if ef >= k:
                yield {"ef": ef}

    def search(self, queries: Array, k: int, threads: int, ef: int = 64) -> Found:
        self.index.expansion_search = ef
        found = self.index.search(queries, k, threads=threads)
        keys, distances = np.atleast_2d(found.keys), np.atleast_2d(found.distances)
        ids = keys.astype(np.int64)
        counts = np.atleast_1d(found.counts) if hasattr(found, "counts") else np.full(len(ids), ids.shape[1])
        ids[np.arange(ids.shape[1]) >= counts[:, None]] = -1
        return distances, ids


class Scann:
    """ScaNN: a tree, anisotropic hashing of two dimensions a block, reordering with bfloat16 vectors."""

    def __init__(self, path: Path) -> None:
        import scann

        self.index = scann.scann_ops_pybind.load_searcher(str(path))
        self.n = json.loads((path / "about.json").read_text())["n"]
        self.bytes_per_key = sum(f.stat().st_size for f in path.iterdir()) / self.n

    @staticmethod
    def build(keys: Array, path: Path, threads: int) -> dict[str, float]:
        import scann
        from scann.scann_ops.py.scann_builder import ReorderType

        n = len(keys)
        leaves = int(2 * np.sqrt(n))
        clock = Clock()
        builder = scann.scann_ops_pybind.builder(np.asarray(keys, np.float32), 1024, "squared_l2")
        index = (
            builder.tree(num_leaves=leaves, num_leaves_to_search=64, training_sample_size=min(n, 64 * leaves))
            .score_ah(2)
            .reorder(2048, quantize=ReorderType.BFLOAT16)
            .set_n_training_threads(threads)
            .build()
        )
        facts = times(clock)
        path.mkdir()
        index.serialize(str(path))
        (path / "about.json").write_text(json.dumps({"n": n}))
        return facts

    def settings(self, k: int) -> Iterator[dict[str, Any]]:
        for factor, leaves in itertools.product((1, 2, 4), (16, 32, 64, 128, 256, 512)):
            yield {"leaves": leaves, "reorder": factor * k}

    def search(self, queries: Array, k: int, threads: int, leaves: int = 64, reorder: int = 2048) -> Found:
        options = {"final_num_neighbors": k, "leaves_to_search": leaves, "pre_reorder_num_neighbors": reorder}
        if len(queries) == 1:
            ids, distances = self.index.search(queries[0], **options)
            ids, distances = ids[None], distances[None]
        elif threads > 1:
            ids, distances = self.index.search_batched_parallel(queries, **options)
        else:
            ids, distances = self.index.search_batched(queries, **options)
        missing = ~np.isfinite(distances)
        return distances, np.where(missing, -1, ids.astype(np.int64))
