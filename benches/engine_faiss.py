"""FAISS in the search benchmark: inverted files on shared k-means and list labels, swept over nprobe and k_factor.

What indexes have in common is computed once a number of lists (centroids, nearest centroid of every key) and each index
is charged with all of it, as if it had been built alone.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from engine_sets import Array

Found = tuple[Array, Array]

BATCH = 65_536
POINTS_PER_LIST = 64
ITERATIONS = {1024: 10, 4096: 10, 16384: 3}  # more lists: fewer, or k-means alone takes half an hour
NPROBE = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def cpu_seconds() -> float:
    """Processor time of this process so far, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), cpu_seconds()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, cpu_seconds() - self.cpu


def training_sample(keys: Array, nlist: int) -> Array:
    """At least 64 points a list, in the order of the keys. (m, d) float32."""
    count = min(len(keys), POINTS_PER_LIST * nlist)
    rows = np.sort(np.random.default_rng(0).choice(len(keys), count, replace=False))
    return np.asarray(keys[rows], np.float32)


def centroids_of(keys: Array, nlist: int, work: Path) -> tuple[Array, tuple[float, float]]:
    """k-means of a sample with FAISS, (nlist, d), and its wall and processor seconds; cached."""
    import faiss

    path = work / f"centroids-{nlist}.npz"
    if not path.is_file():
        sample = training_sample(keys, nlist)
        clock = Clock()
        clustering = faiss.Kmeans(
            keys.shape[1],
            nlist,
            niter=ITERATIONS.get(nlist, 10),
            max_points_per_centroid=POINTS_PER_LIST,
            seed=1,
        )
        clustering.train(sample)
        np.savez(path, centroids=clustering.centroids, seconds=clock.read())
    saved = np.load(path)
    return saved["centroids"], (float(saved["seconds"][0]), float(saved["seconds"][1]))


def labels_of(keys: Array, centroids: Array, work: Path) -> tuple[Array, tuple[float, float]]:
    """Nearest centroid of every key, (n,) int64, found by FAISS, and its seconds; cached."""
    import faiss

    path = work / f"labels-{len(centroids)}-{digest(centroids)}.npz"
    if not path.is_file():
        flat = faiss.IndexFlatL2(keys.shape[1])
        flat.add(centroids)
        clock = Clock()
        parts = [
            flat.search(np.asarray(keys[at : at + BATCH], np.float32), 1)[1].ravel().astype(np.int32)
            for at in range(0, len(keys), BATCH)
        ]
        np.savez(path, labels=np.concatenate(parts), seconds=clock.read())
    saved = np.load(path)
    return saved["labels"].astype(np.int64), (float(saved["seconds"][0]), float(saved["seconds"][1]))


def digest(centroids: Array) -> str:
    """Short name of these very centroids."""
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(centroids).tobytes()).hexdigest()[:8]


def inverted_file(index: Any) -> Any:
    """The inverted file inside refinement and transforms."""
    import faiss

    inner = faiss.downcast_index(index)
    while isinstance(inner, (faiss.IndexRefine, faiss.IndexPreTransform)):
        inner = faiss.downcast_index(inner.base_index if isinstance(inner, faiss.IndexRefine) else inner.index)
    return inner


def transform_of(index: Any) -> Any:
    """The linear transform in front of the inverted file, or None."""
    import faiss

    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexRefine):
        inner = faiss.downcast_index(inner.base_index)
    return inner.chain.at(0) if isinstance(inner, faiss.IndexPreTransform) else None


def plain(factory: str) -> str:
    """The factory of the index that fast-scan codes are converted from: only that one takes labels."""
    return factory.replace("RaBitQfs", "RaBitQ").replace("x4fsr", "x4")


def fast_scan(index: Any, factory: str) -> Any:
    """`index`, with its inverted file in the fast-scan layout where the factory asks for it: codes stay the same."""
    import faiss

    if plain(factory) == factory:
        return index
    ivf = inverted_file(index)
    kind = faiss.IndexIVFRaBitQFastScan if "RaBitQ" in factory else faiss.IndexIVFPQFastScan
    new = kind(ivf, 32)
    if "RaBitQ" in factory:
        new.qb = ivf.qb
    new.this.own(False)  # whoever holds it deletes it; what it was made from lives until the process ends
    holder = faiss.downcast_index(index)
    if isinstance(holder, faiss.IndexRefine):
        if not isinstance(faiss.downcast_index(holder.base_index), faiss.IndexPreTransform):
            holder.base_index = new
            return index
        holder = faiss.downcast_index(holder.base_index)
    if not isinstance(holder, faiss.IndexPreTransform):
        index.this.own(False)
        return new
    holder.index = new
    return index


