"""Explain: what a model with a store says of a sequence of ids, token by token, as the model itself reads them.

Unlike `lm.explain`, which reads a text as the store's documents were read, this reads what `generate` has read: a
prompt of any form, without another document start in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knnlm.hf.hooks import Attached
from knnlm.lm.explain import Explanation, explanation_of
from knnlm.model.modules import device_of


@torch.no_grad()
def explain(memory: Attached, ids: Sequence[int], start: int = 1, name: str = "text") -> Explanation:
    """Tokens from `start` on of one sequence (L,), with p_LM, p_kNN, p and neighbors; one pass of the model.

    Its first token follows nothing, so `start` is at least 1. Raises ValueError for another, IndexError for none.
    """
    if not 1 <= start <= len(ids):
        raise ValueError(f"start: expected a position from 1 to {len(ids)}, found {start}")
    module = memory.module
    given = torch.tensor([list(ids)], dtype=torch.int64, device=device_of(module))  # (1, L)
    with memory.alone() as capture:
        logits: Tensor = module(given).logits[0, start - 1 : -1]  # (m, v)
        keys = capture.of_batch(1)[0, start - 1 : -1].float().cpu().numpy()  # (m, d)
    targets = given[0, start:]
    log_p_lm = torch.log_softmax(logits.float(), -1).gather(1, targets[:, None])[:, 0].cpu().numpy()  # (m,)
    tokens = targets.cpu().numpy().astype(np.uint32)
    found = memory.retriever.find(keys)
    return explanation_of(
        tokens,
        log_p_lm,
        memory.combiner.log_p(log_p_lm, found, {}, tokens),
        keys,
        found,
        {},
        memory.combiner,
        memory.retriever,
        name=name,
        start=start,
        text_tokens=np.asarray(ids, np.uint32),
    )


def until_the_end(ids: Sequence[int], start: int, end: Any) -> list[int]:
    """A sequence up to and with the first end of text from `start` on: what follows it in a batch is padding."""
    ends = set(end) if isinstance(end, (list, tuple, set)) else set() if end is None else {int(end)}
    stop = next((i + 1 for i in range(start, len(ids)) if ids[i] in ends), len(ids))
    return [int(id) for id in ids[:stop]]
