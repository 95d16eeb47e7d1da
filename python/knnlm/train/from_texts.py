"""From texts: a tokenizer and a decoder-only transformer of a given shape are trained on documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from knnlm.model.load import pick_device
from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.text.documents import Document
from knnlm.text.tokenizer import Tokenizer
from knnlm.train.hold_out import hold_out
from knnlm.train.loop import TrainConfig, TrainResult, train

VOCABULARY = 8192
"""Tokens of a new byte-level BPE unless another number is asked for."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Shape:
    """Sizes of a new model: width, layers, attention heads, longest input in tokens, and dropout while training."""

    d_model: int = 384
    layers: int = 6
    heads: int = 6
    context: int = 256
    dropout: float = 0.1


@dataclass(frozen=True)
class Trained:
    """What a training has done, and the model and tokenizer as they are at its end."""

    result: TrainResult
    model: TransformerLM
    tokenizer: Tokenizer


def train_from_texts(
    folder: Path,
    documents: Sequence[Document],
    valid: Sequence[Document] | None,
    config: TrainConfig,
    *,
    shape: Shape | None = None,
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    device: Any = None,
    resume: bool = False,
    progress: Progress | None = None,
    on_valid: Callable[[Mapping[str, float]], None] | None = None,
) -> Trained:
    """Train a model of `shape` on documents and leave it in `folder`, for `load_model`.

    valid: documents for validation; None = one in twenty of `documents` (`hold_out`). tokenizer: "bpe" or "words",
    learnt from the documents, or where a saved one is. vocab_size: of a new one; default: 8,192 for bpe, all words for
    words. resume: go on with an interrupted training in `folder`, with its tokenizer. Others: as `train`.

    Raises: as `train`, `Tokenizer.load`.
    """
    shape = Shape() if shape is None else shape
    training = list(documents)
    if valid is None:
        training, valid = hold_out(documents)
    words = _tokenizer(tokenizer, training, vocab_size, folder if resume else None, progress)
    torch.manual_seed(config.seed)
    sizes = TransformerConfig(
        words.vocab_size, shape.d_model, shape.layers, shape.heads, context=shape.context, dropout=shape.dropout
    )
    model = TransformerLM(sizes).to(pick_device(device))
    result = train(model, words, training, valid, folder, config, resume=resume, progress=progress, on_valid=on_valid)
    return Trained(result, model, words)


def _tokenizer(
    kind: str, documents: Sequence[Document], vocab_size: int | None, resumed: Path | None, progress: Progress | None
) -> Tokenizer:
    if resumed is not None and (resumed / "tokenizer.json").is_file():
        return Tokenizer.load(resumed)
    if kind not in ("bpe", "words"):
        return Tokenizer.load(kind)
    total = sum(len(document.text) for document in documents)

    def report(stage: str, done: int, of: int) -> None:
        if progress is not None:
            progress(stage, done, of)

    def texts() -> Iterator[str]:
        done = 0
        for document in documents:
            yield document.text
            done += len(document.text)
            report("tokenizer: count", done, total)
        if kind == "bpe":
            report("tokenizer: merge", 0, 0)  # the library says nothing of how far it is

    if kind == "bpe":
        return Tokenizer.train_bpe(texts(), vocab_size or VOCABULARY)
    return Tokenizer.train_words(texts(), vocab_size)
