"""Key sets of the search benchmark: keys, held-out queries and what is needed to turn neighbors into perplexity.

    python benches/engine_sets.py --model MODEL --corpus wikitext2 --data DATA --out SETS/wikitext2 --entries 1000000

A set is a folder of .npy files: keys (n, d) float16 and values (n,) of the first n training tokens; queries (q, d)
float32, targets (q,) and log_p_lm (q,) of consecutive held-out tokens (validation, then test: the first half tunes
lambda, T and k, the second is measured). A pair of files without values and targets is a set too; then there is no
perplexity. The model runs in bf16 here: the benchmark compares searches of the same keys.

    python benches/engine_sets.py --model MODEL --out-of-domain peps --data DATA --out SETS/wikitext2 --queries 500

adds queries of another corpus to a set, states of the same model: what an index was not tuned for.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class KeySet:
    """n keys of d dimensions, q queries; the last three are None where only keys and queries are known."""

    name: str
    keys: Array  # (n, d) float16, mapped
    queries: Array  # (q, d) float32
    values: Array | None = None  # (n,) uint32
    targets: Array | None = None  # (q,) uint32
    log_p_lm: Array | None = None  # (q,) float64
    out_of_domain: Array | None = None  # (r, d) float32

    @property
    def half(self) -> int:
        """Queries before this one tune, those from it on are measured."""
        return len(self.queries) // 2

    def save(self, folder: Path) -> None:
        """Writes the files of a set."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            array = getattr(self, name)
            if array is not None:
                np.save(folder / f"{name}.npy", array)


FILES = ("keys", "queries", "values", "targets", "log_p_lm", "out_of_domain")


def load(folder: Path, entries: int | None = None) -> KeySet:
    """Reads a set, or its first entries."""
    arrays = {
        name: np.load(path, mmap_mode="r" if name == "keys" else None)
        for name in FILES
        if (path := folder / f"{name}.npy").is_file()
    }
    missing = {"keys", "queries"} - set(arrays)
    if missing:
        raise SystemExit(f"{folder}: expected {sorted(f'{m}.npy' for m in missing)}; make them with engine_sets.py")
    for name in ("keys", "values"):
        if name in arrays:
            arrays[name] = arrays[name][:entries]
    arrays["queries"] = np.ascontiguousarray(arrays["queries"], dtype=np.float32)
    return KeySet(folder.name, **arrays)


def synthetic(n: int, d: int, q: int, seed: int) -> KeySet:
    """Clustered vectors whose values follow the cluster, for tests of the benchmark itself."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(4, n // 200), d)) * 2
    of_key, of_query = rng.integers(len(centres), size=n), rng.integers(len(centres), size=q)
    keys = centres[of_key] + rng.normal(size=(n, d)) * rng.uniform(0.3, 1.0, size=(n, 1))
    queries = centres[of_query] + rng.normal(size=(q, d)) * 0.6
    return KeySet(
        "synthetic",
        keys.astype(np.float16),
        queries.astype(np.float32),
        (of_key % 50).astype(np.uint32),
        (of_query % 50).astype(np.uint32),
        np.full(q, -np.log(50.0)),
    )


class Runner:
    """A trained model and what of its states is a key."""

    def __init__(self, model: str, threads: int | None) -> None:
        import language_model
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.lm = language_model.LanguageModel(model, bf16=True)

    def run(self, documents: Any, tokens: int, scores: bool = False) -> tuple[Array, Array, Array]:
        """Keys (n, d) float16, tokens and log-probabilities (n,) of the first tokens."""
        from knnlm.model.keys import iterate

        lm, capture = self.lm, self.lm.capture
        keys, values, log_p = [], [], []
        for chunk in iterate(
            lm.loaded,
            lm.encode(documents, tokens),
            captures=[capture],
            window=lm.spec.window,
            context=lm.spec.context,
            key_dtype="float16",
            scores=scores,
            autocast=lm.spec.autocast,
        ):
            keys.append(chunk.keys[capture])
            values.append(chunk.tokens)
            log_p.append(chunk.log_p)
        return np.concatenate(keys)[:tokens], np.concatenate(values)[:tokens], np.concatenate(log_p)[:tokens]


def make(model: str, corpus_name: str, data: Path, entries: int, queries: int, threads: int | None) -> KeySet:
    """Runs a trained model over a corpus: the first `entries` training tokens and `queries` held-out ones."""
    import corpora

    corpus = corpora.CORPORA[corpus_name](data)
    runner = Runner(model, threads)
    keys, values, _ = runner.run(corpus.train, entries)
    halves = [runner.run(documents, queries // 2, scores=True) for documents in (corpus.valid, corpus.test)]
    held = [np.concatenate(parts) for parts in zip(*halves, strict=True)]
    return KeySet(corpus_name, keys, held[0].astype(np.float32), values, held[1], held[2].astype(np.float64))


def elsewhere(model: str, corpus_name: str, data: Path, queries: int, threads: int | None) -> Array:
    """States of a trained model on the test text of another corpus, spread over it: (queries, d) float32."""
    import corpora

    keys, _, _ = Runner(model, threads).run(corpora.CORPORA[corpus_name](data).test, 4 * queries)
    return np.ascontiguousarray(keys[:: max(1, len(keys) // queries)][:queries], dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", help="whose training text becomes keys, and whose held-out text queries")
    parser.add_argument("--out-of-domain", metavar="CORPUS", help="only add queries of this corpus to the set")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=8192)
    parser.add_argument("--threads", type=int)
    a = parser.parse_args()
    if (a.corpus is None) == (a.out_of_domain is None):
        parser.error("expected one of --corpus and --out-of-domain")
    if a.out_of_domain:
        a.out.mkdir(parents=True, exist_ok=True)
        np.save(a.out / "out_of_domain.npy", elsewhere(a.model, a.out_of_domain, a.data, a.queries, a.threads))
        return
    made = make(a.model, a.corpus, a.data, a.entries, a.queries, a.threads)
    made.save(a.out)
    print(f"{a.out}: {len(made.keys):,} keys of {made.keys.shape[1]} dimensions, {len(made.queries):,} queries")
    if len(made.keys) < a.entries:
        print(f"the training text has only {len(made.keys):,} tokens", file=sys.stderr)


if __name__ == "__main__":
    main()
