"""How long it takes to open a store, tell what is in it and search it for the first time, and what memory that needs.

    python benches/opening.py --work FOLDER --entries 100000 2000000

Makes a built store of each size from random clustered keys (kept in the work folder), then opens it in several fresh
processes and reports medians: milliseconds of `open`, `info` and the first search (k = 1024), and the growth of private
memory while opening. Files are in the page cache; nothing proportional to the number of entries may be read on open.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import render.opening as render
import tables

CHILD = """
import json, sys, time
import numpy as np
from knnlm import Datastore  # import time is not opening time

def private():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

query = np.ones((1, int(sys.argv[2])), np.float32)
before, t0 = private(), time.perf_counter()
store = Datastore.open(sys.argv[1])
t1 = time.perf_counter()
opened = private() - before
store.info()
t2 = time.perf_counter()
store.search(query, k=1024)
t3 = time.perf_counter()
print(json.dumps({"open": t1 - t0, "info": t2 - t1, "search": t3 - t2, "private": opened}))
"""


def make(path: Path, n: int, d: int) -> None:
    """A built store of n clustered keys."""
    import knnlm

    if path.exists():
        return
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(1000, d)).astype(np.float32) * 2
    unfinished = path.with_name(f"{path.name}.partial")
    with knnlm.Datastore.create(unfinished, dim=d, overwrite=True) as store:
        for at in range(0, n, 65_536):
            count = min(65_536, n - at)
            keys = centres[rng.integers(1000, size=count)] + rng.normal(size=(count, d)).astype(np.float32)
            store.add(keys, rng.integers(30_000, size=count, dtype=np.uint32), document=f"part {at}")
        store.build(seed=0)
    unfinished.rename(path)


def measure(path: Path, d: int, repeats: int) -> dict[str, float]:
    """Medians over fresh processes; seconds, and bytes of private memory."""
    runs: list[dict[str, float]] = []
    for _ in range(repeats + 1):
        command = [sys.executable, "-c", CHILD, str(path), str(d)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        runs.append(json.loads(out))
    return {name: statistics.median(run[name] for run in runs[1:]) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=tables.ROOT / "benches" / "record")
    parser.add_argument("--entries", type=int, nargs="*", default=[100_000, 2_000_000])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    a = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for n in a.entries:
        path = a.work / f"opening-{n}-{a.dim}"
        make(path, n, a.dim)
        rows.append({"entries": n} | measure(path, a.dim, a.repeats))
    record = tables.header() | {"dim": a.dim, "rows": rows}
    print(tables.write(a.out, "opening", render.title(record), record, render.sections(record)).read_text())


if __name__ == "__main__":
    main()
