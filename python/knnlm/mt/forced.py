"""Forced decoding: a model reads pairs with the true translation, for keys and log p_MT of each target token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from knnlm.model.capture import Capture
from knnlm.model.forward import NotFiniteError
from knnlm.model.key_spec import KeySpec
from knnlm.model.modules import autocast, eager, is_compiled
from knnlm.model.translator import IGNORED, Translator
from knnlm.mt.pairs import Pair

POOL = 2048
"""Pairs that are sorted by length at a time, so that a batch has little padding."""


@dataclass(frozen=True)
class ForcedPair:
    """A pair as the decoder was taught it.

    tokens: (L,) uint32, end of sentence included. keys: (L, d) float32, what the decoder had made of source and earlier
    tokens. log_p: (L,) float32, nats, log p_MT of the tokens; empty where they were not asked for. problem: why there
    is none of it.
    """

    pair: Pair
    tokens: NDArray[np.uint32]
    keys: NDArray[np.float32]
    log_p: NDArray[np.float32]
    problem: str | None = None


def forced(
    translator: Translator, pairs: Sequence[Pair], keys: KeySpec, *, scores: bool = False, batch_tokens: int = 4096
) -> Iterator[ForcedPair]:
    """Run the model over pairs, in their order. batch_tokens: of targets and of sources, with padding, at a time.

    A pair that is longer than the model can hold comes without tokens and with its `problem`.
    """
    given = iter(pairs)
    while pool := list(islice(given, POOL)):
        yield from _pool(translator, pool, keys, scores, batch_tokens)


def _pool(
    translator: Translator, pool: list[Pair], keys: KeySpec, scores: bool, batch_tokens: int
) -> Iterator[ForcedPair]:
    read = translator.read([pair.source for pair in pool])
    written = translator.written([pair.target for pair in pool])
    found: dict[int, ForcedPair] = {}
    fit = []
    for i, (source, target) in enumerate(zip(read, written, strict=True)):
        longest = max(len(source), len(target))
        if longest > translator.context:
            problem = f"expected at most {translator.context:,} tokens a side, as the model reads, found {longest:,}"
            found[i] = _nothing(pool[i], problem)
        else:
            fit.append(i)
    fit.sort(key=lambda i: (len(written[i]), len(read[i])))
    batch: list[int] = []
    for i in [*fit, -1]:
        wide = i < 0 or _cells([*batch, i], read, written) > batch_tokens
        if batch and wide:
            found.update(_run(translator, batch, pool, read, written, keys, scores))
            batch = []
        batch.append(i)
    yield from (found[i] for i in range(len(pool)))


def _cells(batch: Sequence[int], read: list[list[int]], written: list[list[int]]) -> int:
    return len(batch) * max(max(len(read[i]), len(written[i])) for i in batch)


@torch.inference_mode()
def _run(
    translator: Translator,
    batch: list[int],
    pool: list[Pair],
    read: list[list[int]],
    written: list[list[int]],
    keys: KeySpec,
    scores: bool,
) -> dict[int, ForcedPair]:
    sources = [read[i] for i in batch]
    ids = translator.batch(sources)
    mask = translator.batch([[1] * len(row) for row in sources], fill=0)
    labels = translator.batch([written[i] for i in batch], fill=IGNORED)  # (B, T)
    with (
        Capture(translator.model, keys.representation, keys.layer) as capture,
        eager(is_compiled(translator.model)),
        autocast(translator.device, keys.autocast),
    ):
        logits = translator.model(input_ids=ids, attention_mask=mask, labels=labels).logits  # (B, T, v)
        states = capture.of_batch(len(batch)).float().cpu().numpy()  # (B, T, d)
    if not np.isfinite(states[(labels != IGNORED).cpu().numpy()]).all():
        raise NotFiniteError(
            f"the model gave NaN for a pair near {pool[batch[0]].name}; run it in another type (dtype='float32')"
        )
    log_p = None
    if scores:
        wanted = labels.clamp(min=0)[..., None]
        log_p = torch.log_softmax(logits.float(), -1).gather(2, wanted)[..., 0].cpu().numpy()
    found = {}
    for row, i in enumerate(batch):
        length = len(written[i])
        own = np.zeros(0, np.float32) if log_p is None else log_p[row, :length].copy()
        tokens = np.asarray(written[i], np.uint32)
        found[i] = ForcedPair(pool[i], tokens, states[row, :length].copy(), own)
    return found


def _nothing(pair: Pair, problem: str) -> ForcedPair:
    return ForcedPair(pair, np.zeros(0, np.uint32), np.zeros((0, 0), np.float32), np.zeros(0, np.float32), problem)
