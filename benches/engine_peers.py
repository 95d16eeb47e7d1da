"""The systems of the search benchmark: how each is built, what it weighs, which settings it is swept over.

A system is built once, in a process of its own (`python benches/engine_peers.py …`, so that its seconds and its peak of
private memory are its own), saved in the work folder, and loaded by the benchmark. FAISS indexes with the same number
of lists share one k-means, whose time each of them is charged with.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import engine_sets
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Found = tuple[Array, Array]  # distances (q, k), ids (q, k) with -1 for missing

BATCH = 65_536
POINTS_PER_LIST = 64
ITERATIONS = 10
NPROBE = (4, 8, 16, 32, 64, 128, 256, 512)


class System(Protocol):
    """A built index."""

    bytes_per_key: float

    def settings(self, k: int) -> Iterator[dict[str, Any]]:
        """The settings to sweep, cheapest first in each group."""

    def search(self, queries: Array, k: int, threads: int, **setting: Any) -> Found:
        """Squared L2 distances and ids, nearest first."""


@dataclass(frozen=True)
class Spec:
    """What to build: a family, its parameters, and the row of the protocol that it belongs to."""

    name: str
    family: str
    row: str
    options: dict[str, Any] = field(default_factory=dict)


def specs(d: int, nlists: tuple[int, ...], n: int) -> list[Spec]:
    """Every system of the protocol that fits d dimensions."""
    even = d // 64 * 64  # what 64 sub-quantisers can cut
    half = d // 2  # one 4-bit code for two dimensions, as fast-scan likes it
    out = [
        Spec("knnlm", "knnlm", "ours", {"code": None}),
        Spec("knnlm small", "knnlm", "ours", {"code": "small"}),
    ]
    for nlist in nlists:
        if nlist * 39 > n:
            continue  # FAISS itself calls that under-trained
        ivf = f"IVF{nlist}"
        factories = [
            ("F1", f"{ivf},PQ64", ()),
            ("F2", f"OPQ64_{even},{ivf},PQ64", ()),
            ("F2", f"PCAR{even},{ivf},PQ64", ()),
            ("F3", f"PCAR{d},{ivf},PQ{half // 2}x4fsr", ()),
            ("F3", f"PCAR{d},{ivf},PQ{half}x4fsr", ()),
            ("F4", f"PCAR{d},{ivf},PQ{half // 2}x4fsr,Refine(SQ8)", (1.5, 2, 4)),
            ("F4", f"PCAR{d},{ivf},PQ{half}x4fs,Refine(SQfp16)", (1.5, 2, 4)),
            ("F5", f"RR{d},{ivf},RaBitQfs", ()),
            ("F5", f"RR{d},{ivf},RaBitQfs4", ()),
            ("F5", f"RR{d},{ivf},RaBitQfs,Refine(SQ8)", (1, 2, 3, 4)),
            ("F6", f"{ivf},SQ8", ()),
            ("F6", f"{ivf},SQ4", ()),
            ("F6", f"{ivf},SQfp16", ()),
            ("F7", f"{ivf},FlatPanorama8", ()),
        ]
        out += [Spec(f"FAISS {f}", "faiss", row, {"factory": f, "k_factors": kf}) for row, f, kf in factories]
    out += [
        Spec("FAISS SQ8, lists of knnlm", "faiss", "same lists", {"factory": "IVF{n},SQ8", "ours": True}),
        Spec(
            "FAISS RaBitQfs,Refine(SQ8), lists of knnlm",
            "faiss",
            "same lists",
            {"factory": f"RR{d},IVF{{n}},RaBitQfs,Refine(SQ8)", "ours": True, "k_factors": (2, 3, 4)},
        ),
        Spec("hnswlib M=16", "hnswlib", "H1", {"m": 16}),
        Spec("hnswlib M=24", "hnswlib", "H1", {"m": 24}),
        Spec("usearch bf16", "usearch", "H1", {"dtype": "bf16"}),
        Spec("ScaNN", "scann", "S1", {}),
    ]
    return out


# -- ours ---------------------------------------------------------------------------------------------------------


class Knnlm:
    """Our store, built with default parameters; raw keys are not kept."""

    def __init__(self, path: Path) -> None:
        import knnlm

        self.store = knnlm.Datastore.open(path)
        self.info = self.store.info()
        self.bytes_per_key = self.info["search_bytes_per_entry"]  # without values
        self.second = "SecondCodes" in self.info["sections"]

    @staticmethod
    def build(keys: Array, path: Path, threads: int, code: str | None) -> dict[str, float]:
        """Adds and builds; the second part is what FAISS calls train and add."""
        import knnlm

        started = time.perf_counter()
        store = knnlm.Datastore.create(path, dim=keys.shape[1])
        for at in range(0, len(keys), BATCH):
            part = keys[at : at + BATCH]
            store.add(part, np.arange(at, at + len(part), dtype=np.uint32))
        store.commit()
        added = time.perf_counter()
        store.build(seed=0, threads=threads, **({"code": code} if code else {}))
        done = time.perf_counter()
        store.close()
        return {"copy_seconds": added - started, "train_and_add_seconds": done - added}

    def settings(self, k: int) -> Iterator[dict[str, Any]]:
        """Asked recall where there is a second code, lists scanned where there is none."""
        if self.second:
            for recall in (0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99):
                yield {"recall": recall}
        for nprobe in (8, 16, 24, 32, 64, 128, 256, 512):
            yield {"nprobe": nprobe, "rerank": "none"}

    def search(self, queries: Array, k: int, threads: int, **setting: Any) -> Found:
        found = self.store.search(queries, k, threads=threads, **setting)
        return found.distances, found.ids


# -- FAISS --------------------------------------------------------------------------------------------------------


def faiss_centroids(keys: Array, nlist: int, work: Path, threads: int) -> tuple[Array, float]:
    """k-means of a sample with FAISS; cached, with its seconds."""
    import faiss

    path = work / f"centroids-{nlist}.npz"
    if not path.is_file():
        sample = training_sample(keys, nlist)
        started = time.perf_counter()
        clustering = faiss.Kmeans(
            keys.shape[1], nlist, niter=ITERATIONS, max_points_per_centroid=POINTS_PER_LIST, seed=1
        )
        clustering.train(sample)
        np.savez(path, centroids=clustering.centroids, seconds=time.perf_counter() - started)
    saved = np.load(path)
    return saved["centroids"], float(saved["seconds"])


def training_sample(keys: Array, nlist: int) -> Array:
    """At least 64 points a list, in the order of the keys. (m, d) float32."""
    count = min(len(keys), POINTS_PER_LIST * nlist)
    rows = np.sort(np.random.default_rng(0).choice(len(keys), count, replace=False))
    return np.asarray(keys[rows], np.float32)


class Faiss:
    """A FAISS index made by its factory, with an inverted file inside."""

    def __init__(self, path: Path, k_factors: tuple[float, ...] = ()) -> None:
        import faiss

        self.faiss = faiss
        self.index = faiss.read_index(str(path))
        self.bytes_per_key = path.stat().st_size / self.index.ntotal
        self.k_factors = k_factors
        refine = faiss.downcast_index(self.index)
        self.refine = refine if isinstance(refine, faiss.IndexRefine) else None
        inner = faiss.downcast_index(self.refine.base_index if self.refine else self.index)
        if isinstance(inner, faiss.IndexPreTransform):
            inner = faiss.downcast_index(inner.index)
        self.ivf = inner

    @staticmethod
    def build(
        keys: Array,
        path: Path,
        threads: int,
        work: Path,
        factory: str,
        ours: bool = False,
        k_factors: tuple[float, ...] = (),
    ) -> dict[str, float]:
        """Trains on at least 64 points a list and adds everything."""
        import faiss

        faiss.omp_set_num_threads(threads)
        if ours:
            from list_reader import Lists

            centroids, kmeans_seconds = Lists(work / "knnlm").centroids, 0.0
        else:
            nlist = int(factory.split("IVF")[1].split(",")[0])
            centroids, kmeans_seconds = faiss_centroids(keys, nlist, work, threads)
        index = faiss.index_factory(keys.shape[1], factory.replace("{n}", str(len(centroids))))
        sample = training_sample(keys, min(len(centroids), 4096))
        started = time.perf_counter()
        inner = faiss.downcast_index(index.base_index if isinstance(index, faiss.IndexRefine) else index)
        points = np.ascontiguousarray(centroids, dtype=np.float32)
        if isinstance(inner, faiss.IndexPreTransform):
            transform = inner.chain.at(0)
            if not transform.is_trained:
                transform.train(sample)
            points = transform.apply(points)
            inner = faiss.downcast_index(inner.index)
        inner.quantizer.add(points)
        inner.quantizer.is_trained = True
        index.train(sample)
        trained = time.perf_counter()
        for at in range(0, len(keys), BATCH):
            index.add(np.asarray(keys[at : at + BATCH], np.float32))
        done = time.perf_counter()
        faiss.write_index(index, str(path))
        train = trained - started + kmeans_seconds
        return {"train_seconds": train, "add_seconds": done - trained, "train_and_add_seconds": done - trained + train}

    def settings(self, k: int) -> Iterator[dict[str, Any]]:
        for k_factor in self.k_factors or (None,):
            for nprobe in NPROBE:
                if nprobe <= self.ivf.nlist:
                    yield {"nprobe": nprobe} | ({"k_factor": k_factor} if k_factor else {})

    def search(self, queries: Array, k: int, threads: int, nprobe: int = 1, k_factor: float | None = None) -> Found:
        self.faiss.omp_set_num_threads(threads)
        self.ivf.nprobe = nprobe
        if self.refine is not None and k_factor is not None:
            self.refine.k_factor = k_factor
        distances, ids = self.index.search(queries, k)
        return distances, ids


# -- graphs and ScaNN ---------------------------------------------------------------------------------------------


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

        started = time.perf_counter()
        index = hnswlib.Index(space="l2", dim=keys.shape[1])
        index.init_index(max_elements=len(keys), M=m, ef_construction=200, random_seed=1)
        index.set_num_threads(threads)
        for at in range(0, len(keys), BATCH):
            index.add_items(np.asarray(keys[at : at + BATCH], np.float32), np.arange(at, min(at + BATCH, len(keys))))
        seconds = time.perf_counter() - started
        index.save_index(str(path))
        path.with_suffix(".json").write_text(json.dumps({"n": len(keys), "d": keys.shape[1]}))
        return {"train_and_add_seconds": seconds}

    def settings(self, k: int) -> Iterator[dict[str, Any]]:
        for ef in (16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096):
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

        started = time.perf_counter()
        index = Index(ndim=keys.shape[1], metric="l2sq", dtype=dtype, connectivity=16, expansion_add=200)
        for at in range(0, len(keys), BATCH):
            part = np.asarray(keys[at : at + BATCH], np.float32)
            index.add(np.arange(at, at + len(part)), part, threads=threads)
        seconds = time.perf_counter() - started
        index.save(str(path))
        return {"train_and_add_seconds": seconds}

    def settings(self, k: int) -> Iterator[dict[str, Any]]:
        for ef in (16, 64, 128, 256, 512, 1024, 2048, 4096):
            if ef >= k:
                yield {"ef": ef}

    def search(self, queries: Array, k: int, threads: int, ef: int = 64) -> Found:
        self.index.expansion_search = ef
        found = self.index.search(queries, k, threads=threads)
        keys, distances = np.atleast_2d(found.keys), np.atleast_2d(found.distances)
        return distances, keys.astype(np.int64)


class Scann:
    """ScaNN: a tree, anisotropic hashing of two dimensions a block, exact reordering."""

    def __init__(self, path: Path) -> None:
        import scann

        self.index = scann.scann_ops_pybind.load_searcher(str(path))
        self.n = json.loads((path / "about.json").read_text())["n"]
        self.bytes_per_key = sum(f.stat().st_size for f in path.iterdir()) / self.n

    @staticmethod
    def build(keys: Array, path: Path, threads: int) -> dict[str, float]:
        import scann

        n = len(keys)
        leaves = int(2 * np.sqrt(n))
        started = time.perf_counter()
        builder = scann.scann_ops_pybind.builder(np.asarray(keys, np.float32), 1024, "squared_l2")
        index = (
            builder.tree(num_leaves=leaves, num_leaves_to_search=64, training_sample_size=min(n, 64 * leaves))
            .score_ah(2)
            .reorder(2048)
            .set_n_training_threads(threads)
            .build()
        )
        seconds = time.perf_counter() - started
        path.mkdir()
        index.serialize(str(path))
        (path / "about.json").write_text(json.dumps({"n": n}))
        return {"train_and_add_seconds": seconds}

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


FAMILIES: dict[str, Any] = {
    "knnlm": Knnlm,
    "faiss": Faiss,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "scann": Scann,
}


# -- building in a process of its own -----------------------------------------------------------------------------


def place(spec: Spec, work: Path) -> Path:
    """Where a built system lies."""
    return work / "".join(c if c.isalnum() or c in "=-" else "-" for c in spec.name)


def build(spec: Spec, keys: Path, entries: int, work: Path, threads: int) -> dict[str, float]:
    """Builds a system unless it is there; its seconds and its peak of private memory."""
    path = place(spec, work)
    done = work / f"{path.name}.build.json"
    if not done.is_file():
        request = {"spec": spec.__dict__, "keys": str(keys), "entries": entries, "work": str(work), "threads": threads}
        command = [sys.executable, __file__, json.dumps(request)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{spec.name}: {result.stderr.strip().splitlines()[-1:]}")
        done.write_text(result.stdout.strip().splitlines()[-1])
    facts: dict[str, float] = json.loads(done.read_text())
    return facts


def load(spec: Spec, work: Path) -> System:
    """Opens a built system."""
    options = {n: v for n, v in spec.options.items() if n in ("k_factors", "m", "dtype")}
    loaded: System = FAMILIES[spec.family](place(spec, work), **options)
    return loaded


def private_bytes() -> int:
    """Anonymous memory of this process: files that are only mapped do not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def watch(stop: threading.Event, peak: list[int]) -> None:
    """Records the peak of private memory until it is stopped."""
    while not stop.wait(0.05):
        peak[0] = max(peak[0], private_bytes())


def build_here(request: dict[str, Any]) -> dict[str, float]:
    """The body of the building process."""
    spec = Spec(**request["spec"])
    keys = engine_sets.load(Path(request["keys"]), request["entries"]).keys
    work = Path(request["work"])
    path = place(spec, work)
    options = dict(spec.options)
    if spec.family == "faiss":
        options["work"] = work
    peak, stop = [private_bytes()], threading.Event()
    before = peak[0]
    thread = threading.Thread(target=watch, args=(stop, peak), daemon=True)
    thread.start()
    make: Callable[..., dict[str, float]] = FAMILIES[spec.family].build
    facts = make(keys, path, request["threads"], **options)
    stop.set()
    thread.join()
    return facts | {"peak_private_bytes": peak[0] - before}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("request", help="JSON, as `build` writes it")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    print(json.dumps(build_here(json.loads(parser.parse_args().request))))
