"""Rows: an explanation as rows of text, for a page or a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.lm.explain import OUTSIDE, Explanation, source_contexts


@dataclass(frozen=True)
class NeighborRow:
    """One neighbor of a token: the stored text around it, where it is from and what it weighs (share, 0 to 1)."""

    before: str
    token: str
    after: str
    document: str
    distance: float
    share: float
    right: bool
    id: int = -1


@dataclass(frozen=True)
class TokenRow:
    """One token, the text before and after it, its probability three ways, and its nearest neighbors."""

    before: str
    token: str
    after: str
    document: str
    p_lm: float
    p_knn: float
    p: float
    neighbors: Sequence[NeighborRow]
    position: int = 0


def rows(
    explanation: Explanation,
    tokenizer: Any,
    positions: Iterable[int] | None = None,
    *,
    neighbors: int = 5,
    left: int = 12,
    right: int = 4,
) -> Iterator[TokenRow]:
    """Each token of a text (or those at `positions`) with its nearest neighbors in context, decoded.

    positions: in the text, from `start` of the explanation on. left, right: tokens of context around the target. p_kNN
    is 0 where nothing was found.
    """
    e = explanation
    for position in range(e.start, e.start + len(e)) if positions is None else positions:
        t = position - e.start
        ids = e.neighbors.ids[t, :neighbors]
        ids = ids[ids >= 0]
        contexts = source_contexts(e.store, ids, left, right)  # (m, left + 1 + right)
        near = []
        for i, (id_, context) in enumerate(zip(ids.tolist(), contexts, strict=True)):
            before, token, after = in_context(tokenizer, context, left)
            near.append(
                NeighborRow(
                    before,
                    token,
                    after,
                    e.document_name(int(e.documents[t, i])),
                    float(e.neighbors.distances[t, i]),
                    float(e.weights[t, i]),
                    bool(e.neighbors.values[t, i] == e.tokens[t]),
                    id_,
                )
            )
        window = e.text_tokens[max(0, position - left) : position + right + 1].astype(np.int64)
        before, token, after = in_context(tokenizer, window, min(position, left))
        p_knn = float(e.p_knn[t])
        yield TokenRow(
            before,
            token,
            after,
            e.name,
            float(e.p_lm[t]),
            0.0 if np.isnan(p_knn) else p_knn,
            float(e.p[t]),
            near,
            int(position),
        )


def in_context(tokenizer: Any, tokens: NDArray[np.int64], at: int) -> tuple[str, str, str]:
    """The text before a token, of the token, and after it; -1 in `tokens` is nothing."""
    before = [int(t) for t in tokens[:at] if t != OUTSIDE]
    target = int(tokens[at])
    after = [int(t) for t in tokens[at + 1 :] if t != OUTSIDE]
    # Decoding together keeps white space and characters of several tokens right where that is possible.
    head, middle = tokenizer.decode(before), tokenizer.decode([*before, target])
    whole = tokenizer.decode([*before, target, *after])
    if middle.startswith(head) and whole.startswith(middle) and len(middle) > len(head) and "\ufffd" not in middle:
        return head, middle[len(head) :], whole[len(middle) :]
    return head, tokenizer.token_text(target), tokenizer.decode(after)
