"""The decoder-only transformer: token ids in, logits out; the small model that is trained here and read by everybody.

    x = embedding(ids)
    for each block:  x = x + attention(attention_norm(x));  x = x + ffn(ffn_norm(x))
    logits = lm_head(final_norm(x))

Pre-norm, rotary positions (Su et al. 2021), causal scaled-dot-product attention, squared-ReLU feed-forward block
(So et al. 2021), head tied to the embedding. The key of the kNN-LM is the input of ``blocks[-1].ffn``, that is the
output of ``blocks[-1].ffn_norm``. No dropout inside the attention: it would leave the fused kernel.
Next: `train.py` fits it, `capture.py` reads its keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 (the name that every PyTorch reader expects)
from torch import nn

LONGEST = 1_000_000_000
"""Tokens of context beyond which a number is an error, not a size."""


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a `TransformerLM`."""

    vocab_size: int  # v
    d_model: int = 384  # d
    n_layers: int = 6
    n_heads: int = 6
    d_ff: int | None = None  # None: 4 d
    context: int = 512  # longest sequence that the model was trained on
    dropout: float = 0.1  # on the embedding and on both residual branches
    tie_weights: bool = True  # lm_head and embedding are one matrix
    rotary_base: float = 10_000.0

    def __post_init__(self) -> None:
        """Refuse sizes that cannot make a model."""
        sizes = ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "context")
        for name in sizes:
            value = getattr(self, name)
            if not (type(value) is int or (value is None and name == "d_ff")):
                raise ValueError(f"{name}: expected a whole number, found {value!r}")
        if min(self.vocab_size, self.d_model, self.n_layers, self.n_heads, self.context, self.ffn_width) < 1:
            raise ValueError(f"every size must be at least 1, found {self}")
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"d_model must be a multiple of 2·n_heads (rotary positions turn pairs), found d_model "
                f"{self.d_model} and n_heads {self.n_heads}"
            )
        if self.context > LONGEST:
            raise ValueError(f"context: expected at most {LONGEST:,} tokens, found {self.context:,}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), found {self.dropout}")
        if not 0.0 < self.rotary_base < float("inf"):
            raise ValueError(f"rotary_base: expected a positive finite number, found {self.rotary_base}")

    @property
    def ffn_width(self) -> int:
        """Width of the feed-forward block."""
        return 4 * self.d_model if self.d_ff is None else self.d_ff


@dataclass
class KVCache:
    """Keys and values of the tokens already read, per layer; hand an empty one to `TransformerLM` to start."""

    layers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)  # each (B, h, S, d/h)

    def __len__(self) -> int:
        """Number of tokens already read."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``k`` and ``v`` to one layer and return all that it holds."""
        if layer == len(self.layers):
            self.layers.append((k, v))
        else:
            old_k, old_v = self.layers[layer]
            self.layers[layer] = (torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2))
        return self.layers[layer]

    def reorder(self, rows: torch.Tensor) -> None:
        """Keep the given rows of the batch, for instance the surviving hypotheses of a beam."""
        self.layers = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.layers]


@dataclass
class LMOutput:
    """What a forward pass returns; Hugging Face models return an object with ``logits`` too."""

    logits: torch.Tensor  # (B, T, v)
    cache: KVCache | None = None


def rotary_table(positions: torch.Tensor, width: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotation angles, ``(T, width/2)`` each; ``width`` is that of one head."""
    frequencies = base ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
    angles = positions.float()[:, None] * frequencies  # (T, w/2)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (x_i, x_{i + w/2}) of ``x`` ``(B, h, T, w)`` by the angles of their positions."""
    a, b = x.float().chunk(2, dim=-1)  # (B, h, T, w/2)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)  # (B, h, T, w)


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.layer = layer
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], cache: KVCache | None
    ) -> torch.Tensor:
        """``x`` (B, T, d) to (B, T, d)."""
        B, T, d = x.shape  # noqa: N806
        q, k, v = self.qkv(x).view(B, T, 3, self.n_heads, d // self.n_heads).permute(2, 0, 3, 1, 4)  # (B, h, T, d/h)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, h, S, d/h)
        S = k.shape[2]  # noqa: N806
        mask = None
        if 1 < T < S:  # several new tokens after cached ones: is_causal would align the triangle to the wrong corner
            mask = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=T == S and T > 1)  # (B, h, T, d/h)
        return self.out(y.transpose(1, 2).reshape(B, T, d))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two matrices with a squared ReLU between them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (B, T, d) to (B, T, d); the input is the key of the kNN-LM."""
        return self.down(F.relu(self.up(x)).square())  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-norm layer: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model)
        self.attention = Attention(config, layer)
        self.ffn_norm = nn.LayerNorm(config.d_model)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], cache: KVCache | None
    ) -> torch.Tensor:
        """``x`` (B, T, d) to (B, T, d)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, cache))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))  # type: ignore[no-any-return]


class TransformerLM(nn.Module):
    """A causal language model.

    ``forward`` takes ids ``(B, T)`` int64 and an optional `KVCache` with the tokens before them, and returns an
    `LMOutput` with logits ``(B, T, v)`` and the same cache, extended. Sequences longer than ``config.context`` run,
    but the model never saw such distances.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.d_model)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.embedding.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # residual outputs shrink with depth (GPT-2), so that the sum keeps its size
                residual = name.endswith(("attention.out.weight", "ffn.down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * config.n_layers) ** 0.5 if residual else 0.02)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding, by the name that Hugging Face models give it."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The output embedding, likewise; its output is the logits, nothing follows."""
        return self.lm_head

    def hidden(self, input_ids: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Input of ``lm_head``: the final normalised states, ``(B, T, d)``."""
        start = 0 if cache is None else len(cache)
        positions = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)
        rotary = rotary_table(positions, self.config.d_model // self.config.n_heads, self.config.rotary_base)
        x = self.dropout(self.embedding(input_ids))  # (B, T, d)
        for block in self.blocks:
            x = block(x, rotary, cache)  # (B, T, d)
        return self.final_norm(x)  # type: ignore[no-any-return]

    def forward(self, input_ids: torch.Tensor, cache: KVCache | None = None, logits_to_keep: int = 0) -> LMOutput:
        """Logits of the token after each position, or after the last ``logits_to_keep`` of them."""
        kept = self.hidden(input_ids, cache)[:, -logits_to_keep:]  # (B, T, d), and 0 keeps all
        return LMOutput(self.lm_head(kept), cache)  # (B, T, v)
