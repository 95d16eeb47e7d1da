"""Which of the model's vectors makes the best key? Six representations x two layers (Khandelwal et al. 2020, table 5).

    python benches/representations.py --model MODEL --corpus wikitext2 --data DATA --work WORK

One forward pass over --store-tokens tokens of training text fills all twelve stores, and one pass over the evaluated
documents captures all twelve queries, so that rows differ in the key alone. Search is exact (--quantised: through the
index), so that rows do not differ by how well a representation survives the codes. Lambda, temperature and k of each
row are tuned on validation documents; the perplexities are of test documents.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import columns
import corpora
import language_model
import numpy as np
import render.representations as render
import tables
from columns import Capture, Split, interpolated, log

from knnlm.evaluate.bootstrap import paired_bootstrap
from knnlm.evaluate.tune import tune
from knnlm.model.capture import REPRESENTATIONS
from knnlm.store.datastore import Datastore

LAYERS = (-1, -2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the twelve stores and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--corpus", required=True, choices=corpora.CORPORA)
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--work", type=Path, required=True, help="folder for stores and queries")
    parser.add_argument("--out", type=Path, default=tables.ROOT / "benches" / "record")
    parser.add_argument("--store-tokens", type=int, default=500_000)
    parser.add_argument("--tuning-tokens", type=int, default=8_000)
    parser.add_argument("--test-tokens", type=int, default=8_000)
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--quantised", action="store_true", help="search the index instead of all keys")
    parser.add_argument("--bf16", action="store_true", help="run the model under bf16 autocast")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    corpus = corpora.CORPORA[args.corpus](args.data)
    captures = [(representation, layer) for layer in LAYERS for representation in REPRESENTATIONS]
    lm = language_model.LanguageModel(args.model, bf16=args.bf16)
    train, valid, test = (
        lm.encode([documents[i] for i in columns.mixed_order(len(documents), args.seed)], tokens)
        for documents, tokens in (
            (corpus.train, args.store_tokens),
            (corpus.valid, args.tuning_tokens),
            (corpus.test, args.test_tokens),
        )
    )
    place = args.work / f"representations-{args.corpus}-{columns.digest(lm.identity(), args.store_tokens, args.seed)}"
    log(f"one pass over {sum(len(d.tokens) for d in train):,} tokens into {len(captures)} stores")
    paths = {c: place / f"{c[0]}{c[1]}" for c in captures}
    stores = lm.stores(train, paths, args.seed if args.quantised else None)
    splits = [lm.score_all(documents, captures, place) for documents in (valid, test)]
    rows = []
    for capture in captures:
        rows.append(row(stores[capture], splits[0][capture], splits[1][capture], capture, args))
        log(f"{rows[-1]['representation']}, layer {rows[-1]['layer']}: {rows[-1]['perplexity']:.2f}")

    split = splits[1][captures[0]]
    record = tables.header() | {
        "model": lm.about(),
        "corpus": args.corpus,
        "store_tokens": sum(len(d.tokens) for d in train),
        "tuning_tokens": len(splits[0][captures[0]]),
        "test_tokens": len(split),
        "lm_perplexity": float(np.exp(-split.log_p_lm.mean())),
        "search": "quantised" if args.quantised else "exact",
        "rows": rows,
        "machine": tables.machine(),
    }
    name = f"representations-{args.corpus}"
    path = tables.write(args.out, name, render.title(record), record, render.sections(record))
    print(path.read_text())
    return 0


def row(store: Datastore, valid: Split, test: Split, capture: Capture, args: argparse.Namespace) -> dict[str, Any]:
    """Tunes and scores one representation."""
    values = store.values(0, len(store))
    options = {} if args.quantised else {"exact": True}
    name = f"{'quantised' if args.quantised else 'exact'}-{capture[0]}{capture[1]}"
    found = [columns.neighbors(store, split, args.k, name, values, **options) for split in (valid, test)]
    tuned = tune(found[0])
    mixed = np.asarray(
        interpolated(test.log_p_lm, found[1].log_p_knn(tuned.temperature, tuned.k), tuned.lambda_), np.float64
    )
    interval = paired_bootstrap(test.sums(test.log_p_lm), test.sums(mixed), test.document_tokens)
    return {
        "representation": capture[0],
        "layer": capture[1],
        "perplexity": interval.perplexity_b,
        "documents": len(test.document_tokens),
        "ratio": interval.ratio,
        "ratio_interval": [interval.ratio_low, interval.ratio_high],
        "validation_perplexity": tuned.perplexity,
        "lambda": tuned.lambda_,
        "temperature": tuned.temperature,
        "k": tuned.k,
        "target_found": float(np.asarray(found[1].match).any(axis=1).mean()),
        "search_seconds": found[1].search_seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
