"""Few words: neighbors hold some hundred words of fifty thousand; only these are mixed one by one, the rest as one.

The weights of a mixture differ by row and not by word, so a word that no neighbor holds is multiplied by what the row
leaves to the model: one number a row. So logits stay where they are, on a GPU too, and little is copied.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knnlm.probability.combiner import Combiner
from knnlm.store.neighbors import Neighbors, missing_value


class FewWords(NamedTuple):
    """The words that the neighbors of q rows hold, and these neighbors with a number of its row in place of each word.

    rows, words, numbers: (n,) int64, of each word that a row's neighbors hold. most: numbers a row has at most.
    """

    neighbors: Neighbors
    rows: NDArray[np.int64]
    words: NDArray[np.int64]
    numbers: NDArray[np.int64]
    most: int


def few_words(found: Neighbors) -> FewWords:
    """The words of neighbors (q, k), numbered in each row in ascending order."""
    kind, missing = found.values.dtype, missing_value(found.values.dtype)
    values = np.where(found.found, found.values, np.array(missing, kind))
    order = np.argsort(values, axis=1, kind="stable")  # a radix sort, where values are of 16 bits
    ordered = np.take_along_axis(values, order, axis=1)
    first = ordered != missing
    first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    number = first.cumsum(axis=1) - 1  # (q, k) int64
    own = np.empty_like(values)
    np.put_along_axis(own, order, np.where(ordered != missing, number, missing).astype(kind), axis=1)
    rows, at = np.nonzero(first)
    near = Neighbors(found.distances, own, found.ids, found.metric)
    return FewWords(near, rows, ordered[rows, at].astype(np.int64), number[rows, at], int(number.max(initial=-1)) + 1)


def mix_in_place(log_p: Tensor, at: Tensor | None, found: Neighbors, combiner: Combiner) -> None:
    """Make log p_LM (n, v) that of the mixture in rows `at` (q,), None: all, given their neighbors (q, k).

    Raises ValueError for a word that the model does not have.
    """
    few, v = few_words(found), log_p.shape[-1]
    if len(few.words) and few.words.max() >= v:
        raise ValueError(
            f"values: the store holds token {few.words.max()}, the model has {v} tokens; "
            "use the model and tokenizer that the store was built with"
        )
    rows = torch.from_numpy(few.rows).to(log_p.device)
    pairs = (rows if at is None else at[rows], torch.from_numpy(few.words).to(log_p.device))
    lm = np.full((len(found.ids), few.most + 1), -np.inf)
    lm[few.rows, few.numbers] = log_p[pairs].cpu().numpy()
    lm[:, -1] = 0.0  # a word that no neighbor holds, less its log p_LM
    mixed = np.asarray(combiner.log_p(lm, few.neighbors, {}), np.float32)
    rest = torch.from_numpy(mixed[:, -1:].copy()).to(log_p.device)
    if at is None:
        log_p += rest
    else:
        log_p[at] += rest
    log_p[pairs] = torch.from_numpy(mixed[few.rows, few.numbers]).to(log_p.device)
