"""kNN-MT on parallel text: a base that has seen some pairs, a store of the others, BLEU and chrF with intervals.

    python benches/translation.py --data DIR --out OUT            # multi30k: DIR has train.de.gz, train.en.gz, …

The base model is trained on the first `--base` pairs (BPE of all), the store is made of the others, λ, T and k are
chosen on the validation pairs, and the test pairs are seen once. Shuffled values are the control; with `--upper` a
second model is trained on all pairs, the upper reference.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knnlm.evaluate.tune import tune
from knnlm.model.translator import load_translator
from knnlm.mt.judge import differences, judged
from knnlm.mt.knn_mt import KNNMT
from knnlm.mt.pairs import Pair, read_pairs
from knnlm.mt.train import TranslatorSizes, TranslatorTraining, train_translator
from knnlm.mt.translate import translate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--test", default="test_2016_flickr")
    parser.add_argument("--upper", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    out = options.out / f"seed-{options.seed}"
    out.mkdir(parents=True, exist_ok=True)

    def pairs(split: str) -> list[Pair]:
        return read_pairs(options.data / f"{split}.de.gz", options.data / f"{split}.en.gz")

    train, valid, test = pairs("train"), pairs("val"), pairs(options.test)
    base, rest = train[: options.base], train[options.base :]
    record: dict[str, Any] = {"base pairs": len(base), "store pairs": len(rest), "seed": options.seed}
    trained(out / "base", base, rest, valid, options, record)
    started = time.perf_counter()
    with KNNMT.build(str(out / "base"), rest, out / "store", overwrite=True, keep_keys="float16") as mt:
        record["build seconds"] = round(time.perf_counter() - started, 1)
        record["entries"] = len(mt.datastore)
        started = time.perf_counter()
        tuned = mt.tune(valid)
        record["tuned"] = {**tuned.to_dict(), "seconds": round(time.perf_counter() - started, 1)}
        control = tune(mt.retrieve(valid, shuffle_seed=0).shuffled())
        record["shuffled values, λ chosen"] = round(control.lambda_, 3)
        sources, true = [pair.source for pair in test], [pair.target for pair in test]
        systems: dict[str, list[str]] = {}
        for name, system in (("base", mt.translate_alone), ("vanilla", mt.translate)):
            started = time.perf_counter()
            systems[name] = system(sources)
            record[f"{name}, seconds"] = round(time.perf_counter() - started, 1)
    if options.upper:
        trained(out / "upper", train, [], valid, options, record)
        systems["trained on all"] = translate(load_translator(out / "upper"), sources)
    record["scores"] = {name: judged(found, true) for name, found in systems.items()}
    record["differences"] = {
        name: [vars(one) for one in differences(systems["base"], found, true)]
        for name, found in systems.items()
        if name != "base"
    }
    (out / "translations.json").write_text(json.dumps(systems, ensure_ascii=False, indent=1), encoding="utf-8")
    (out / "record.json").write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")
    print(json.dumps(record, ensure_ascii=False, indent=1))


def trained(
    folder: Path, pairs: list[Pair], more: list[Pair], valid: list[Pair], options: Any, record: dict[str, Any]
) -> None:
    """Train a model if it is not there yet."""
    if (folder / "model.safetensors").is_file():
        return
    training = TranslatorTraining(max_steps=options.steps, seed=options.seed)
    result = train_translator(folder, pairs, valid, sizes=TranslatorSizes(), training=training, vocabulary_of=more)
    best = min(perplexity for _, perplexity in result.curve)
    record[folder.name] = {
        "steps": result.steps,
        "seconds": round(result.seconds),
        "validation perplexity": round(best, 2),
        "parameters": sum(int(np.prod(p.shape)) for p in result.translator.model.parameters()),
        "curve": [(step, round(perplexity, 2)) for step, perplexity in result.curve],
    }


if __name__ == "__main__":
    main()
