"""What does a datastore buy on real text? Perplexity of the LM, kNN-LM, cache, n-gram and their mixtures on one corpus.

    python benches/perplexity.py --model MODEL --corpus wikitext2 --work WORK
    python benches/perplexity.py --model MODEL --corpus gutenberg --adapt --work WORK   (MODEL trained on other text)

Every weight, temperature and k is chosen on validation documents; test documents are scored once with those. Each row
has the 95 % paired bootstrap interval by document against the LM. Exact search costs n x d multiplications per token,
so with --limit it scores only the first test documents (in a fixed random order) and has its own LM row to compare.
Everything expensive is kept in WORK, under names that change with the model, the text and the options.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
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
from columns import Floats, Found, Split

from knnlm.bootstrap import paired_bootstrap
from knnlm.cache import continuous_cache_log_p
from knnlm.datastore import Datastore
from knnlm.mixture import em_weights, mix_log_p
from knnlm.ngram import KneserNey
from knnlm.overlap import overlap
from knnlm.tune import Cached, tune

CACHE_SIZES = (500, 2000, 8000)
CACHE_THETAS = tuple(float(x) for x in 2.0 ** np.arange(-9, 2))


@dataclasses.dataclass
class Row:
    """One line of the table: a system, its log-probabilities of the test tokens, the time for them, its settings."""

    name: str
    log_p: Floats
    seconds: float | None
    settings: dict[str, Any]


@dataclasses.dataclass
class Component:
    """One model of a mixture: its columns on validation and test, and the seconds that the test column took."""

    name: str
    valid: Floats
    test: Floats
    seconds: float
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


class Bench:
    """The two splits of a run and what is mixed over them."""

    def __init__(self, valid: Split, test: Split) -> None:
        self.valid, self.test = valid, test
        self.lm = Component("LM", valid.log_p_lm, test.log_p_lm, test.seconds)

    def row(self, name: str, *components: Component) -> Row:
        """Mixes components with EM weights from validation; a cache has no weight at the first token of a document."""
        if len(components) == 1:
            return Row(name, components[0].test, components[0].seconds, components[0].settings)
        exists_valid, exists_test = (
            np.stack([~split.starts() if c.name == "cache" else np.ones(len(split), bool) for c in components])
            for split in (self.valid, self.test)
        )
        weights = em_weights(np.stack([c.valid for c in components]), exists_valid)
        mixed = mix_log_p(np.stack([c.test for c in components]), weights, exists_test)
        settings = {"weights": {c.name: round(float(w), 4) for c, w in zip(components, weights, strict=True)}}
        for component in components:
            if component.settings:
                settings[component.name] = component.settings
        return Row(name, mixed, sum(c.seconds for c in components), settings)

    def knn(self, name: str, valid: Found, test: Found, shuffled: bool = False) -> tuple[Component, float]:
        """p_kNN with temperature and k tuned on validation, and the tuned lambda."""
        seen = valid.match_shuffled if shuffled else valid.match
        tuned = tune(Cached(self.valid.log_p_lm, np.asarray(valid.distances), np.asarray(seen), valid.metric))
        settings = {"temperature": tuned.temperature, "k": tuned.k, "lambda": round(float(tuned.lambda_), 4)}
        pair = [
            columns.log_p_knn(
                f.distances, f.match_shuffled if shuffled else f.match, tuned.temperature, tuned.k, f.metric
            )
            for f in (valid, test)
        ]
        return Component(name, pair[0], pair[1], test.seconds, settings), float(tuned.lambda_)

    def knn_row(self, name: str, component: Component, lambda_: float) -> Row:
        """LM and p_kNN mixed with the tuned lambda, as `eval` does."""
        mixed = mix_log_p(np.stack([self.lm.test, component.test]), [1 - lambda_, lambda_])
        return Row(name, mixed, self.lm.seconds + component.seconds, component.settings)

    def cache(self) -> Component:
        """Continuous cache with metric, size and theta chosen by the validation perplexity of its mixture with the LM."""
        best: tuple[float, str, int, float, Floats] | None = None
        exists = np.stack([np.ones(len(self.valid), bool), ~self.valid.starts()])
        tried = []
        for metric in ("ip", "l2"):
            for size in CACHE_SIZES:
                grid = self._cache_columns(self.valid, CACHE_THETAS, size, metric)
                for theta, column in zip(CACHE_THETAS, grid, strict=True):
                    pair = np.stack([self.lm.valid, column])
                    perplexity = float(np.exp(-mix_log_p(pair, em_weights(pair, exists), exists).mean()))
                    tried.append({"metric": metric, "size": size, "theta": theta, "perplexity": perplexity})
                    if best is None or perplexity < best[0]:
                        best = (perplexity, metric, size, theta, column)
        assert best is not None
        _, metric, size, theta, column = best
        started = time.perf_counter()
        test = self._cache_columns(self.test, (theta,), size, metric)[0]
        seconds = time.perf_counter() - started
        settings = {"metric": metric, "size": size, "theta": theta, "tried": tried}
        return Component("cache", column, test, seconds, settings)

    @staticmethod
    def _cache_columns(split: Split, thetas: Sequence[float], size: int, metric: str) -> Floats:
        def column(_: int, s: slice) -> Floats:
            return continuous_cache_log_p(split.keys[s], split.targets[s], thetas, size, metric).T

        return split.by_document(column).T  # (g, n)

    def head(self, documents: int) -> Bench:
        """The same with the first test documents only."""
        return Bench(self.valid, self.test.head(documents))


def ngram_components(bench: Bench, train: Sequence[Any], vocab_size: int, order: int) -> tuple[Component, Component]:
    """The n-gram model of the training documents, and its unigram model, over both splits."""
    started = time.perf_counter()
    model = KneserNey(order).fit(train, vocab_size)
    settings = {"order": order, "fit_seconds": round(time.perf_counter() - started, 1)}
    out = []
    for name, score in ((f"{order}-gram", model.log_probs), ("unigram", model.unigram_log_probs)):
        started = time.perf_counter()
        test = np.concatenate([score(d) for d in bench.test.documents()])
        seconds = time.perf_counter() - started
        valid = np.concatenate([score(d) for d in bench.valid.documents()])
        out.append(Component(name, valid, test, seconds, settings if name != "unigram" else {}))
    return out[0], out[1]


def report(split: Split, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Perplexities and intervals of all rows; the first row is the one that they are compared with."""
    tokens, words, base = split.document_tokens, split.words, split.sums(rows[0].log_p)
    out = []
    for row in rows:
        sums = split.sums(row.log_p)
        entry: dict[str, Any] = {"system": row.name, "documents": len(tokens), "tokens": len(split)}
        if np.isfinite(sums).all():
            found = paired_bootstrap(base, sums, tokens)
            entry |= {
                "perplexity": found.perplexity_b,
                "word_perplexity": float(np.exp(sums.sum() / words.sum())),
                "ratio": found.ratio,
                "ratio_interval": [found.ratio_low, found.ratio_high],
                "difference": found.difference,
                "difference_interval": [found.difference_low, found.difference_high],
            }
        entry |= {
            "tokens_per_second": len(split) / row.seconds if row.seconds else None,
            "settings": row.settings,
            "document_nll": np.round(sums, 4).tolist(),
        }
        out.append(entry)
    return out


