"""Train: a small encoder-decoder for translation from parallel text, for those who have no model, and for the demo.

The architecture is Marian's, of transformers (Junczys-Dowmunt et al. 2018), with one BPE vocabulary for both languages;
what is written is a folder that `load_translator`, and transformers itself, reads.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knnlm.model.load import pick_device
from knnlm.model.translator import IGNORED, Translator, as_translator
from knnlm.mt.pairs import Pair
from knnlm.store.output_folder import place_of, whole_folder
from knnlm.system.extras import module
from knnlm.text.texts import Progress

SPECIAL = ("<pad>", "</s>", "<unk>")


@dataclass(frozen=True)
class TranslatorSizes:
    """Sizes of the model. vocab_size: of the BPE that both languages share."""

    vocab_size: int = 4000
    d_model: int = 256
    layers: int = 3
    heads: int = 4
    d_ff: int = 1024
    context: int = 256
    dropout: float = 0.2


@dataclass(frozen=True)
class TranslatorTraining:
    """How it is trained: Adam with warm-up and decay by the inverse square root (Vaswani et al. 2017).

    max_steps, max_seconds: whichever comes first. batch_tokens: of targets and sources with padding. valid_steps: steps
    between two looks at the validation pairs, of which the best model is kept.
    """

    max_steps: int = 3000
    max_seconds: float = math.inf
    batch_tokens: int = 2048
    learning_rate: float = 1e-3
    warmup: int = 300
    label_smoothing: float = 0.1
    valid_steps: int = 250
    seed: int = 0


@dataclass(frozen=True)
class TranslatorTrained:
    """What came out. curve: (step, perplexity of the validation targets) of each look."""

    translator: Translator
    steps: int
    seconds: float
    curve: list[tuple[int, float]] = field(default_factory=list)


def train_translator(
    out: str | Path,
    pairs: Sequence[Pair],
    valid: Sequence[Pair],
    *,
    sizes: TranslatorSizes | None = None,
    training: TranslatorTraining | None = None,
    vocabulary_of: Sequence[Pair] = (),
    device: Any = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TranslatorTrained:
    """Train on pairs and write the model of the best validation perplexity to a folder.

    vocabulary_of: more pairs that the BPE is learnt from, such as those that a store is to be made of: a model without
    the letters of a domain cannot be adapted to it.

    Raises:
        UsageError: something is at `out` and `overwrite` is not given.
        ValueError: no pairs, or none that is short enough.
    """
    sizes, training = sizes or TranslatorSizes(), training or TranslatorTraining()
    if not pairs or not valid:
        raise ValueError(f"expected pairs to train on and to look at, found {len(pairs):,} and {len(valid):,}")
    transformers = module("transformers", "training a model for translation")
    started = time.perf_counter()
    tokenizer = shared_bpe([*pairs, *vocabulary_of], sizes.vocab_size)
    torch.manual_seed(training.seed)
    config = transformers.MarianConfig(
        vocab_size=len(tokenizer),
        decoder_vocab_size=len(tokenizer),
        d_model=sizes.d_model,
        encoder_layers=sizes.layers,
        decoder_layers=sizes.layers,
        encoder_attention_heads=sizes.heads,
        decoder_attention_heads=sizes.heads,
        encoder_ffn_dim=sizes.d_ff,
        decoder_ffn_dim=sizes.d_ff,
        max_position_embeddings=sizes.context,
        dropout=sizes.dropout,
        scale_embedding=True,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
    )
    model = transformers.MarianMTModel(config).to(pick_device(device))
    translator = as_translator(model, tokenizer)
    best, curve, step, kept = math.inf, list[tuple[int, float]](), 0, dict[str, Tensor]()
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, betas=(0.9, 0.98), eps=1e-9)
    generator = random.Random(training.seed)
    held = _encoded(translator, pairs)
    looked = _encoded(translator, valid)
    if not held or not looked:
        raise ValueError(f"expected pairs of at most {sizes.context} tokens a side, found none among them")
    for batch in _batches(held, training.batch_tokens, generator):
        rate = min((step + 1) / training.warmup, math.sqrt(training.warmup / (step + 1)))
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * rate
        model.train()
        loss: Any = _loss(translator, batch, training.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        over = step >= training.max_steps or time.perf_counter() - started > training.max_seconds
        if progress is not None:
            progress("train", step, training.max_steps)
        if over or step % training.valid_steps == 0:
            perplexity = _perplexity(translator, looked, training.batch_tokens)
            curve.append((step, perplexity))
            if perplexity < best:
                best = perplexity
                kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        if over:
            break
    model.load_state_dict(kept)
    model.eval()
    with whole_folder(place_of(Path(out)), overwrite) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
    return TranslatorTrained(translator, step, time.perf_counter() - started, curve)


def shared_bpe(pairs: Sequence[Pair], vocab_size: int) -> Any:
    """A byte-level BPE of both sides, as transformers wraps one; it ends what it reads and what is written."""
    transformers = module("transformers", "a tokenizer for translation")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator((side for pair in pairs for side in (pair.source, pair.target)), trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


Encoded = tuple[list[int], list[int]]


def _encoded(translator: Translator, pairs: Sequence[Pair]) -> list[Encoded]:
    """Ids of both sides of the pairs that the model can hold."""
    read = translator.read([pair.source for pair in pairs])
    written = translator.written([pair.target for pair in pairs])
    rows = zip(read, written, strict=True)
    return [(s, t) for s, t in rows if max(len(s), len(t)) <= translator.context]


def _batches(rows: Sequence[Encoded], batch_tokens: int, generator: random.Random | None) -> Iterator[list[Encoded]]:
    """Batches of similar length; with a generator in random order without end, else once."""
    while True:
        order = list(range(len(rows)))
        if generator is not None:
            generator.shuffle(order)
        order.sort(key=lambda i: max(map(len, rows[i])))  # stable: equal lengths stay in random order
        batches: list[list[Encoded]] = [[]]
        for i in order:
            longest = max(map(len, rows[i]))
            if batches[-1] and (len(batches[-1]) + 1) * longest > batch_tokens:
                batches.append([])
            batches[-1].append(rows[i])
        if generator is None:
            yield from batches
            return
        generator.shuffle(batches)
        yield from batches


def _forward(translator: Translator, batch: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    sources = [source for source, _ in batch]
    labels = translator.batch([target for _, target in batch], fill=IGNORED)
    mask = translator.batch([[1] * len(row) for row in sources], fill=0)
    output = translator.model(input_ids=translator.batch(sources), attention_mask=mask, labels=labels)
    return output.logits, labels


def _loss(translator: Translator, batch: Sequence[Encoded], smoothing: float) -> Tensor:
    logits, labels = _forward(translator, batch)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)


@torch.no_grad()
def _perplexity(translator: Translator, rows: Sequence[Encoded], batch_tokens: int) -> float:
    translator.model.eval()
    total, count = 0.0, 0
    for batch in _batches(rows, batch_tokens, None):
        logits, labels = _forward(translator, batch)
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
        count += int((labels != IGNORED).sum())
    return math.exp(min(total / count, 700.0))
