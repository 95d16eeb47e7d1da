"""Inspection: where each prediction came from, as arrays, as rows for HTML and as a terminal table. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.model.identity import KeySpec, Loaded, Settings, check, resolve
from knnlm.probability.interpolate import knn_weights, log_p_knn, mix
from knnlm.store.neighbors import Neighbors, Searchable
from knnlm.system.terminal import printable

if TYPE_CHECKING:
    from rich.table import Table

OUTSIDE = -1
"""A context position outside of the document."""


@dataclass(frozen=True)
class Explanation:
    """A text's tokens, each one's probability three ways, and the neighbors that made it.

    tokens: (L,) uint32.  log_p_lm: (L,) float32; log_p_knn, log_p: (L,) float64, nats; log_p_knn is NaN where nothing
    was found.  neighbors: (L, k).  weights: (L, k) share of p_kNN.  documents: (L, k) int64, index into the store's
    documents, -1 for missing.  start: position of the first of these tokens in the text.  text_tokens: all of it, (N,).
    """

    tokens: NDArray[np.uint32]
    log_p_lm: NDArray[np.float32]
    log_p_knn: NDArray[np.float64]
    log_p: NDArray[np.floating[Any]]
    neighbors: Neighbors
    weights: NDArray[np.float64]
    documents: NDArray[np.int64]
    name: str
    settings: Settings
    store: Any = field(repr=False)
    start: int = 0
    text_tokens: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32), repr=False)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @property
    def p_lm(self) -> NDArray[np.float64]:
        """p_LM of each token, (L,)."""
        return np.exp(self.log_p_lm.astype(np.float64))

    @property
    def p_knn(self) -> NDArray[np.float64]:
        """p_kNN of each token, (L,); NaN without neighbors."""
        return np.exp(self.log_p_knn)

    @property
    def p(self) -> NDArray[np.float64]:
        """p of each token under the mixture, (L,)."""
        return np.exp(self.log_p.astype(np.float64))

    def document_name(self, index: int) -> str:
        """Name of a document by its index; "" for a missing neighbor, "#index" for a document without a name."""
        if index < 0:
            return ""
        name = self.store.documents()[index].name
        return f"#{index}" if name is None else str(name)

    def contexts(self, neighbors: int = 8, left: int = 12, right: int = 4) -> NDArray[np.int64]:
        """Stored tokens around the nearest neighbors, (L, neighbors, left + 1 + right); see `source_contexts`."""
        return source_contexts(self.store, self.neighbors.ids[:, :neighbors], left, right)


def source_contexts(store: Any, ids: ArrayLike, left: int = 12, right: int = 4) -> NDArray[np.int64]:
    """Values around entries, in their own document: position `left` is the entry's value, its target.

    ids: (...) int64, -1 = missing. Returns (..., left + 1 + right) int64, -1 where the document ends or is missing.
    """
    wanted = np.asarray(ids, np.int64)
    flat = wanted.ravel()
    out = np.full((len(flat), left + 1 + right), OUTSIDE, np.int64)
    documents = store.documents()
    for row, (id_, index) in enumerate(zip(flat.tolist(), store.document_of(flat).tolist(), strict=True)):
        if id_ < 0:
            continue
        start, stop = int(documents[index].start), int(documents[index].stop)
        a, b = max(start, id_ - left), min(stop, id_ + right + 1)
        out[row, a - (id_ - left) : b - (id_ - left)] = store.values(a, b)
    return out.reshape(*wanted.shape, left + 1 + right)


def explain(
    loaded: Loaded,
    store: Searchable,
    document: Any,
    settings: Settings,
    *,
    keys: KeySpec | None = None,
    exclude: str = "document",
    start: int = 0,
    stop: int | None = None,
    dtype: Any = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Explanation:
    """Neighbors of each token of one document; settings as `settings_of` gives them, with T and k.

    document: has `name` and `text` or `tokens`. exclude: as in `neighbors_of`. start, stop: explain these tokens only;
    the model reads up to `stop`, and what it and the store say of them is the same. Memory: some 32 k bytes for each
    explained token. Raises IdentityError if the store belongs to another model, ValueError if T or k is None or
    start < 0.
    """
    from knnlm.lm.stored_texts import search_without, stored_texts
    from knnlm.model.keys import TokenDocument, arithmetic, document_tokens, iterate_as

    if settings.k is None or settings.temperature is None:
        raise ValueError("settings: expected k and temperature; take them from settings_of(store)")
    if start < 0:
        raise ValueError(f"start: expected a position in the text, at least 0, found {start}")
    check(store, loaded, keys)
    spec = resolve(loaded, keys, store)
    tokens = document_tokens(loaded, document)
    copies = stored_texts(store).find_all(document.name, tokens) if exclude != "none" else []
    stop = len(tokens) if stop is None else max(0, min(stop, len(tokens)))
    start = min(start, stop)
    parts: list[Neighbors] = []
    log_p: list[NDArray[np.float32]] = []
    for chunk in iterate_as(
        loaded,
        [TokenDocument(document.name, tokens[:stop])],  # not tokenised again; a token sees only those before it
        spec,
        key_dtype="float32",
        dtype=arithmetic(store, spec, dtype),
    ):
        skipped = max(0, start - chunk.start)
        log_p.append(chunk.log_p[skipped:])
        wanted = chunk.key[skipped:]  # (m, d)
        if len(wanted):
            found = search_without(
                store,
                wanted,
                settings.k,
                copies,
                exclude,
                chunk.start + skipped,
                nprobe=settings.nprobe,
                rerank=settings.rerank,
                exact=settings.exact,
                threads=settings.threads,
            )
            parts.append(found)
        if progress is not None:
            progress("explain", chunk.start + len(chunk.tokens), stop)
    if not parts:
        parts = [store.search(np.zeros((0, store.dim), np.float32), settings.k)]
    found = Neighbors(
        np.concatenate([p.distances for p in parts]),
        np.concatenate([p.values for p in parts]),
        np.concatenate([p.ids for p in parts]),
        store.metric,
    )
    log_p_lm = np.concatenate(log_p) if log_p else np.zeros(0, np.float32)
    explained = tokens[start:stop]
    knn = log_p_knn(found, explained, settings.temperature)
    document_of = getattr(store, "document_of", None)
    return Explanation(
        tokens=explained,
        log_p_lm=log_p_lm,
        log_p_knn=knn,
        log_p=mix(log_p_lm, knn, settings.lambda_),
        neighbors=found,
        weights=knn_weights(found.distances, settings.temperature, found.metric),
        documents=document_of(found.ids) if callable(document_of) else np.full(found.ids.shape, -1, np.int64),
        name=document.name,
        settings=settings,
        store=store,
        start=start,
        text_tokens=tokens,
    )


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


def to_table(
    shown: Iterable[TokenRow], width: int | None = None, neighbors: int | None = None, plain: bool = False
) -> Table:
    """A rich table: one line a token, and under it one line a neighbor.

    width: characters of context before a token; None = what the terminal has room for. neighbors: shown of each token;
    None = all that the rows have. plain: marks the tokens with ‹ › instead of a style, which a pipe does not keep.
    """
    from rich.table import Table

    if width is None:  # so that the token itself is never cut off
        width = min(40, max(12, (shutil.get_terminal_size((120, 24)).columns - 54) * 3 // 5))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    # Cells do not wrap, but these columns give way where the terminal is narrow.
    table.add_column("text, next token marked")
    table.add_column("document", max_width=28)
    table.add_column("distance", justify="right", no_wrap=True, min_width=8)
    table.add_column("share", justify="right", no_wrap=True, min_width=7)
    for number, row in enumerate(shown):
        if number:
            table.add_row()
        table.add_row(_marked(row, width, "bold reverse", plain), _cell(row.document, "dim"))
        table.add_row(_cell(f"p_LM {row.p_lm:.3f}, p_kNN {row.p_knn:.3f}, p {row.p:.3f}", "dim"))
        for near in row.neighbors[:neighbors]:
            table.add_row(
                _cell("  ")
                + _marked(near, width - 2, "bold green underline" if near.right else "bold underline", plain),
                _cell(near.document),
                f"{near.distance:.4g}",
                f"{100 * near.share:.1f} %",
            )
    return table


def _cell(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(printable(text), style, no_wrap=True, overflow="ellipsis")


def _marked(row: TokenRow | NeighborRow, width: int, style: str, plain: bool) -> Any:
    from rich.text import Text

    token = _one_line(row.token if row.token.strip() else row.token.replace(" ", "␣"))
    token = f"‹{token}›" if plain else token
    before, after = _one_line(row.before), _one_line(row.after)
    before = "…" + before[1 - width :] if len(before) > width else before
    after = after[: width // 3 - 1] + "…" if len(after) > width // 3 else after
    return Text.assemble((before, "dim"), (token, style), (after, "dim"), no_wrap=True, overflow="ellipsis")


def _one_line(text: str) -> str:
    return printable(text.replace("\n", "⏎").replace("\t", " ").replace("\r", " "))
