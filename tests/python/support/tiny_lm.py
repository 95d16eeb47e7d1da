"""A small causal model and a letter tokenizer, so that tests of the method need no training and no download."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)  # threads only wait for each other on tensors of this size

LETTERS = "\n abcdefghijklmnopqrstuvwxyz.,"
BOS = 0


class LetterTokenizer:
    """One token a character; id 0 is the document start and the line end."""

    bos_id = BOS
    vocab_size = len(LETTERS)
    fingerprint = "letters"

    def encode(self, text: str) -> np.ndarray:
        return np.array([LETTERS.index(c) for c in text], np.uint32)

    def decode(self, ids: Any) -> str:
        return "".join(LETTERS[int(i)] for i in ids)

    def token_text(self, id: int) -> str:
        return repr(LETTERS[id])[1:-1]


class TinyBlock(nn.Module):
    """Causal single-head attention and a feed-forward layer, both behind a norm."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention, self.ffn = TinyAttention(d), nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        for norm in (self.attention_norm, self.ffn_norm):
            nn.init.normal_(norm.weight, 1.0, 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class TinyAttention(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


class TinyLM(nn.Module):
    """Two blocks over token and position embeddings; nothing about it is known to the package."""

    def __init__(self, vocabulary: int = len(LETTERS), d: int = 16, context: int = 24, layers: int = 2) -> None:
        super().__init__()
        self.context = context
        self.tokens, self.positions = nn.Embedding(vocabulary, d), nn.Embedding(context, d)
        self.blocks = nn.ModuleList([TinyBlock(d) for _ in range(layers)])
        self.final_norm, self.head = nn.LayerNorm(d), nn.Linear(d, vocabulary)

    def forward(self, ids: torch.Tensor) -> Any:
        if ids.shape[1] > self.context:
            raise ValueError("longer than the context")
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return SimpleNamespace(logits=2.0 * self.head(self.final_norm(x)))


@dataclass
class TinyLoaded:
    model: nn.Module
    tokenizer: Any
    fingerprint: str = "tiny"
    context: int = 24
    name: str = "tiny"


@dataclass(frozen=True)
class Doc:
    name: str
    text: str
    metadata: dict[str, Any] | None = None


def tiny(seed: int = 0, **sizes: int) -> TinyLoaded:
    torch.manual_seed(seed)
    model = TinyLM(**sizes)
    return TinyLoaded(model, LetterTokenizer(), context=model.context)


def texts(count: int = 6, seed: int = 0) -> list[Doc]:
    """Documents of repeated made-up words, so that neighbors help; lengths from 0 to well beyond the context."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(8)]
    lengths = [0, 1, 3, 12, 30, 45, 7, 22][:count]
    return [Doc(f"doc {i}", " ".join(rng.choice(words, n)) + "." * (n > 0)) for i, n in enumerate(lengths)]
