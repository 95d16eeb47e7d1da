"""What do codes alone and growth by appending cost? Perplexity, bytes, seconds and search time on real text.

    python benches/store_quality.py --model MODEL --corpus wikitext2 --data DATA --work WORK --bf16

The store with raw keys and the scored splits are those of benches/perplexity.py, made if WORK does not have them.
lambda, temperature and k are tuned once, on validation with exact search over the raw keys; every row uses them. The
model is run for neither side of a comparison: keys are copied from the store with raw keys. Stores without raw keys
are built from all of the text (presets default and small), and from its first 80 % with twenty appends of 1 % each.
They stay in WORK with what was measured, so that a run that was stopped goes on; remove WORK/…/quality to begin again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import columns
import corpora
import language_model
import numpy as np
import render.store_quality as render
import tables
from columns import Floats, Split, interpolated, log

from knnlm.evaluate.tune import Tuned, tune
from knnlm.model.key_spec import KeySpec
from knnlm.probability.knn import log_p_of_matches
from knnlm.store.datastore import Datastore

APPENDS = 20
GOALS = (0.8, 0.9, 0.95)
ROUNDS = 15  # of the timing of a search, the stores by turns; the fastest of each counts
ROWS = 1 << 16  # entries copied at a time


def mixture(store: Datastore, split: Split, tuned: Tuned, **options: Any) -> Floats:
    """log p of every target at the tuned settings, (n,)."""
    log_p = np.empty(len(split))
    for start in range(0, len(split), columns.BLOCK):
        rows = slice(start, min(start + columns.BLOCK, len(split)))
        found = store.search(np.ascontiguousarray(split.keys[rows]), tuned.k, **options)
        match = (found.values == split.tokens[rows, None]) & found.found
        log_p[rows] = log_p_of_matches(found.distances, match, tuned.temperature, store.metric, [tuned.k], np.float32)[
            0
        ]
    return np.asarray(interpolated(split.log_p_lm, log_p, tuned.lambda_), np.float64)


def perplexity(log_p: Floats) -> float:
    """exp of the mean negative log-likelihood."""
    return float(np.exp(-log_p.mean()))


def batches(raw: Datastore, start: int, stop: int) -> Iterator[tuple[Any, Any, str | None]]:
    """Keys, values and document name of the documents [start, stop), in corpus order."""
    for document in raw.documents()[start:stop]:
        for first in range(document.start, document.stop, ROWS):
            last = min(first + ROWS, document.stop)
            yield raw.keys(first, last).astype(np.float16), raw.values(first, last), document.name


class Clock:
    """Seconds by the wall and of all cores together."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds since it was made."""
        return {"seconds": time.perf_counter() - self._wall, "cpu_seconds": time.process_time() - self._cpu}


def added(store: Datastore, raw: Datastore, start: int, stop: int, **build: Any) -> dict[str, float]:
    """Adds documents of `raw` and indexes them; what it took, reading them from `raw` left out."""
    spent = {"seconds": 0.0, "cpu_seconds": 0.0}

    def note(clock: Clock) -> None:
        for name, value in clock.read().items():
            spent[name] += value

    for keys, values, name in batches(raw, start, stop):
        clock = Clock()
        store.add(keys, values, document=name)
        note(clock)
    clock = Clock()
    store.build(**build)
    note(clock)
    return spent


