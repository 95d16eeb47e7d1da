"""Translate: texts through the model's own `generate`, in batches of similar length; an attached store counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from knnlm.model.translator import Translator


@torch.no_grad()
def translate(
    translator: Translator, texts: Sequence[str], *, num_beams: int = 4, batch_size: int = 32, **options: Any
) -> list[str]:
    """Translations of texts, in their order.

    num_beams, options: of `generate` of transformers; where they say no length, a translation has at most half as many
    tokens more than the longest text of its batch, and ten. batch_size: texts at a time.

    Raises ValueError for an empty text, or one that is longer than the model can hold; TypeError for one string.
    """
    if isinstance(texts, str):
        raise TypeError("texts: expected a list of texts, found one string: write [text]")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise ValueError(f"texts: expected text, found text {number} empty: leave it out")
    rows = translator.read(texts) if len(texts) else []
    for text, row in zip(texts, rows, strict=True):
        if len(row) > translator.context:
            raise ValueError(
                f"texts: expected at most {translator.context:,} tokens, as the model reads, found {len(row):,}: "
                f"cut {text[:40]!r}"
            )
    model: Any = translator.model
    options = {"num_beams": num_beams, "do_sample": False, "pad_token_id": translator.pad, **options}
    limited = "max_new_tokens" in options or "max_length" in options
    found = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        ids = translator.batch([rows[i] for i in batch])
        mask = translator.batch([[1] * len(rows[i]) for i in batch], fill=0)
        most = {} if limited else {"max_new_tokens": min(translator.context - 1, int(1.5 * ids.shape[1]) + 10)}
        written = model.generate(input_ids=ids, attention_mask=mask, **options, **most)
        for i, row in zip(batch, written.tolist(), strict=True):
            found[i] = translator.tokenizer.decode(row)
    return found
