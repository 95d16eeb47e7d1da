"""Cached: a text's log p_LM and neighbors, found once, so that any lambda, T, k or mixture is arithmetic."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.probability.interpolate import log_p_of_matches
from knnlm.store.temperature import temperature_of
from knnlm.system.own_files import check_readable, replacing_path

ROWS = 4096
"""Rows that are worked on at a time, so that temporaries stay small beside the cache."""

FORMAT = "knnlm-cached-1"


@dataclass
class Cached:
    """What the LM and the store said about each token of a text.

    log_p_lm: (n,) float32.  distances: (n, k) float32, missing +inf (ip: -inf).  match: (n, k) bool: the neighbor's
    value is the target.  offsets: (D + 1,) int64, documents' ranges of tokens.  tokens: (n,) uint32.
    match_shuffled: the same with the store's values permuted, the control.  values: (n, k), if kept.
    words: (D,) words of each document.  failed: names of documents that are left out, as their scores or keys are not
    finite, and why.  settings: how the search was done.  features: (n,) float32 each.
    scored, hits: (n,) log p_kNN of each target at the T and k of `scored_at`, and whether it was retrieved: kept in
    place of distances and match, whose k is then 0, where one T and k were all that was wanted.
    """

    log_p_lm: NDArray[np.float32]
    distances: NDArray[np.float32]
    match: NDArray[np.bool_]
    metric: str = "l2"
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    tokens: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    words: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    names: list[str] = field(default_factory=list)
    match_shuffled: NDArray[np.bool_] | None = None
    values: NDArray[Any] | None = None
    features: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    default_temperature: float | None = None
    model_seconds: float = 0.0
    search_seconds: float = 0.0
    excluded_documents: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    scored: NDArray[np.float32] | None = None
    scored_at: tuple[float, int] | None = None
    hits: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        """Check shapes; without documents the text is one."""
        n = len(self.log_p_lm)
        if self.distances.shape != self.match.shape or self.distances.ndim != 2 or len(self.distances) != n:
            raise ValueError(
                f"cached neighbors: expected distances and match of shape ({n}, k), "
                f"found {self.distances.shape} and {self.match.shape}"
            )
        if self.scored_at is not None:
            self.scored_at = (float(self.scored_at[0]), int(self.scored_at[1]))
        if not len(self.offsets):
            self.offsets = np.array([0, n], np.int64)

    def __len__(self) -> int:
        """Number of scored tokens n."""
        return len(self.log_p_lm)

    @property
    def k(self) -> int:
        """Neighbors kept, or scored, for each token."""
        return int(self.distances.shape[1]) if self.scored_at is None else self.scored_at[1]

    @property
    def retrieved(self) -> float:
        """Share of the targets among their neighbors, 0 to 1."""
        if self.hits is None and self.k:
            self.hits = np.concatenate(
                [self.match[at : at + ROWS].any(axis=1) for at in range(0, max(1, len(self)), ROWS)]
            )
        return float(self.hits.mean()) if self.hits is not None and len(self) else 0.0

    @property
    def temperature(self) -> float:
        """T before tuning: the store's, else the store's rule on these neighbors (`temperature_of`)."""
        if self.default_temperature is not None:
            return self.default_temperature
        return temperature_of(self.distances[:: max(1, len(self) // 4096)])

    def shuffled(self) -> Cached:
        """The same text against the store with its values permuted; raises ValueError if that was not cached."""
        if self.match_shuffled is None:
            raise ValueError("no shuffled control in this cache: ask for it with shuffle_seed when it is made")
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        return Cached(**{**changed, "match": self.match_shuffled, "match_shuffled": None, "values": None, "hits": None})

    def log_p_knn(self, temperature: float, k: int | None = None) -> NDArray[np.float64]:
        """log p_kNN of each target from its nearest k, (n,): -inf if not retrieved, NaN without any neighbor."""
        one: NDArray[np.float64] = self.log_p_knn_by_k(temperature, [self.k if k is None else k])[0]
        return one

    def log_p_knn_by_k(self, temperature: float, ks: list[int]) -> NDArray[np.float64]:
        """The same for several k from one pass over the distances, (len(ks), n); ks ascending, each at most self.k.

        Raises ValueError for other T or k where only those of `scored_at` were kept.
        """
        if self.scored is not None:
            if (temperature, *ks) != self.scored_at:
                raise ValueError(f"expected T and k {self.scored_at}, which were scored, found {temperature} and {ks}")
            return self.scored.astype(np.float64)[None]
        out = np.full((len(ks), len(self)), np.nan)
        for start in range(0, max(1, len(self)), ROWS):
            rows = slice(start, min(len(self), start + ROWS))
            out[:, rows] = log_p_of_matches(
                self.distances[rows], self.match[rows], temperature, self.metric, ks, np.float32
            )
        return out

    def document_sums(self, per_token: NDArray[Any]) -> NDArray[np.float64]:
        """Sum over each document's tokens, (D,)."""
        # Plain differences of a running sum would turn one -inf into NaN for every later document.
        return np.array(
            [per_token[a:b].sum(dtype=np.float64) for a, b in zip(self.offsets, self.offsets[1:], strict=False)]
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, with everything else as JSON in its header."""
        from safetensors.numpy import save_file

        arrays: dict[str, NDArray[Any]] = {}
        plain: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray):
                # safetensors knows no unsigned 64-bit in older releases, and bool as bytes.
                arrays[f.name] = np.ascontiguousarray(value.view(np.uint8) if value.dtype == bool else value)
            elif f.name == "features":
                arrays.update({f"features.{name}": np.ascontiguousarray(a) for name, a in value.items()})
            elif value is not None:
                plain[f.name] = value
        with replacing_path(Path(path)) as partial:
            save_file(arrays, partial, metadata={"format": FORMAT, "plain": json.dumps(plain, sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> Cached:
        """Read what `save` wrote; raises ValueError for anything else."""
        from safetensors import SafetensorError, safe_open

        check_readable(Path(path))
        try:
            with safe_open(str(path), framework="numpy") as f:
                metadata = f.metadata() or {}
                arrays = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"{path}: expected cached neighbors (safetensors), found something else: {error}"
            ) from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path}: expected format {FORMAT}, found {metadata.get('format')}; compute it again")
        plain = json.loads(metadata["plain"])
        features = {n.removeprefix("features."): arrays.pop(n) for n in list(arrays) if n.startswith("features.")}
        for name in ("match", "match_shuffled", "hits"):
            if name in arrays:
                arrays[name] = arrays[name].view(np.bool_)
        return cls(**arrays, **plain, features=features)


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
    document_nll: NDArray[np.float64]
    lm_document_nll: NDArray[np.float64]
    document_tokens: NDArray[np.int64]
    document_words: NDArray[np.int64]

    @property
    def tokens_per_second(self) -> float:
        """Scored tokens a second, model and search one after the other."""
        seconds = self.model_seconds + self.search_seconds
        return self.tokens / seconds if seconds > 0 else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON, without the arrays by document."""
        plain = {name: v for name, v in asdict(self).items() if not isinstance(v, np.ndarray)}
        return {**plain, "tokens_per_second": self.tokens_per_second, "documents": len(self.document_tokens)}


def evaluation(cached: Cached, log_p: NDArray[np.floating[Any]], settings: dict[str, Any]) -> Evaluation:
    """Sum the log-probabilities of any mixture, (n,) in nats, into an `Evaluation` beside those of the LM."""
    nll, lm_nll = -cached.document_sums(log_p), -cached.document_sums(cached.log_p_lm)
    n, words = len(cached), int(cached.words.sum())

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
        retrieved=cached.retrieved,
        model_seconds=cached.model_seconds,
        search_seconds=cached.search_seconds,
        excluded_documents=cached.excluded_documents,
        failed=cached.failed,
        settings=settings,
        document_nll=nll,
        lm_document_nll=lm_nll,
        document_tokens=np.diff(cached.offsets),
        document_words=cached.words,
    )