class Faiss:
    """A FAISS index made by its factory, with an inverted file inside."""

    def __init__(self, path: Path, k_factors: tuple[float, ...] = ()) -> None:
        import faiss

        self.faiss = faiss
        faiss.cvar.precomputed_table_max_bytes = 1 << 34
        self.index = faiss.read_index(str(path))
        self.bytes_per_key = path.stat().st_size / self.index.ntotal
        self.k_factors = k_factors
        refine = faiss.downcast_index(self.index)
        self.refine = refine if isinstance(refine, faiss.IndexRefine) else None
        self.ivf = inverted_file(self.index)
        self.lengths = np.array([self.ivf.invlists.list_size(i) for i in range(self.ivf.nlist)])

    def facts(self) -> dict[str, Any]:
        """What decides its speed beside the settings."""
        lengths = self.lengths
        return {
            "simd": self.faiss.SIMDConfig.get_level_name(),
            "precomputed_table": int(getattr(self.ivf, "use_precomputed_table", 0)),
            "longest_list": int(lengths.max()),
            "mean_list_of_a_key": float(np.square(lengths.astype(float)).sum() / lengths.sum()),
        }

    @staticmethod
    def build(
        keys: Array,
        path: Path,
        threads: int,
        work: Path,
        factory: str,
        ours: bool = False,
        own_lists: bool = False,
        k_factors: tuple[float, ...] = (),
    ) -> dict[str, float]:
        """Trains on at least 64 points a list and adds everything.

        With `ours` the lists are those of our index, with `own_lists` too FAISS makes as many of its own.
        """
        import faiss

        faiss.omp_set_num_threads(threads)
        kmeans = (0.0, 0.0)
        if ours:
            from list_reader import Lists

            centroids = np.ascontiguousarray(Lists(work / "knnlm").centroids, dtype=np.float32)
            if own_lists:
                centroids, kmeans = centroids_of(keys, len(centroids), work)
        else:
            nlist = int(factory.split("IVF")[1].split(",")[0])
            centroids, kmeans = centroids_of(keys, nlist, work)
        labels, assignment = labels_of(keys, centroids, work)
        index = faiss.index_factory(keys.shape[1], plain(factory).replace("{n}", str(len(centroids))))
        sample = training_sample(keys, min(len(centroids), 4096))
        clock = Clock()
        transform = transform_of(index)
        if transform is not None and not transform.is_trained:
            transform.train(sample)
        ivf = inverted_file(index)
        ivf.quantizer.add(centroids if transform is None else transform.apply(centroids))
        ivf.quantizer.is_trained = True
        if "RaBitQ" in factory:
            ivf.qb = 8
        index.train(sample)
        trained = clock.read()
        holder = faiss.downcast_index(index)
        refine = holder.refine_index if isinstance(holder, faiss.IndexRefine) else None
        for at in range(0, len(keys), BATCH):
            part = np.asarray(keys[at : at + BATCH], np.float32)
            ids = np.arange(at, at + len(part))
            turned = np.ascontiguousarray(part if transform is None else transform.apply(part))
            near = np.ascontiguousarray(labels[at : at + len(part)])
            pointers = (faiss.swig_ptr(turned), faiss.swig_ptr(ids), faiss.swig_ptr(near))
            ivf.add_core(len(part), *pointers)
            if refine is not None:
                refine.add(part)
        index = fast_scan(index, factory)
        holder = faiss.downcast_index(index)
        for outer in (faiss.downcast_index(index), holder):
            outer.ntotal = len(keys)
        if refine is not None:
            faiss.downcast_index(holder.base_index).ntotal = len(keys)
        done = clock.read()
        faiss.write_index(index, str(path))
        facts: dict[str, float] = {}
        for i, name in enumerate(("", "cpu_")):
            train = trained[i] + kmeans[i]
            add = done[i] - trained[i] + assignment[i]
            facts |= {f"train_{name}seconds": train, f"add_{name}seconds": add}
            facts[f"train_and_add_{name}seconds"] = train + add
        return facts

    def settings(self, k: int) -> Iterator[dict[str, Any]]:
        chosen = NPROBE if k >= 512 else NPROBE[::2]
        for k_factor in self.k_factors or (None,):
            for nprobe in chosen:
                if nprobe <= self.ivf.nlist:
                    yield {"nprobe": nprobe} | ({"k_factor": k_factor} if k_factor else {})

    def scanned(self, queries: Array, k: int, setting: dict[str, Any]) -> float:
        """Mean number of codes that a query looks at: the lengths of its nearest lists."""
        turned = queries
        transform = transform_of(self.index)
        if transform is not None:
            turned = transform.apply(queries)
        lists = self.ivf.quantizer.search(turned, setting["nprobe"])[1]
        return float(self.lengths[lists].sum(1).mean())

    def modes(self, batch: int, threads: int) -> Iterator[dict[str, Any]]:
        """A single query on several threads: by query (one thread works) or by list."""
        yield {}
        if batch == 1 and threads > 1 and "FastScan" not in type(self.ivf).__name__:
            yield {"parallel_mode": 1}

    def search(
        self,
        queries: Array,
        k: int,
        threads: int,
        nprobe: int = 1,
        k_factor: float | None = None,
        parallel_mode: int = 0,
    ) -> Found:
        self.faiss.omp_set_num_threads(threads)
        self.ivf.nprobe = nprobe
        if self.ivf.parallel_mode != parallel_mode:
            self.ivf.parallel_mode = parallel_mode
        if self.refine is not None and k_factor is not None:
            self.refine.k_factor = k_factor
        distances, ids = self.index.search(queries, k)
        return distances, ids
