"""What does a datastore buy on real text? Perplexity of the LM, kNN-LM, cache, n-gram and their mixtures on one corpus.

    python benches/perplexity.py --model MODEL --corpus wikitext2 --data DATA --work WORK
    python benches/perplexity.py --model MODEL --corpus gutenberg --adapt --data DATA --work WORK

The second form is for a MODEL that was trained on other text. Every weight, temperature and k is chosen on validation
documents; test documents are scored once with those. Each row has the 95 % paired bootstrap interval by document
against the LM. Exact search costs n x d multiplications a token, so it has a table of its own for the first --limit
test tokens (whole documents in a fixed random order), tuned on as many validation tokens. Whatever is expensive is kept
in WORK, under names that change with the model, the text and the options.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import columns
import corpora
import language_model
import numpy as np
import render.perplexity as render
import tables
from columns import Floats, Split, interpolated, log

from knnlm.evaluate.bootstrap import paired_bootstrap
from knnlm.evaluate.overlap import overlap
from knnlm.evaluate.tune import tune
from knnlm.lm.retrieved_text import RetrievedText
from knnlm.model.key_spec import KeySpec
from knnlm.probability.continuous_cache import continuous_cache_log_p
from knnlm.probability.mix import mix
from knnlm.probability.ngram import KneserNey
from knnlm.probability.weights import fit_weights

CACHE_SIZES = (500, 2000, 8000)
CACHE_THETAS = tuple(float(x) for x in 2.0 ** np.arange(-10, 2))


@dataclasses.dataclass
class Row:
    """One line of the table: a system, its log-probabilities of the test tokens, the time for them, its settings."""

    name: str
    log_p: Floats
    seconds: float
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Component:
    """One model of a mixture over validation and test; NaN where it does not exist. Seconds are those of the test."""

    name: str
    valid: Floats
    test: Floats
    seconds: float
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def head(self, valid: int, test: int) -> Component:
        """The same for the first tokens of both splits only."""
        share = test / max(1, len(self.test))
        return dataclasses.replace(self, valid=self.valid[:valid], test=self.test[:test], seconds=self.seconds * share)

    def row(self, name: str | None = None) -> Row:
        """This model alone."""
        return Row(name or self.name, self.test, self.seconds, self.settings)


def mixed(name: str, *components: Component) -> Row:
    """A mixture with EM weights from validation."""
    own = {"LM": "lm"}  # the mixture has its own name for it
    fitted = fit_weights({own.get(c.name, c.name): c.valid for c in components}).weights
    log_p = np.asarray(mix({own.get(c.name, c.name): c.test for c in components}, fitted), np.float64)
    weights = {c.name: fitted[own.get(c.name, c.name)] for c in components}
    settings: dict[str, Any] = {"weights": weights} | {c.name: c.settings for c in components if c.settings}
    return Row(name, log_p, sum(c.seconds for c in components), settings)


def knn(valid: RetrievedText, test: RetrievedText) -> Component:
    """p_kNN with lambda, temperature and k tuned on validation; `found`: share of test targets among the neighbors."""
    tuned = tune(valid)
    pair = [cached.log_p_knn(tuned.temperature, tuned.k) for cached in (valid, test)]
    settings = {"lambda": tuned.lambda_, "T": tuned.temperature, "k": tuned.k}
    found = {"found": float(np.asarray(test.match).any(axis=1).mean())}
    return Component("kNN", pair[0], pair[1], test.search_seconds, settings | found)


def knn_row(name: str, lm: Component, neighbors: Component) -> Row:
    """LM and p_kNN mixed with the tuned lambda, as `knnlm eval` does."""
    log_p = np.asarray(interpolated(lm.test, neighbors.test, neighbors.settings["lambda"]), np.float64)
    return Row(name, log_p, lm.seconds + neighbors.seconds, neighbors.settings)


def cache(valid: Split, test: Split) -> Component:
    """Continuous cache; metric, size and theta by the validation perplexity of its mixture with the LM."""
    tried = []
    best: tuple[float, str, int, float, Floats] = (np.inf, "", 0, 0.0, np.zeros(0))
    for metric in ("ip", "l2"):
        for size in CACHE_SIZES:
            grid = cache_columns(valid, CACHE_THETAS, size, metric)
            for theta, column in zip(CACHE_THETAS, grid, strict=True):
                perplexity = fit_weights({"lm": valid.log_p_lm, "cache": column}).perplexity
                tried.append({"metric": metric, "size": size, "theta": theta, "perplexity": perplexity})
                best = min(best, (perplexity, metric, size, theta, column), key=lambda t: t[0])
    _, metric, size, theta, column = best
    started = time.perf_counter()
    scored = cache_columns(test, (theta,), size, metric)[0]
    settings = {"metric": metric, "size": size, "theta": theta, "tried": tried}
    return Component("cache", column, scored, time.perf_counter() - started, settings)


def cache_columns(split: Split, thetas: Sequence[float], size: int, metric: str) -> Floats:
    """log p_cache of every token for several theta, (g, n)."""

    def column(_: int, s: slice) -> Floats:
        return continuous_cache_log_p(split.keys[s], split.tokens[s], thetas, size, metric).T

    return split.by_document(column).T


def ngrams(valid: Split, test: Split, train: Sequence[Any], vocab_size: int, order: int) -> tuple[Component, Component]:
    """The n-gram model of the training documents, and their unigram model."""
    started = time.perf_counter()
    model = KneserNey(order).fit(train, vocab_size)
    settings = {"fit seconds": round(time.perf_counter() - started, 1)}
    out = []
    for name, score in ((f"{order}-gram", model.log_probs), ("unigram", model.unigram_log_probs)):
        started = time.perf_counter()
        scored = np.concatenate([score(d) for d in test.tokens_by_document()])
        seconds = time.perf_counter() - started
        out.append(Component(name, np.concatenate([score(d) for d in valid.tokens_by_document()]), scored, seconds))
    out[0].settings = settings
    return out[0], out[1]


def report(split: Split, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Perplexities and intervals of all rows against the first one, the LM."""
    tokens, base = split.document_tokens, split.sums(rows[0].log_p)
    out = []
    for row in rows:
        sums = split.sums(row.log_p)
        found = paired_bootstrap(base, sums, tokens)
        out.append(
            {
                "system": row.name,
                "documents": len(tokens),
                "tokens": len(split),
                "perplexity": found.perplexity_b,
                "word_perplexity": float(np.exp(sums.sum() / split.words.sum())),
                "ratio": found.ratio,
                "ratio_interval": [found.ratio_low, found.ratio_high],
                "difference": found.difference,
                "difference_interval": [found.difference_low, found.difference_high],
                "tokens_per_second": len(split) / row.seconds,
                "settings": row.settings,
                "document_nll": np.round(sums, 3).tolist(),
            }
        )
    return out


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--corpus", required=True, choices=corpora.CORPORA)
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--work", type=Path, required=True, help="folder for stores, columns and neighbors")
    parser.add_argument("--out", type=Path, default=tables.ROOT / "benches" / "record")
    parser.add_argument("--adapt", action="store_true", help="the model comes from other text: the domain baselines")
    parser.add_argument("--representation", default="ffn-input")
    parser.add_argument("--layer", type=int, default=-1)
    parser.add_argument("--window", type=int, help="tokens fed at once (default: the model's context)")
    parser.add_argument("--context", type=int, help="least earlier tokens (default: half of the window)")
    parser.add_argument("--bf16", action="store_true", help="run the model under bf16 autocast")
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--nprobe", type=int)
    parser.add_argument("--order", type=int, default=5, help="of the n-gram model")
    parser.add_argument("--tuning-tokens", type=int, default=20_000, help="validation tokens, in whole documents")
    parser.add_argument("--test-tokens", type=int, help="test tokens, in whole documents (default: all)")
    parser.add_argument(
        "--limit", type=int, default=20_000, help="tokens of test and validation for exact search; 0: none"
    )
    parser.add_argument(
        "--learning-rates", type=float, nargs="*", default=[1e-4, 5e-4], help="of the LM trained on; none: leave it out"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one corpus and writes its record."""
    args = parse(arguments)
    corpus = corpora.CORPORA[args.corpus](args.data)
    spec = KeySpec(args.representation, args.layer, args.window, args.context)
    lm = language_model.LanguageModel(args.model, spec, args.bf16)
    place = args.work / f"{args.corpus}-{columns.digest(lm.identity())}"
    train = lm.encode(corpus.train)
    valid_documents, test_documents = (
        lm.encode([documents[i] for i in columns.mixed_order(len(documents), args.seed)], tokens)
        for documents, tokens in ((corpus.valid, args.tuning_tokens), (corpus.test, args.test_tokens))
    )
    log(f"dump and build of {sum(len(d.tokens) for d in train):,} tokens")
    store, cost = lm.store(train, place / "store", args.seed)
    log("the language model over validation and test")
    valid, test = lm.score(valid_documents, place), lm.score(test_documents, place)
    base = Component("LM", valid.log_p_lm, test.log_p_lm, test.model_seconds)
    log(f"n-gram and cache; {len(valid):,} validation and {len(test):,} test tokens")
    ngram, unigram = ngrams(valid, test, [d.tokens for d in train], lm.vocab_size, args.order)
    running = cache(valid, test)

    log("quantised search")
    shuffled = np.random.default_rng(args.seed).permutation(store.values(0, len(store)))
    name = f"quantised-{args.nprobe or 'default'}"
    found = [columns.neighbors(store, split, args.k, name, shuffled, nprobe=args.nprobe) for split in (valid, test)]
    right, wrong = knn(*found), knn(found[0].shuffled(), found[1].shuffled())
    domain = "domain " if args.adapt else ""
    rows = [
        base.row(),
        ngram.row(f"{domain}{args.order}-gram"),
        mixed(f"LM + {domain}{args.order}-gram", base, ngram),
        mixed("LM + cache", base, running),
        knn_row("LM + kNN (quantised)", base, right),
        mixed("LM + kNN (quantised) + cache", base, right, running),
        mixed(f"LM + kNN (quantised) + cache + {domain}{args.order}-gram", base, right, running, ngram),
        knn_row("LM + kNN, values shuffled", base, wrong),
    ]
    if args.adapt:
        rows.insert(3, mixed("LM + domain unigram", base, unigram))
        if args.learning_rates:
            rows.append(trained_on(lm, corpus, valid_documents, test_documents, place, cost, args))
    entries = report(test, rows)
    record: dict[str, Any] = tables.header() | {"corpus": args.corpus, "adapt": args.adapt, "test": entries}

    if args.limit:
        log("exact search")
        part_valid, part = (s.head(columns.documents_within(s.document_tokens, args.limit)) for s in (valid, test))
        exact = knn(*(columns.neighbors(store, s, args.k, "exact", shuffled, exact=True) for s in (part_valid, part)))
        right = knn(columns.head(found[0], part_valid), columns.head(found[1], part))
        base, running = (c.head(len(part_valid), len(part)) for c in (base, running))
        rows = [
            base.row(),
            knn_row("LM + kNN (quantised)", base, right),
            knn_row("LM + kNN (exact)", base, exact),
            mixed("LM + kNN (quantised) + cache", base, right, running),
            mixed("LM + kNN (exact) + cache", base, exact, running),
        ]
        entries = report(part, rows)
        record["exact"] = entries

    seen = overlap([d.tokens for d in test_documents], (d.tokens for d in train))
    record |= {
        "model": lm.about(),
        "store": language_model.facts(store) | cost,
        "overlap_13gram": seen.fraction,
        "tuning_tokens": len(valid),
        "options": {n: v for n, v in vars(args).items() if not isinstance(v, Path) and n != "model"},
        "machine": tables.machine(),
    }
    name = f"perplexity-{render.kind(record)}"
    path = tables.write(args.out, name, render.title(record), record, render.sections(record))
    print(path.read_text())
    return 0


def trained_on(
    lm: language_model.LanguageModel,
    corpus: Any,
    valid: Sequence[Any],
    test: Sequence[Any],
    place: Path,
    cost: dict[str, float],
    args: argparse.Namespace,
) -> Row:
    """The LM trained on the domain's text for as long as dump and build took; learning rate by validation."""
    budget = cost["dump_seconds"] + cost["build_seconds"]
    tried = []
    for rate in args.learning_rates:
        folder = place / f"trained-{rate:g}-{budget:.0f}-{args.seed}"
        model = lm.trained_on(corpus.train, corpus.valid, budget, rate, args.seed, folder)
        perplexity = float(np.exp(-model.score(valid, place).log_p_lm.mean()))
        tried.append((perplexity, rate, model))
        log(f"trained on for {budget:.0f} s at rate {rate:g}: validation perplexity {perplexity:.2f}")
    _, rate, model = min(tried, key=lambda t: t[0])
    split = model.score(test, place)
    settings = {"seconds": round(budget, 1), "rate": rate, "validation": {f"{t[1]:g}": t[0] for t in tried}}
    return Row("LM trained on", split.log_p_lm, split.model_seconds, settings)


if __name__ == "__main__":
    sys.exit(main())
