"""The systems of the search benchmark: which there are, in what order they are built, and how one is built and opened.

A system is built once, in a process of its own (`python benches/engine_peers.py REQUEST`, so that its seconds and its
peak of private memory are its own), saved in the work folder, and loaded by the benchmark. Seconds come as wall and as
processor time, for machines that do other work meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import engine_sets
from engine_faiss import Faiss
from engine_graphs import Hnswlib, Scann, Usearch
from engine_ours import Knnlm
from engine_points import BUILD_PEER
from numpy.typing import NDArray

Array = NDArray[Any]
Found = tuple[Array, Array]  # distances (q, k), ids (q, k) with -1 for missing


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

    @property
    def ours(self) -> bool:
        """Whether it depends on our index: it is then built again when ours is."""
        return self.family == "knnlm" or bool(self.options.get("ours"))


def specs(d: int, nlists: tuple[int, ...], n: int) -> list[Spec]:
    """Every system of the protocol that fits d dimensions and n keys, the most important ones first."""
    even = d // 64 * 64  # what 64 sub-quantisers can cut
    half = d // 2  # one 4-bit code for two dimensions, as fast-scan likes it
    ours = [Spec("knnlm", "knnlm", "ours", {"code": None}), Spec("knnlm small", "knnlm", "ours", {"code": "small"})]

    def faiss(row: str, factory: str, k_factors: tuple[float, ...] = ()) -> Spec:
        return Spec(f"FAISS {factory}", "faiss", row, {"factory": factory, "k_factors": k_factors})

    first, middle, last = [], [], []
    # FAISS itself calls fewer than 39 points a list under-trained.
    usable = sorted((nlist for nlist in nlists if nlist * 39 <= n), key=lambda nlist: (abs(nlist - 4096), nlist))
    for nlist in usable:
        ivf = f"IVF{nlist}"
        main = [
            faiss("F1", f"{ivf},PQ64"),
            faiss("F6", f"{ivf},SQ8"),
            faiss("F5", f"RR{d},{ivf},RaBitQfs,Refine(SQ8)", (1, 2, 3, 4)),
        ]
        if nlist != usable[0]:
            last += main[: 3 if nlist > usable[0] else 2]
            continue
        first += main
        middle += [
            faiss("F2", f"OPQ64_{even},{ivf},PQ64"),
            faiss("F4", f"PCAR{d},{ivf},PQ{half}x4fsr,Refine(SQ8)", (1.5, 2, 4)),
            faiss("F5", f"RR{d},{ivf},RaBitQfs"),
            faiss("F6", f"{ivf},SQ4"),
            faiss("F3", f"PCAR{d},{ivf},PQ{half}x4fsr"),
            faiss("F2", f"PCAR{even},{ivf},PQ64"),
            faiss("F6", f"{ivf},SQfp16"),
            faiss("F7", f"{ivf},FlatPanorama8"),
        ]
    rabitq = {"factory": f"RR{d},IVF{{n}},RaBitQfs,Refine(SQ8)", "ours": True, "k_factors": (2, 3, 4)}
    return [
        *ours,
        *first[:2],
        Spec("hnswlib M=24", "hnswlib", "H1", {"m": 24}),
        *first[2:],
        Spec("FAISS SQ8, lists of knnlm", "faiss", "same lists", {"factory": "IVF{n},SQ8", "ours": True}),
        Spec("FAISS RaBitQfs,Refine(SQ8), lists of knnlm", "faiss", "same lists", rabitq),
        *middle[:3],
        Spec(BUILD_PEER, "faiss", "F1", {"factory": "IVF{n},PQ64", "ours": True, "own_lists": True}),
        *last,
        *middle[3:],
        Spec("ScaNN", "scann", "S1", {}),
        Spec("usearch bf16", "usearch", "H1", {"dtype": "bf16"}),
        Spec("hnswlib M=16", "hnswlib", "H1", {"m": 16}),
    ]


FAMILIES: dict[str, Any] = {
    "knnlm": Knnlm,
    "faiss": Faiss,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "scann": Scann,
}


def place(spec: Spec, work: Path) -> Path:
    """Where a built system lies."""
    return work / "".join(c if c.isalnum() or c in "=-" else "-" for c in spec.name)


def beside(spec: Spec, work: Path, what: str) -> Path:
    """Where something about a system is kept: `build` (its cost) or `sweep` (its points)."""
    path = place(spec, work)
    return path.with_name(f"{path.name}.{what}.json")


def size(spec: Spec, work: Path) -> int:
    """Bytes of a built system; 0 if it is not there."""
    path = place(spec, work)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else 0


def remove(spec: Spec, work: Path, cost: bool = True) -> None:
    """Deletes a built system and, with `cost`, what is known about it."""
    path = place(spec, work)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for what in ("build", "sweep") if cost else ():
        beside(spec, work, what).unlink(missing_ok=True)


def build(spec: Spec, keys: Path, entries: int, work: Path, threads: int) -> dict[str, float]:
    """Builds a system unless it is there; its seconds and its peak of private memory."""
    done = beside(spec, work, "build")
    if not done.is_file():
        remove(spec, work)
        request = {"spec": spec.__dict__, "keys": str(keys), "entries": entries, "work": str(work), "threads": threads}
        command = [sys.executable, __file__, json.dumps(request)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{spec.name}: {result.returncode}, {result.stderr.strip().splitlines()[-1:]}")
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
    return facts | {"peak_private_bytes": peak[0] - before, "load_average": os.getloadavg()[0]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("request", help="JSON, as `build` writes it")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    outcome = build_here(json.loads(parser.parse_args().request))
    print(json.dumps(outcome), flush=True)
    os._exit(0)  # indexes that lend each other parts are not taken down in any order
