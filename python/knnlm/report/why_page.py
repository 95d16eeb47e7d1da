"""Why page: texts with what the store made of each token, as one HTML file that needs no network.

Tokens are coloured by how many bits the store changed their probability; one that is chosen shows p_LM, p_kNN, p, its
neighbors in context with document, distance and share, and where they lie beside the query in two of the dimensions.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from knnlm.lm.explain import Explanation
from knnlm.report.page import environment, opening, visible
from knnlm.report.rows import NeighborRow, TokenRow, rows
from knnlm.store.protocols import has_documents
from knnlm.system.terminal import printable

NEIGHBORS = 6
"""Shown of each token."""

JOINED = 8
"""Tokens before a new one that are decoded with it: the white space that joins them is the decoder's to say."""

MOST_DOCUMENTS = 20
"""Listed of those that mattered."""

NOTHING = 1e-12
"""The least probability that a number of bits is told of."""


def why_page(
    title: str, facts: Mapping[str, str], explained: Sequence[Explanation], tokenizer: Any, neighbors: int = NEIGHBORS
) -> str:
    """The page of some explained texts.

    facts: names and values shown on top. tokenizer: ours, which gives the tokens their text. Takes some 300 bytes for
    each neighbor shown, and is made for 5,000 tokens.
    """
    entries: dict[int, int] = {}  # id of an entry -> its number on the page
    shown: list[list[Any]] = []
    texts = [_text(one, tokenizer, neighbors, entries, shown) for one in explained]
    data = {"texts": texts, "entries": shown}
    return (
        environment()
        .get_template("why.html")
        .render(
            title=title,
            facts=facts,
            documents=_documents(explained),
            data=_embedded(data),
            tokens=sum(len(one) for one in explained),
        )
    )


def _text(
    explained: Explanation, tokenizer: Any, neighbors: int, entries: dict[int, int], shown: list[list[Any]]
) -> dict[str, Any]:
    """One text as the page's script reads it; entries that are new are added to `shown`."""
    tokens = []
    before = ""
    pieces = _pieces(tokenizer, explained)
    for t, row in enumerate(rows(explained, tokenizer, neighbors=neighbors, left=24, right=6)):
        before = before if t else opening(row.before)
        places = _places(explained, t, [near.id for near in row.neighbors])
        tokens.append([_clean(pieces[t]), *_numbers(row), [_near(near, place, entries, shown)
                      for near, place in zip(row.neighbors, places, strict=True)]])  # fmt: skip
    return {"name": _clean(explained.name), "start": explained.start, "before": _clean(before), "tokens": tokens}


def _pieces(tokenizer: Any, explained: Explanation) -> list[str]:
    """The text of each token as it reads on; a character of several tokens is that of the last, the others are "·"."""
    start, stop = explained.start, explained.start + len(explained)
    ids = explained.text_tokens.astype(np.int64).tolist()
    pieces, read = list[str](), max(0, start - JOINED)
    known = tokenizer.decode(ids[read:start]).rstrip("\ufffd")
    for at in range(start, stop):
        text = tokenizer.decode(ids[read : at + 1])
        if text.endswith("\ufffd") and at - read < 2 * JOINED and text.startswith(known):
            pieces.append("·")
            continue
        pieces.append(text[len(known) :] if text.startswith(known) else tokenizer.token_text(ids[at]))
        read = max(0, at + 1 - JOINED)
        known = tokenizer.decode(ids[read : at + 1])
    return pieces


def _numbers(row: TokenRow) -> list[float | None]:
    """p_LM, p_kNN, p, and by how many bits the store made the token likelier."""
    bits = float(np.log2(max(row.p, NOTHING) / max(row.p_lm, NOTHING)))
    return [_short(row.p_lm), _short(row.p_knn), _short(row.p), round(bits, 3)]


def _near(near: NeighborRow, place: tuple[float, float], entries: dict[int, int], shown: list[list[Any]]) -> list[Any]:
    if near.id not in entries:
        entries[near.id] = len(shown)
        context = [_in_line(opening(near.before)), _clean(visible(near.token)), _in_line(near.after)]
        shown.append([near.id, _clean(near.document), *context])
    return [entries[near.id], _short(near.distance), _short(near.share), int(near.right), *map(_short, place)]


def _places(explained: Explanation, t: int, ids: Sequence[int]) -> list[tuple[float, float]]:
    """Where neighbors lie beside the query, in the two directions in which they differ most; NaN where no key is."""
    if not len(ids) or not explained.keys.size or not has_documents(explained.store):
        return [(float("nan"), float("nan"))] * len(ids)
    apart = np.asarray(explained.store.reconstruct(ids), np.float32) - explained.keys[t]  # (n, d)
    directions = np.linalg.svd(apart, full_matrices=False)[2][:2]  # (≤ 2, d)
    flat = apart @ directions.T
    flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    return [(float(x), float(y)) for x, y in flat]


def _documents(explained: Sequence[Explanation]) -> list[dict[str, Any]]:
    """Documents by what they did: the sum over all tokens of their share of p_kNN, and of it for the right token."""
    shares: defaultdict[str, float] = defaultdict(float)
    right: defaultdict[str, float] = defaultdict(float)
    for one in explained:
        if not len(one):
            continue
        hit = one.neighbors.values == one.tokens[:, None].astype(one.neighbors.values.dtype)
        for index in np.unique(one.documents[one.documents >= 0]).tolist():
            of_it = np.where(one.documents == index, one.weights, 0.0)
            name = one.document_name(int(index))
            shares[name] += float(of_it.sum())
            right[name] += float((of_it * hit).sum())
    total = max(sum(shares.values()), 1e-9)
    best = sorted(shares, key=lambda name: (-right[name], -shares[name], name))[:MOST_DOCUMENTS]
    return [
        {"name": name, "share": shares[name] / total, "tokens": shares[name], "right": right[name]} for name in best
    ]


def _in_line(text: str) -> str:
    return _clean(re.sub(r"\s*\n\s*", " ⏎ ", text))


def _clean(text: str) -> str:
    return printable(text, keep="\n\t")


def _short(value: float) -> float | None:
    """Four digits are enough to read; what is not finite is null."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _embedded(data: Any) -> str:
    """JSON that stands inside of a script element: nothing in it can end that, or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
