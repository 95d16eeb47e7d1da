"""Train the language model of one corpus: how good is the LM that the experiments stand on?

    python benches/train_models.py --data FOLDER --corpus wikitext2 --out MODELS/wikitext2 --seconds 3600

On a machine shared with other work start it with OMP_WAIT_POLICY=passive: threads that spin at every barrier made one
step three times slower. `--resume` is the default; the end of a run prints one JSON line with the test perplexity.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from corpora import CORPORA

from knnlm.model.checkpoint import read_model
from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.text.tokenizer import Tokenizer
from knnlm.train.loop import TrainConfig, bf16_is_fast, train, validate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--corpus", choices=CORPORA, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, help="end after so many seconds of training")
    parser.add_argument("--steps", type=int, help="end after so many steps: the same model however busy the machine is")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--d-model", type=int, default=384)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.15)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="muon wants a rate of 3e-3")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--sampled-head", type=int, default=2048)
    parser.add_argument("--sampled-rest", type=int, default=2048)
    parser.add_argument("--full-softmax", type=float, default=0.06)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    if a.seconds is None and a.steps is None:
        parser.error("expected --seconds or --steps, found neither: the training would never end")
    torch.set_num_threads(a.threads)
    corpus = CORPORA[a.corpus](a.data)
    a.out.mkdir(parents=True, exist_ok=True)
    file = a.out / "tokenizer.json"
    tokenizer = Tokenizer.load(file) if file.is_file() else corpus.tokenizer()
    tokenizer.save(a.out)
    torch.manual_seed(a.seed)
    heads = a.d_model // 64
    size = TransformerConfig(tokenizer.vocab_size, a.d_model, a.layers, heads, context=a.context, dropout=a.dropout)
    model = TransformerLM(size)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {size}", flush=True)
    config = TrainConfig(
        max_seconds=a.seconds,
        max_steps=a.steps,
        batch_tokens=a.batch_tokens,
        optimizer=a.optimizer,
        learning_rate=a.learning_rate,
        weight_decay=a.weight_decay,
        sampled_head=a.sampled_head,
        sampled_rest=a.sampled_rest,
        full_softmax=a.full_softmax,
        seed=a.seed,
    )
    last = [0.0]

    def progress(stage: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] >= 30:
            last[0] = time.monotonic()
            print(f"{stage} {done}/{total}", flush=True)

    result = train(model, tokenizer, corpus.train, corpus.valid, a.out, config, progress=progress)
    if result.interrupted:
        raise SystemExit("interrupted; the same command goes on")
    best = read_model(a.out)
    scores = {}
    for split in ("valid", "test"):
        tokens = [tokenizer.encode(d.text) for d in getattr(corpus, split)]
        scores[split] = round(validate(best, tokens, tokenizer.bos_id, None, bf16_is_fast(torch.device("cpu"))), 3)
    summary = {"corpus": a.corpus, "steps": result.steps, "seconds": round(result.seconds), "tokens": result.tokens}
    (a.out / "result.json").write_text(json.dumps(summary | {"perplexity": scores}))
    print(json.dumps(summary | {"perplexity": scores}), flush=True)


if __name__ == "__main__":
    main()
