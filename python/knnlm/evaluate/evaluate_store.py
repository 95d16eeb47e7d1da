"""Evaluating a store: perplexity of texts with and without it, with intervals, and how much of them it has itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from knnlm.evaluate.bootstrap import PairedInterval, paired_bootstrap
from knnlm.evaluate.overlap import overlap_share
from knnlm.lm.retriever import Retriever
from knnlm.lm.score import evaluated, score
from knnlm.lm.scored_text import Evaluation
from knnlm.model.loaded import Loaded
from knnlm.probability.combiner import Combiner
from knnlm.store.protocols import has_documents
from knnlm.system.log import log_failed
from knnlm.text.inputs import as_document
from knnlm.text.texts import Progress, Reading, Texts, texts_of

DRAWS = 50_000_000
"""Documents drawn for an interval at most, over all its samples; at least a thousand samples are made."""


@dataclass(frozen=True)
class StoreEvaluation(Evaluation):
    """An `Evaluation` with the certainty of its change, and what the store has of the text.

    interval: perplexity of the model alone (a) and of the mixture (b), and the paired bootstrap intervals over
    documents of their difference and ratio; None for fewer than two documents, or where one of the two is infinite.
    overlap_13gram: share of the tokens in a 13-gram of the store, None where it was not asked for.
    """

    interval: PairedInterval | None = None
    overlap_13gram: float | None = None

    @property
    def change(self) -> float:
        """Perplexity with the store relative to the model alone: -0.1 is ten per cent less."""
        return self.perplexity / self.lm_perplexity - 1

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON, without the arrays by document."""
        interval = (
            None if self.interval is None else {**asdict(self.interval), "significant": self.interval.significant}
        )
        return {**super().to_dict(), "interval": interval, "overlap_13gram": self.overlap_13gram}


def evaluate_store(
    loaded: Loaded,
    documents: Iterable[Any],
    retriever: Retriever,
    combiners: Mapping[str, Combiner],
    *,
    overlap: bool = True,
    scoring: Progress | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, StoreEvaluation]:
    """Perplexity of documents under the model alone and under each combiner of it with the store, by name.

    overlap: whether to look for the text's 13-grams in the store, all of whose values are read for it. progress: called
    with (stage, done, total); scoring: the same for the stage "score" alone. options: as `score.score` (keys,
    batch_tokens).

    Raises:
        IdentityError: the model is not the store's.
        NotFiniteError: the model gives NaN before anything else, or for every document.
    """
    text = score(loaded, documents, retriever, combiners, progress=scoring or progress, **options)
    log_failed(text.failed)
    share = overlap_share(text, retriever.store, progress) if overlap and has_documents(retriever.store) else None
    return {name: _with_interval(evaluated(text, combiner, name), share) for name, combiner in combiners.items()}


def scored_texts(given: Any, tokenizer: Any, reading: Reading | None = None) -> Texts | list[Any]:
    """What is to be scored: `texts_of`, or of a list with token ids among its documents these as they are."""
    if isinstance(given, (list, tuple)) and any(_is_tokens(item) for item in given):
        if reading is not None:
            raise TypeError("reading: expected it with paths, found token ids: leave it out")
        return [as_document(item, tokenizer) for item in given]
    return texts_of(given, reading)


def _is_tokens(item: Any) -> bool:
    if isinstance(item, (list, tuple)):
        return not item or not all(isinstance(part, str) for part in item)
    tokens = isinstance(item, np.ndarray) or hasattr(item, "detach") or hasattr(item, "tokens")
    return tokens and not isinstance(getattr(item, "text", None), str)


def _with_interval(found: Evaluation, share: float | None) -> StoreEvaluation:
    known = {field.name: getattr(found, field.name) for field in fields(Evaluation)}
    return StoreEvaluation(**known, interval=change_interval(found), overlap_13gram=share)


def change_interval(found: Evaluation, *, level: float = 0.95, seed: int = 0) -> PairedInterval | None:
    """The paired bootstrap interval of a perplexity's change by document; None where there is none."""
    read = found.document_tokens > 0
    alone, mixed = found.lm_document_nll[read], found.document_nll[read]
    if len(mixed) < 2 or not (np.isfinite(alone).all() and np.isfinite(mixed).all()):
        return None
    samples = min(10_000, max(1000, DRAWS // len(mixed)))
    return paired_bootstrap(alone, mixed, found.document_tokens[read], samples=samples, level=level, seed=seed)