class Kept:
    """Results by name, in a JSON file that is rewritten with each."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """What was kept, else what `make` returns."""
        if name not in self._results:
            self._results[name] = make()
            self._path.write_text(json.dumps(self._results, indent=1))
        return self._results[name]


def made(raw: Datastore, path: Path, stop: int, seed: int, **build: Any) -> dict[str, float]:
    """Makes a store of the first documents of `raw` without raw keys; what it took."""
    shutil.rmtree(path, ignore_errors=True)
    with Datastore.create(path, dim=raw.dim, metric=raw.metric) as store:
        spent = added(store, raw, 0, stop, seed=seed, **build)
        log(f"{path.name}: {len(store):,} entries in {spent['seconds']:.0f} s")
    return spent


def grown(raw: Datastore, path: Path, seed: int) -> list[dict[str, float]]:
    """Makes a store of the first 80 % of the documents and appends the rest in twenty parts; what each append took."""
    documents = len(raw.documents())
    cuts = [round(documents * (0.8 + 0.01 * i)) for i in range(APPENDS)] + [documents]
    made(raw, path, cuts[0], seed)
    appends = []
    with Datastore.open(path) as store:
        for start, stop in itertools.pairwise(cuts):
            before = len(store)
            spent = added(store, raw, start, stop)
            appends.append({"entries": len(store) - before, "of": len(store), **spent})
    return appends


def recall(store: Datastore, queries: Any, exact: Any, nprobe: int) -> float:
    """Recall@k against the exact ids (q, k)."""
    found = store.search(queries, exact.shape[1], nprobe=nprobe).ids
    return sum(len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True)) / exact.size


def times(stores: dict[str, Datastore], queries: Any, exact: Any, goal: float) -> dict[str, dict[str, float]] | None:
    """Milliseconds of one core a query with the least nprobe that reaches a recall; None if it is not reached."""
    nprobes: dict[str, int] = {}
    for name, store in stores.items():
        low, high = 1, int(store.info()["nlist"])
        if recall(store, queries, exact, high) < goal:
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if recall(store, queries, exact, middle) >= goal else (middle + 1, high)
        nprobes[name] = low
    seconds: dict[str, list[float]] = {name: [] for name in stores}
    for _ in range(ROUNDS):
        for name, store in stores.items():
            started = time.process_time()
            store.search(queries, exact.shape[1], nprobe=nprobes[name], threads=1)
            seconds[name].append(time.process_time() - started)
    return {
        name: {
            "nprobe": nprobes[name],
            "recall": recall(store, queries, exact, nprobes[name]),
            "milliseconds": 1000 * min(seconds[name]) / len(queries),
            "median_milliseconds": 1000 * float(np.median(seconds[name])) / len(queries),
        }
        for name, store in stores.items()
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--corpus", required=True, choices=corpora.CORPORA)
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--work", type=Path, required=True, help="folder for stores and scored splits")
    parser.add_argument("--out", type=Path, default=tables.ROOT / "benches" / "record")
    parser.add_argument("--bf16", action="store_true", help="run the model under bf16 autocast")
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--tuning-tokens", type=int, default=20_000, help="validation tokens, in whole documents")
    parser.add_argument("--limit", type=int, default=12_000, help="tokens of test and validation for exact search")
    parser.add_argument("--queries", type=int, default=400, help="test keys that search times are taken with")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds, appends, scores, and writes the record."""
    args = parse(arguments)
    corpus = corpora.CORPORA[args.corpus](args.data)
    lm = language_model.LanguageModel(args.model, KeySpec(), args.bf16)
    place = args.work / f"{args.corpus}-{columns.digest(lm.identity())}"
    valid, test = (
        lm.score(lm.encode([documents[i] for i in columns.mixed_order(len(documents), args.seed)], tokens), place)
        for documents, tokens in ((corpus.valid, args.tuning_tokens), (corpus.test, None))
    )
    raw, _ = lm.store(lm.encode(corpus.train), place / "store", args.seed)
    part_valid, part = (s.head(columns.documents_within(s.document_tokens, args.limit)) for s in (valid, test))
    values = raw.values(0, len(raw))
    found = [columns.neighbors(raw, s, args.k, "exact", values, exact=True) for s in (part_valid, part)]
    tuned = tune(found[0])
    log(f"lambda {tuned.lambda_:.3f}, T {tuned.temperature:.3g}, k {tuned.k}")
    exact_log_p = np.asarray(interpolated(part.log_p_lm, found[1].log_p_knn(tuned.temperature, tuned.k), tuned.lambda_))
    kept = Kept(place / "quality" / "results.json")
    rows: list[dict[str, Any]] = []

    def row(name: str, path: Path, build: dict[str, float], **options: Any) -> None:
        def measured() -> dict[str, Any]:
            with Datastore.open(path) as store:
                log_p, info = mixture(store, test, tuned, **options), store.info()
            return {
                "store": name,
                "bytes_per_entry": info["bytes"] / info["n"],
                "part_perplexity": perplexity(log_p[: len(part)]),
                "perplexity": perplexity(log_p),
            }

        rows.append({**kept.get(name, measured), **build})
        log(f"{rows[-1]}")

    bytes_raw = raw.info()["bytes"] / len(raw)
    rows.append({"store": "raw keys, exact", "bytes_per_entry": bytes_raw, "part_perplexity": perplexity(exact_log_p)})
    deep = {"nprobe": 128, "rerank": "keys", "depth": 2 * args.k}
    row("raw keys, 128 lists, re-ranked with them", Path(raw.path), {}, **deep)
    queries = np.ascontiguousarray(test.keys[:: max(1, len(test) // args.queries)][: args.queries])
    exact = raw.search(queries, args.k, exact=True).ids

    documents, folder = len(raw.documents()), place / "quality"
    small = kept.get("build small", lambda: made(raw, folder / "small", documents, args.seed, code="small"))
    rebuild = kept.get("build default", lambda: made(raw, folder / "default", documents, args.seed))
    appends = kept.get("appends", lambda: grown(raw, folder / "grown", args.seed))
    row("codes only, small", folder / "small", small)
    row("codes only, default", folder / "default", rebuild)
    row("codes only, default, 80 % and 20 appends of 1 %", folder / "grown", {})
    compared = {"rebuilt": Datastore.open(folder / "default"), "grown": Datastore.open(folder / "grown")}
    searches = {f"{goal:.2f}": times(compared, queries, exact, goal) for goal in GOALS}
    info = compared["grown"].info()

    record = tables.header() | {
        "corpus": args.corpus,
        "model": lm.about()["text"],
        "entries": len(raw),
        "lambda": tuned.lambda_,
        "temperature": tuned.temperature,
        "k": tuned.k,
        "lm_perplexity": [perplexity(part.log_p_lm), perplexity(test.log_p_lm)],
        "tokens": [len(part), len(test)],
        "rows": rows,
        "rebuild": rebuild,
        "appends": appends,
        "searches": searches,
        "queries": len(queries),
        "rounds": ROUNDS,
        "grown": {name: info[name] for name in ("lists_segments", "drift", "retrain_advised", "generation")},
        "machine": tables.machine(),
    }
    name = f"store-quality-{args.corpus}"
    path = tables.write(args.out, name, render.title(record), record, render.sections(record))
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
