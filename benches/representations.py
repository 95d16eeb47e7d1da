"""Which of the model's vectors makes the best key? Six representations x two layers (Khandelwal et al. 2020, table 5).

    python benches/representations.py --model MODEL --corpus wikitext2 --work WORK

One forward pass over --store-tokens tokens of training text fills all twelve stores, and one pass over the evaluated
documents captures all twelve queries, so that rows differ in the key alone. Search is exact (--quantised: through the
index), so that rows do not differ by how well a representation survives the codes. Lambda, temperature and k of each
row are tuned on validation documents; the perplexities are of test documents.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import columns
import corpora
import language_model
import numpy as np
import tables

from knnlm.bootstrap import paired_bootstrap
from knnlm.capture import REPRESENTATIONS
from knnlm.datastore import Datastore
from knnlm.mixture import mix_log_p
from knnlm.tune import Cached, tune

LAYERS = (-1, -2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the twelve stores and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--corpus", required=True, help="a name of corpora.py")
    parser.add_argument("--data", type=Path, help="folder of the corpora, if not the default of corpora.py")
    parser.add_argument("--work", type=Path, required=True, help="folder for stores and queries")
    parser.add_argument("--out", type=Path, default=tables.ROOT / "benches" / "record")
    parser.add_argument("--store-tokens", type=int, default=500_000)
    parser.add_argument("--tuning-tokens", type=int, default=8_000)
    parser.add_argument("--test-tokens", type=int, default=8_000)
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--quantised", action="store_true", help="search the index instead of all keys")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    corpus = corpora.load(args.corpus, args.data) if args.data else corpora.load(args.corpus)
    captures = [(representation, layer) for layer in LAYERS for representation in REPRESENTATIONS]
    lm = language_model.LanguageModel(args.model)
    chosen = {
        name: lm.encode([documents[i] for i in columns.mixed_order(len(documents), args.seed)], tokens)
        for name, documents, tokens in (
            ("train", corpus.train, args.store_tokens),
            ("valid", corpus.valid, args.tuning_tokens),
            ("test", corpus.test, args.test_tokens),
        )
    }
    place = args.work / f"representations-{args.corpus}-{columns.digest(lm.identity(), args.store_tokens, args.seed)}"
    stores = fill(lm, chosen["train"], captures, place, args.seed if args.quantised else None)
    splits = {
        name: lm.score_all(chosen[name], captures, place / name) for name in ("valid", "test")
    }  # {(representation, layer): Split}
    rows = []
    for capture in captures:
        valid, test = splits["valid"][capture], splits["test"][capture]
        rows.append(row(stores[capture], valid, test, capture, args))
        print(f"[{time.strftime('%H:%M:%S')}] {rows[-1]['representation']}, layer {rows[-1]['layer']}: "
              f"{rows[-1]['perplexity']:.2f}", file=sys.stderr, flush=True)

    split = splits["test"][captures[0]]
    record = tables.header() | {
        "model": lm.describe(),
        "corpus": args.corpus,
        "store_tokens": sum(len(d.tokens) for d in chosen["train"]),
        "tuning_tokens": len(splits["valid"][captures[0]]),
        "test_tokens": len(split),
        "lm_perplexity": float(np.exp(-split.log_p_lm.mean())),
        "search": "quantised" if args.quantised else "exact",
        "rows": rows,
    }
    text = (
        f"Model: {lm.describe()['text']}, perplexity without a store {record['lm_perplexity']:.2f} on {len(split):,} test "
        f"tokens ({len(split.names)} documents). Store: {record['store_tokens']:,} training tokens, {record['search']} "
        f"search, k up to {args.k}; lambda, temperature and k tuned on {record['tuning_tokens']:,} validation tokens. "
        "Intervals: ratio to the LM, 10,000 paired bootstrap samples of documents.\n"
    )
    path = tables.write(
        args.out, f"representations-{args.corpus}", f"Key representations: {args.corpus}", record, [table(rows), text]
    )
    print(path.read_text())
    return 0


def fill(lm: Any, train: Any, captures: Any, place: Path, seed: int | None) -> dict[Any, Datastore]:
    """All stores from one forward pass; built if a seed is given. Stores of a finished run are opened."""
    paths = {c: place / f"{c[0]}{c[1]}" for c in captures}
    done = place / f"stores-{'raw' if seed is None else 'built'}.json"
    if not done.exists():
        if not (place / "stores-raw.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            lm.dump_all(train, {c: paths[c] for c in captures})
            (place / "stores-raw.json").write_text("{}")
        if seed is not None:
            for path in paths.values():
                with Datastore.open(path) as store:
                    store.build(seed=seed)
        done.write_text(json.dumps({"entries": sum(len(d.tokens) for d in train)}))
    return {c: Datastore.open(path) for c, path in paths.items()}


def row(store: Datastore, valid: Any, test: Any, capture: tuple[str, int], args: Any) -> dict[str, Any]:
    """Tunes and scores one representation."""
    values = store.values(0, len(store))
    options = {} if args.quantised else {"exact": True}
    name = f"{'quantised' if args.quantised else 'exact'}-{capture[0]}{capture[1]}"
    found = [columns.neighbours(store, split, args.k, name, values, **options) for split in (valid, test)]
    tuned = tune(Cached(valid.log_p_lm, np.asarray(found[0].distances), np.asarray(found[0].match), found[0].metric))
    knn = columns.log_p_knn(found[1].distances, found[1].match, tuned.temperature, tuned.k, found[1].metric)
    mixed = mix_log_p(np.stack([test.log_p_lm, knn]), [1 - float(tuned.lambda_), float(tuned.lambda_)])
    interval = paired_bootstrap(test.sums(test.log_p_lm), test.sums(mixed), test.document_tokens)
    return {
        "representation": capture[0],
        "layer": capture[1],
        "perplexity": interval.perplexity_b,
        "ratio_interval": [interval.ratio_low, interval.ratio_high],
        "validation_perplexity": float(tuned.perplexity),
        "lambda": float(tuned.lambda_),
        "temperature": float(tuned.temperature),
        "k": int(tuned.k),
        "target_found": float(found[1].match.any(axis=1).mean()),
        "search_seconds": found[1].seconds,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = ("key", "layer", "perplexity", "interval of the ratio", "lambda", "T", "k", "target among the neighbours")
    return tables.markdown(
        head,
        [
            (
                r["representation"],
                {-1: "last", -2: "second last"}[r["layer"]],
                f"{r['perplexity']:.2f}",
                f"{r['ratio_interval'][0]:.3f} to {r['ratio_interval'][1]:.3f}",
                f"{r['lambda']:.2f}",
                f"{r['temperature']:.3g}",
                r["k"],
                f"{100 * r['target_found']:.1f} %",
            )
            for r in rows
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
