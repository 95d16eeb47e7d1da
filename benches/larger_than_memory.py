"""Search under a memory limit of a quarter of the store, page cache included, beside FAISS's lists on disk.

    sudo python benches/larger_than_memory.py --store WORK/growth-wikitext2-384 --answers WORK/growth-.../answers.npz
    … --faiss WORK/FAISS-IVF4096-PQ64 --nprobe 32 64

Each system runs in a process of its own inside a memory cgroup (version 1 or 2), which needs root; its files are
dropped from the page cache first, so that every page is read and charged inside. Single queries on one thread: p50 and
p99 of the first pass (cold) and of later ones, major page faults and bytes read from disk. FAISS reads its index with
IO_FLAG_MMAP (OnDiskInvertedLists), without precomputed tables, which would be memory that the limit does not leave.
Without `--answers`, `--set` and `--work` of engine.py give the queries and the exact neighbors.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import render.larger_than_memory as render
import tables
from columns import log

PASSES = 3
SMALLEST = 400 << 20  # bytes: Python and the libraries live under the limit too, and with less the machine only pages
SECONDS = 240  # after which a system under the limit is given up


def files(path: Path) -> list[Path]:
    """The file, or all in the folder."""
    return [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and p.suffix != ".npz"]


def forget(path: Path) -> None:
    """Drops the pages of its files from the cache."""
    for file in files(path):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def disk_bytes() -> int:
    """Read from disk by this process so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


@contextlib.contextmanager
def memory_limit(limit: int) -> Iterator[Callable[[], None] | None]:
    """A cgroup with that limit; gives what puts the calling process into it, None where the system does not let us."""
    name = f"knnlm-bench-{os.getpid()}"
    root, file = Path("/sys/fs/cgroup"), "memory.max"
    if (root / "memory").is_dir():
        root, file = root / "memory", "memory.limit_in_bytes"
    group = root / name
    try:
        group.mkdir()
        (group / file).write_text(str(limit))
    except OSError as error:
        log(f"no memory limit: {error}")
        yield None
        return
    try:
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def ours(request: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    import knnlm

    store = knnlm.Datastore.open(request["path"])
    return lambda queries: store.search(queries, request["k"], threads=1, **request["setting"]).ids


def faiss_on_disk(request: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    import faiss

    faiss.cvar.precomputed_table_max_bytes = 0
    faiss.omp_set_num_threads(1)
    index = faiss.read_index(request["path"], faiss.IO_FLAG_MMAP)
    faiss.extract_index_ivf(index).nprobe = request["setting"]["nprobe"]
    return lambda queries: index.search(queries, request["k"])[1]


def run_here(request: dict[str, Any]) -> dict[str, Any]:
    """The body of the measuring process."""
    answers = np.load(request["answers"])
    queries, ids = answers["queries"][: request["queries"]], answers["ids"][: request["queries"], : request["k"]]
    search = (faiss_on_disk if request["family"] == "faiss" else ours)(request)
    out: dict[str, Any] = {}
    hits = 0
    faults, read = resource.getrusage(resource.RUSAGE_SELF).ru_majflt, disk_bytes()
    spent: list[float] = []
    for number in range(PASSES):
        for query, exact in zip(queries, ids, strict=True):
            started = time.perf_counter()
            found = search(query[None])
            spent.append(time.perf_counter() - started)
            hits += len(np.intersect1d(found, exact)) if number == 0 else 0
        if number == 0:
            out |= {"cold_p50_ms": 1e3 * float(np.median(spent)), "cold_p99_ms": 1e3 * float(np.percentile(spent, 99))}
            spent = []
    done = PASSES * len(queries)
    return out | {
        "p50_ms": 1e3 * float(np.median(spent)),
        "p99_ms": 1e3 * float(np.percentile(spent, 99)),
        "recall": hits / ids.size,
        "major_faults_a_query": (resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults) / done,
        "kB_read_a_query": (disk_bytes() - read) / done / 1e3,
    }


def run(request: dict[str, Any], limit: int) -> dict[str, Any]:
    """One system in a process of its own under the limit; 0 = no limit."""
    forget(Path(request["path"]))
    command = [sys.executable, __file__, "--request", json.dumps(request)]
    with memory_limit(limit) if limit else contextlib.nullcontext() as enter:
        about = {"limited": bool(limit) and enter is not None}
        try:
            result = subprocess.run(command, capture_output=True, text=True, preexec_fn=enter, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return about | {"failed": f"not done after {SECONDS} s"}
    if result.returncode:
        reason = "killed: out of the memory it may use" if result.returncode < 0 else result.stderr.strip()[-200:]
        return about | {"failed": reason}
    facts: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return about | facts


def answers_of(a: argparse.Namespace) -> Path:
    """Queries and exact ids: given, or those of engine.py."""
    if a.answers:
        return Path(a.answers)
    import engine_sets
    from engine_exact import exact

    key_set = engine_sets.load(a.set)
    work = a.work / f"{key_set.name}-{len(key_set.keys)}"
    rows = np.arange(key_set.half, len(key_set.queries))
    queries = key_set.queries[rows]
    ids = exact(key_set, queries, a.k, work)[1]
    some = np.linspace(0, len(rows) - 1, min(a.queries, len(rows))).astype(int)
    path: Path = work / "answers.npz"
    np.savez(path, queries=queries[some], ids=ids[some])
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--request", help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--set", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--faiss", type=Path, nargs="*", default=[])
    parser.add_argument("--nprobe", type=int, nargs="*", default=[16, 32, 64])
    parser.add_argument("--recall", type=float, nargs="*", default=[0.8, 0.9, 0.95])
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--share", type=float, default=0.25, help="of the store that may be in memory")
    parser.add_argument("--out", type=Path, default=tables.ROOT / "benches" / "record")
    parser.add_argument("--name", default="larger-than-memory")
    a = parser.parse_args(arguments)
    if a.request:
        print(json.dumps(run_here(json.loads(a.request))))
        return 0
    answers = answers_of(a)
    size = sum(file.stat().st_size for file in files(a.store))
    limit = int(a.share * size)
    if limit < SMALLEST:
        parser.error(f"--store: expected {SMALLEST / a.share / 1e9:.1f} GB or more, found {size / 1e9:.2f} GB")
    common = {"answers": str(answers), "k": a.k, "queries": a.queries}
    requests = [
        {"family": "knnlm", "path": str(a.store), "setting": {"recall": recall}, **common} for recall in a.recall
    ]
    requests += [
        {"family": "faiss", "path": str(path), "setting": {"nprobe": nprobe}, **common}
        for path in a.faiss
        for nprobe in a.nprobe
    ]
    rows = []
    for request in requests:
        for bound in (limit, 0):
            path = Path(request["path"])
            about = {"system": request["family"], "index": path.name, "setting": request["setting"]}
            about["MB"] = sum(file.stat().st_size for file in files(path)) // 10**6
            rows.append(about | run(request, bound))
            log(json.dumps(rows[-1]))
    about = {"share": a.share, "MB": size // 10**6, "k": a.k, "queries": a.queries}
    record = tables.header() | {"limit": limit, "about": about, "rows": rows}
    print(tables.write(a.out, a.name, render.title(record), record, render.sections(record)).read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
