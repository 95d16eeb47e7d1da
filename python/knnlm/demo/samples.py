"""A fair sample to score: the beginnings of many documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from knnlm.text.documents import Document
from knnlm.text.tokenizer import Tokenizer

PARTS = 16
"""Documents at least, if there are so many, that validation and test tokens are taken from."""


def first_tokens(documents: Sequence[Document], tokenizer: Tokenizer, count: int) -> list[Document]:
    """The beginnings of documents, `count` tokens in all, of at least `PARTS` documents if there are so many.

    Few whole documents would be a poor sample: one that resembles the store would decide the result.
    """
    encoded = [tokenizer.encode_with_offsets(document.text) for document in documents]
    lengths = np.array([len(tokens) for tokens, _ in encoded])
    most = math.ceil(count / PARTS)
    while np.minimum(lengths, most).sum() < min(count, lengths.sum()):
        most = math.ceil(1.1 * most)
    chosen, left = [], count
    for document, (tokens, offsets) in zip(documents, encoded, strict=True):
        take = min(most, left, len(tokens))
        if take < len(tokens):
            document = replace(document, text=document.text[: int(offsets[take - 1, 1])])
        if take > 0:
            chosen.append(document)
        left -= take
        if left <= 0:
            break
    return chosen
