"""Scored text: documents with log p of each token, and what perplexity is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(kw_only=True)
class ScoredText:
    """What the LM, and combiners, say of each token of a text of D documents, n tokens in all.

    log_p_lm: (n,) float32, nats.  tokens: (n,) uint32.  offsets: (D + 1,) int64, ranges of tokens of the documents.
    words: (D,) words of each.  names: of the documents.  log_p: (n,) for each combiner, by name.  hits: (n,), whether
    the token is among its neighbors.  keys: (n, d) float32, if they were asked for.  features: (n,) float32 each.
    failed: names of documents that are left out, as their scores or keys are not finite, and why.  settings: how it was
    scored.  excluded_documents: how many are in the store themselves and were left out of the search for their tokens.
    """

    log_p_lm: NDArray[np.float32]
    tokens: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    words: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    names: list[str] = field(default_factory=list)
    log_p: dict[str, NDArray[np.floating[Any]]] = field(default_factory=dict)
    hits: NDArray[np.bool_] | None = None
    keys: NDArray[np.float32] | None = None
    features: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    excluded_documents: int = 0
    model_seconds: float = 0.0
    search_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Without documents the text is one."""
        if not len(self.offsets):
            self.offsets = np.array([0, len(self.log_p_lm)], np.int64)

    def __len__(self) -> int:
        """Number of scored tokens n."""
        return len(self.log_p_lm)

    @property
    def retrieved(self) -> float:
        """Share of the tokens that are among their neighbors, 0 to 1."""
        return float(self.hits.mean()) if self.hits is not None and len(self) else 0.0

    def documents(self) -> list[slice]:
        """The tokens of each document, (D,) slices."""
        return [slice(int(a), int(b)) for a, b in zip(self.offsets, self.offsets[1:], strict=False)]

    def document_sums(self, per_token: NDArray[Any]) -> NDArray[np.float64]:
        """Sum over each document's tokens, (D,)."""
        # Plain differences of a running sum would turn one -inf into NaN for every later document.
        return np.array([per_token[rows].sum(dtype=np.float64) for rows in self.documents()])


@dataclass(frozen=True)
class Evaluation:
    """A text scored by the LM and by the mixture. Perplexities are per token unless they say word.

    document_nll, lm_document_nll: (D,) negative log-likelihood in nats; document_tokens, document_words: (D,).
    retrieved: share of targets among their neighbors.  failed: documents that are left out, and why.
    tokens_per_second: of both parts together.
    """

    tokens: int
    words: int
    perplexity: float
    lm_perplexity: float
    word_perplexity: float | None
    lm_word_perplexity: float | None
    retrieved: float
    model_seconds: float
    search_seconds: float
    excluded_documents: int
    failed: list[tuple[str, str]]
    settings: dict[str, Any]
    document_nll: NDArray[np.float64] = field(repr=False)
    lm_document_nll: NDArray[np.float64] = field(repr=False)
    document_tokens: NDArray[np.int64] = field(repr=False)
    document_words: NDArray[np.int64] = field(repr=False)

    @property
    def tokens_per_second(self) -> float:
        """Scored tokens a second, model and search one after the other."""
        seconds = self.model_seconds + self.search_seconds
        return self.tokens / seconds if seconds > 0 else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON, without the arrays by document."""
        plain = {name: v for name, v in asdict(self).items() if not isinstance(v, np.ndarray)}
        return {**plain, "tokens_per_second": self.tokens_per_second, "documents": len(self.document_tokens)}


def evaluation(scored: ScoredText, log_p: NDArray[np.floating[Any]], settings: dict[str, Any]) -> Evaluation:
    """Sum the log-probabilities of any mixture, (n,) in nats, into an `Evaluation` beside those of the LM."""
    nll, lm_nll = -scored.document_sums(log_p), -scored.document_sums(scored.log_p_lm)
    n, words = len(scored), int(scored.words.sum())

    def per(total: Any, units: int) -> float:
        with np.errstate(over="ignore"):
            return float(np.exp(total.sum() / units)) if units else float("nan")

    return Evaluation(
        tokens=n,
        words=words,
        perplexity=per(nll, n),
        lm_perplexity=per(lm_nll, n),
        word_perplexity=per(nll, words) if words else None,
        lm_word_perplexity=per(lm_nll, words) if words else None,
        retrieved=scored.retrieved,
        model_seconds=scored.model_seconds,
        search_seconds=scored.search_seconds,
        excluded_documents=scored.excluded_documents,
        failed=scored.failed,
        settings=settings,
        document_nll=nll,
        lm_document_nll=lm_nll,
        document_tokens=np.diff(scored.offsets),
        document_words=scored.words,
    )
