"""Our search beside FAISS, hnswlib, usearch and ScaNN on the same keys: recall against queries a second, on one page.

    python benches/engine.py --set SETS/wikitext2 --work WORK

Three phases, each of which keeps what it found in WORK: `build` makes every system once (each in a process of its own),
`sweep` takes every setting once (quality against exact search, processor time of one thread, one system in memory at a
time), `turns` times the settings near the recall goals several rounds in turn (medians), on one and two threads pinned
to the last cores, for single queries and batches. Writes CSV, a Markdown table and plots.
`--only` and `--nlists` make it smaller, `--again` builds ours anew, `--free` deletes what a sweep shows to be beaten.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import engine_peers
import engine_quality
import engine_report
import engine_sets
import engine_sweep
import engine_turns
import numpy as np
import tables
from columns import log
from engine_exact import exact
from engine_peers import Spec
from engine_points import BUILD_PEER, Point, way, worth_repeating

SWEPT = 250  # queries of the coarse pass
MEASURED = 500  # queries that the recall of the tables is measured on
TUNING = 2000


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder of a key set (engine_sets.py)")
    parser.add_argument("--work", type=Path, required=True, help="what is built and measured is kept here")
    parser.add_argument("--out", type=Path, default=tables.ROOT / "benches" / "record")
    parser.add_argument("--phases", nargs="*", choices=("build", "sweep", "turns"), default=["build", "sweep", "turns"])
    parser.add_argument("--entries", type=int, help="use only the first keys")
    parser.add_argument("--nlists", type=int, nargs="*", default=[1024, 4096, 16384])
    parser.add_argument("--only", help="regular expression of peers' names")
    parser.add_argument("--present", action="store_true", help="only peers that are in the work folder already")
    parser.add_argument("--again", action="store_true", help="build and sweep ours, and peers on our lists, anew")
    parser.add_argument("--free", action="store_true", help="delete indexes that are beaten within their row")
    parser.add_argument("--k", type=int, nargs="*", default=[8, 64, 1024])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 256, 4096])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--queries", type=int, default=MEASURED, help="that the quality of timed settings is measured on"
    )
    parser.add_argument("--memory", type=float, default=8.0, help="GB of indexes that may be loaded at once")
    parser.add_argument("--minutes", type=float, default=25.0, help="of the timed rounds")
    return parser.parse_args(arguments)


def truth(a: argparse.Namespace, key_set: engine_sets.KeySet, work: Path) -> engine_quality.Truth:
    """Exact answers for all measured queries, lambda, T and k tuned on the others."""
    largest = max(a.k)
    rows = np.arange(key_set.half, len(key_set.queries))
    log(f"exact neighbors of {len(rows):,} queries among {len(key_set.keys):,} keys")
    tuning = exact(key_set, key_set.queries[: min(key_set.half, TUNING)], largest, work)
    return engine_quality.truth(key_set, exact(key_set, key_set.queries[rows], largest, work), tuning, rows)


def default_search(spec: Spec, work: Path, t: engine_quality.Truth, keys: Any, threads: int) -> dict[str, float]:
    """Quality of ours as it comes, on all measured queries."""
    system = engine_peers.load(spec, work)
    k = t.ids.shape[1]
    quality = engine_quality.judge(t, keys, system.search(t.queries, k, threads), k)
    return quality | {"queries": len(t.queries), "exact": t.perplexity}


def out_of_domain(
    specs: Sequence[Spec], work: Path, key_set: engine_sets.KeySet, t: engine_quality.Truth, threads: int
) -> list[dict[str, Any]]:
    """What ours finds of what is asked for, k by k, for queries of another corpus, if the set has some."""
    if key_set.out_of_domain is None:
        return []
    found = exact(key_set, key_set.out_of_domain, t.ids.shape[1], work)
    strange = engine_quality.Truth(key_set.out_of_domain, *found, t.temperature, None, None, None)
    rows = []
    for spec in specs:
        system = engine_peers.load(spec, work)
        for k in sorted({8, 64, t.ids.shape[1]}):
            for setting in (s for s in system.settings(k) if "recall" in s):
                answer = system.search(strange.queries, k, threads, **setting)
                quality = engine_quality.judge(strange, key_set.keys, answer, k)
                rows.append({"system": spec.name, "k": k, "asked": setting["recall"], "recall": quality["recall"]})
    return rows


def swept(
    a: argparse.Namespace, specs: Sequence[Spec], work: Path, t: engine_quality.Truth, keys: Any
) -> tuple[list[Point], dict[str, Any]]:
    """Points and facts of all systems that are built; one is loaded at a time."""
    points, facts = [], {}
    part = t.part(min(SWEPT, a.queries))
    engine_turns.pin(1)
    for spec in specs:
        mine, facts[spec.name] = engine_sweep.cached(spec, work, part, keys, a.k)
        points += mine
    engine_turns.pin(len(engine_turns.CORES))
    return points, facts


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison of one key set."""
    a = parse(arguments)
    key_set = engine_sets.load(a.set, a.entries)
    n, d = key_set.keys.shape
    work = a.work / f"{key_set.name}-{n}"
    work.mkdir(parents=True, exist_ok=True)
    specs = engine_peers.specs(d, tuple(a.nlists), n)
    specs = [s for s in specs if s.family == "knnlm" or not a.only or re.search(a.only, s.name)]
    if a.present:
        kept = {s.name for s in specs if engine_peers.beside(s, work, "build").is_file()}
        specs = [s for s in specs if s.row in ("ours", "same lists") or s.name in kept]
    t = truth(a, key_set, work)

    built: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    for spec in specs:
        done = engine_peers.beside(spec, work, "build").is_file()
        if a.again and spec.row in ("ours", "same lists"):
            engine_peers.remove(spec, work)
            done = False
        if not done and "build" not in a.phases:
            continue
        try:
            if not done:
                log(f"building {spec.name}")
            built[spec.name] = engine_peers.build(spec, a.set, n, work, max(a.threads))
        except (RuntimeError, ImportError) as error:
            failed[spec.name] = str(error)
            log(f"left out: {spec.name}: {error}")
    usable = [s for s in specs if s.name in built]
    if not {"sweep", "turns"} & set(a.phases):
        return 0

    points, facts = swept(a, [s for s in usable if s.name != BUILD_PEER], work, t, key_set.keys)
    chosen = [p for k in a.k for p in worth_repeating(points, k)]
    names = {p.system for p in chosen}
    if a.free:
        for spec in usable:
            if spec.name not in names and engine_peers.size(spec, work):
                log(f"beaten within its row, deleted: {spec.name}")
                engine_peers.remove(spec, work, cost=False)
    if "turns" not in a.phases:
        return 0

    measured = t.part(a.queries)
    queries = key_set.queries[key_set.half :]
    ways = [(batch, threads) for threads in a.threads for batch in a.batches]
    by_name = {s.name: s for s in usable}
    engine_turns.take(
        chosen,
        by_name,
        work,
        measured,
        key_set.keys,
        queries,
        ways,
        repeats=a.repeats,
        room=int(a.memory * 1e9),
        minutes=a.minutes,
    )
    more = {"default": default_search(by_name["knnlm"], work, t, key_set.keys, max(a.threads))}
    ours = [s for s in usable if s.family == "knnlm"]
    more |= {"out_of_domain": out_of_domain(ours, work, key_set, t, max(a.threads))}
    about = {
        "keys": n,
        "dim": d,
        "queries": len(measured.queries),
        "swept": min(SWEPT, a.queries),
        "repeats": a.repeats,
        "smallest": engine_turns.SMALLEST,
    }
    more |= {"about": about, "built": built, "facts": facts, "failed": failed}
    path = engine_report.write(a.out, key_set.name, measured, points, a.k, [way(*w) for w in ways], more)
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
