"""A FAISS index filled with the entries of growth.py, for larger_than_memory.py to search beside its store.

    python benches/growing_faiss.py --set SETS/wikitext2 --trained WORK/wikitext2-2088628/FAISS-IVF4096-PQ64 --work WORK

The index was trained by engine.py on real keys of the same set; its entries are replaced.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import engine_sets
import faiss
import numpy as np
from columns import log
from growing_keys import Source


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder of a key set (engine_sets.py)")
    parser.add_argument("--trained", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--entries", type=int, default=10**7)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args(arguments)
    key_set = engine_sets.load(a.set)
    source = Source(key_set.keys, key_set.keys.shape[1])
    faiss.omp_set_num_threads(a.threads)
    index = faiss.read_index(str(a.trained))
    index.reset()
    started, seconds = time.perf_counter(), 0.0
    for _, keys in source.batches(a.entries):
        began = time.perf_counter()
        index.add(np.ascontiguousarray(keys))
        seconds += time.perf_counter() - began
    path = a.work / f"{a.trained.name}-{a.entries}"
    faiss.write_index(index, str(path))
    log(f"{index.ntotal:,} entries added in {seconds:.0f} s, {time.perf_counter() - started:.0f} s in all: {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