def table(entries: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = ("system", "perplexity", "per word", "against the LM", "95 % interval", "tokens/s", "settings")
    lines = []
    for e in entries:
        low, high = e["ratio_interval"]
        lines.append(
            (
                e["system"],
                f"{e['perplexity']:.2f}",
                f"{e['word_perplexity']:.2f}",
                "" if e is entries[0] else f"{100 * (e['ratio'] - 1):+.1f} %",
                "" if e is entries[0] else f"{100 * (low - 1):+.1f} to {100 * (high - 1):+.1f} %",
                f"{e['tokens_per_second']:,.0f}" if e["tokens_per_second"] else "",
                brief(e["settings"]),
            )
        )
    return tables.markdown(head, lines)


def brief(settings: dict[str, Any]) -> str:
    """Settings in one cell."""
    parts = []
    for name, value in settings.items():
        if name == "tried":
            continue
        if isinstance(value, dict):
            parts.append(f"{name}: {brief(value)}")
        else:
            parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return "; ".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one corpus and writes its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--corpus", required=True, help="a name of corpora.py")
    parser.add_argument("--data", type=Path, help="folder of the corpora, if not the default of corpora.py")
    parser.add_argument("--work", type=Path, required=True, help="folder for stores, columns and neighbours")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "record")
    parser.add_argument(
        "--adapt", action="store_true", help="the model comes from other text: adds the domain baselines"
    )
    parser.add_argument("--representation", default="ffn-input")
    parser.add_argument("--layer", type=int, default=-1)
    parser.add_argument(
        "--window", type=int, help="tokens scored per forward pass (default: half of the model's context)"
    )
    parser.add_argument("--context", type=int, help="least earlier tokens (default: the other half)")
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--nprobe", type=int)
    parser.add_argument("--order", type=int, default=5, help="of the n-gram model")
    parser.add_argument("--tuning-tokens", type=int, default=20_000, help="validation tokens, in whole documents")
    parser.add_argument("--test-tokens", type=int, help="test tokens, in whole documents (default: all)")
    parser.add_argument("--limit", type=int, default=20_000, help="test tokens scored with exact search; 0: none")
    parser.add_argument("--learning-rates", type=float, nargs="*", default=[1e-4, 5e-4], help="of the LM trained on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    corpus = corpora.load(args.corpus, args.data) if args.data else corpora.load(args.corpus)
    lm = language_model.LanguageModel(args.model, args.representation, args.layer, args.window, args.context)
    place = args.work / f"{args.corpus}-{columns.digest(lm.identity())}"
    train = lm.encode(corpus.train)
    store, cost = language_model.store(lm, train, place / "store", args.seed)
    order = columns.mixed_order(len(corpus.valid), args.seed)
    valid_documents = lm.encode([corpus.valid[i] for i in order], args.tuning_tokens)
    order = columns.mixed_order(len(corpus.test), args.seed)
    test_documents = lm.encode([corpus.test[i] for i in order], args.test_tokens)
    bench = Bench(lm.score(valid_documents, place), lm.score(test_documents, place))
    log(f"store of {len(store):,} entries; {len(bench.valid):,} validation and {len(bench.test):,} test tokens")

    shuffled = np.random.default_rng(args.seed).permutation(store.values(0, len(store)))
    version = columns.digest(str(store.info().get("code")), store.generation, args.nprobe)
    quantised = [
        columns.neighbours(store, split, args.k, f"quantised-{version}", shuffled, nprobe=args.nprobe)
        for split in (bench.valid, bench.test)
    ]
    log("neighbours by quantised keys are there")
    ngram, unigram = ngram_components(bench, [d.tokens for d in train], lm.vocab_size, args.order)
    cache = bench.cache()
    knn, lambda_ = bench.knn("kNN", *quantised)
    wrong, wrong_lambda = bench.knn("kNN", *quantised, shuffled=True)
    domain = "domain " if args.adapt else ""
    rows = [
        Row("LM", bench.lm.test, bench.lm.seconds, {}),
        Row(f"{domain}{args.order}-gram", ngram.test, ngram.seconds, ngram.settings),
        bench.row(f"LM + {domain}{args.order}-gram", bench.lm, ngram),
        bench.row("LM + cache", bench.lm, cache),
        bench.knn_row("LM + kNN (quantised)", knn, lambda_),
        bench.row("LM + kNN (quantised) + cache", bench.lm, knn, cache),
        bench.knn_row("LM + kNN (values shuffled)", wrong, wrong_lambda),
    ]
    if args.adapt:
        rows.insert(3, bench.row("LM + domain unigram", bench.lm, unigram))
        rows.append(trained_on(lm, train, bench, valid_documents, test_documents, place, cost, args))
    sections = [f"## All {len(bench.test):,} test tokens, {len(bench.test.names)} documents\n"]
    entries = report(bench.test, rows)
    sections.append(table(entries))
    record: dict[str, Any] = {"corpus": args.corpus, "test": entries}

    if args.limit:
        part = bench.head(columns.documents_within(bench.test.document_tokens, args.limit))
        stop = len(part.test)
        exact = [
            columns.neighbours(store, split, args.k, "exact", shuffled, exact=True) for split in (part.valid, part.test)
        ]
        exact_knn, exact_lambda = part.knn("kNN", *exact)
        share = stop / len(bench.test)
        part_cache = dataclasses.replace(cache, test=cache.test[:stop], seconds=cache.seconds * share)
        part_knn = dataclasses.replace(knn, test=knn.test[:stop], seconds=knn.seconds * share)
        entries = report(
            part.test,
            [
                Row("LM", part.lm.test, part.lm.seconds, {}),
                part.knn_row("LM + kNN (quantised)", part_knn, lambda_),
                part.knn_row("LM + kNN (exact)", exact_knn, exact_lambda),
                part.row("LM + kNN (quantised) + cache", part.lm, part_knn, part_cache),
                part.row("LM + kNN (exact) + cache", part.lm, exact_knn, part_cache),
            ],
        )
        record["exact"] = entries
        sections += [
            f"## Exact search: the first {stop:,} of those tokens, {len(part.test.names)} documents\n",
            table(entries),
        ]

    seen = overlap([d.tokens for d in test_documents], (d.tokens for d in train))
    info = store.info()
    record = tables.header() | record
    record |= {
        "model": lm.describe(),
        "store": {"n": len(store), "dim": store.dim, "info": json.loads(json.dumps(info, default=str))} | cost,
        "overlap_13gram": seen.fraction,
        "tuning": {"documents": len(bench.valid.names), "tokens": len(bench.valid)},
        "options": {
            k: str(v) if isinstance(v, Path) else v
            for k, v in vars(args).items()
            if k not in ("work", "out", "data", "model")
        },
    }
    sections += [
        "## Set-up\n",
        f"Model: {lm.describe()['text']}. Store: {len(store):,} entries of {store.dim} dimensions, "
        f"{cost['index_bytes_per_entry']:.1f} bytes per entry searched, {cost['bytes_per_entry']:.1f} with the raw keys; "
        f"dump {cost['dump_seconds']:.0f} s, build {cost['build_seconds']:.0f} s. "
        f"Tuned on {len(bench.valid):,} validation tokens in {len(bench.valid.names)} documents. "
        f"{100 * seen.fraction:.2f} % of the test tokens lie in a 13-gram of the store. "
        "Intervals: 10,000 paired bootstrap samples of documents. Seconds of a mixture are the sum of its parts.\n",
    ]
    kind = f"adapt-{args.corpus}" if args.adapt else args.corpus
    path = tables.write(args.out, f"perplexity-{kind}", f"Perplexity: {kind}", record, sections)
    print("\n".join(sections))
    log(f"written to {path}")
    return 0


def trained_on(
    lm: Any, train: Any, bench: Bench, valid: Any, test: Any, place: Path, cost: dict[str, Any], args: Any
) -> Row:
    """The LM trained on the domain's text for the seconds that dump and build took; best learning rate by validation."""
    budget = cost["dump_seconds"] + cost["build_seconds"]
    tried: list[tuple[float, float, Any]] = []
    for rate in args.learning_rates:
        model, steps = lm.trained_on(train, budget, rate, args.seed, place / f"trained-{rate:g}-{budget:.0f}")
        split = model.score(valid, place)
        tried.append((float(np.exp(-split.log_p_lm.mean())), rate, model))
        log(f"trained on for {budget:.0f} s ({steps} steps, rate {rate:g}): validation perplexity {tried[-1][0]:.2f}")
    _, rate, model = min(tried, key=lambda t: t[0])
    split = model.score(test, place)
    settings = {"seconds": round(budget, 1), "rate": rate, "validation": {f"{t[1]:g}": round(t[0], 3) for t in tried}}
    return Row("LM trained on", split.log_p_lm, split.seconds, settings)


def log(message: str) -> None:
    """Progress on stderr, so that stdout is the table."""
    print(f"[{time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
