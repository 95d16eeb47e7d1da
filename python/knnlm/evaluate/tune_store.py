"""Tuning a store: λ, T and k, and weights of a cache and an n-gram model, are chosen on texts and saved with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from knnlm.evaluate.fit_blend import cache_thetas, fit_blend
from knnlm.evaluate.overlap import overlap_share
from knnlm.evaluate.size_curve import size_curve
from knnlm.evaluate.tune import Curve, Tuned, save_tuned, tune
from knnlm.lm.combiners import blend_name, ngram_of
from knnlm.lm.retrieved_text import RetrievedText
from knnlm.lm.retriever import Retriever
from knnlm.lm.running_text import RunningText
from knnlm.lm.score import check_scores, retrieve
from knnlm.lm.settings import Settings
from knnlm.model.key_spec import KeySpec
from knnlm.model.loaded import Loaded
from knnlm.probability.blend import ORDER, Blend, cache_name
from knnlm.store.protocols import attributes_of, has_documents
from knnlm.store.temperature import default_temperature
from knnlm.system.counted import counted
from knnlm.system.log import LOG, log_failed
from knnlm.text.inputs import TokenDocument

SIZE_TOKENS = 2000
"""Tokens that are scored for the curve against the store's size: it shows a trend, and searches once for each size."""

FEW_TOKENS = 500
"""Fewer of them say little of other text."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class StoreTuning:
    """What was chosen for a store, and on what.

    blends: weights of what was asked to be mixed in, by name. sizes: perplexity against the store's size, None where
    it was not asked for or the text is in the store. excluded: number of documents that are in the store, whose own
    entries were left out. failed: documents for which the model gave NaN, and why. overlap_13gram: share of the tokens
    in a 13-gram of the store, None where it was not asked for. unsaved: why the store could not be changed.
    """

    tuned: Tuned
    blends: dict[str, Blend] = field(default_factory=dict)
    sizes: Curve | None = None
    excluded: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    overlap_13gram: float | None = None
    unsaved: OSError | None = None


def tune_store(
    loaded: Loaded,
    store: Any,
    documents: Callable[[], Iterable[TokenDocument]],
    *,
    k: int = 1024,
    temperature: float | None = None,
    nprobe: int | None = None,
    rerank: str | None = None,
    exact: bool = False,
    cache: bool = False,
    ngram: bool = False,
    keys: KeySpec | None = None,
    threads: int | None = None,
    overlap: bool = True,
    sizes: bool = False,
    scoring: Progress | None = None,
    progress: Progress | None = None,
) -> StoreTuning:
    """Choose λ, T and k of the least perplexity on documents and save them in the store's attributes.

    documents: gives them from the start whenever it is called. k: most neighbors to consider. temperature: fixes T.
    nprobe, rerank, exact: how the store is searched, saved as well. cache, ngram: choose and save also the weights of
    a continuous cache and of a 5-gram model of the store, and of both. sizes: also measure perplexity against the
    store's size. progress: called with (stage, done, total); scoring: the same for the stage "score" alone.

    Raises:
        IdentityError: the model is not the store's.
        NotFiniteError: the model gives NaN.
        ValueError: documents without a token.
    """

    def report(stage: str, done: int, total: int) -> None:
        if progress is not None:
            progress(stage, done, total)

    check_scores(loaded, documents(), store)
    thetas = cache_thetas(default_temperature(store)) if cache else []
    ngrams = None
    if ngram:
        report("5-gram", 0, 1)
        ngrams = ngram_of(store, ORDER, int(loaded.tokenizer.vocab_size))
        report("5-gram", 1, 1)
    heads = _Heads(documents())
    before = (attributes_of(store).get("tuned") or {}) if has_documents(store) else {}
    search = Settings(k=max(1, min(k, len(store))), nprobe=nprobe, rerank=rerank, exact=exact, threads=threads)
    text = retrieve(
        loaded,
        heads,
        Retriever(store, search),
        keys=keys,
        running=RunningText(thetas, metric=store.metric, ngram=ngrams),
        progress=scoring or progress,
    )
    report("tune", 0, 1)
    tuned = tune(text, temperature=temperature)
    share = overlap_share(text, store, progress) if overlap else None
    blends = _blends(text, tuned, thetas, ngram, store.metric)
    report("tune", 1, 1)
    saved = {"nprobe": nprobe, "rerank": rerank, "exact": exact or None}
    unsaved = None
    try:
        save_tuned(store, tuned, **saved, blends={name: blend.to_dict() for name, blend in blends.items()} or None)
    except OSError as error:  # what took minutes to find is shown first
        unsaved = error
    curve = None
    if sizes and unsaved is None and not text.excluded_documents:  # a search leaves out one range: the store's rest
        settings = replace(search, lambda_=tuned.lambda_, temperature=tuned.temperature, k=tuned.k)
        curve = size_curve(loaded, heads.documents, store, settings, progress=progress)
    log_failed(text.failed)
    if len(text) < FEW_TOKENS:
        former = ""
        if {"lambda_", "temperature", "k"} <= before.keys():
            former = f"; before it had λ {before['lambda_']:.3f}, T {before['temperature']:.4g}, k {before['k']}"
        LOG.warning(
            f"λ, T and k were chosen on {counted(len(text), 'token')} only, too few to say much of other text: tune "
            f"again on some thousand{former}"
        )
    return StoreTuning(tuned, blends, curve, text.excluded_documents, text.failed, share, unsaved)


class _Heads:
    """Passes documents on and keeps the first tokens of the first ones, for the curve against the store's size."""

    def __init__(self, documents: Iterable[TokenDocument]) -> None:
        self._passing, self.documents = documents, list[TokenDocument]()

    def __iter__(self) -> Iterator[TokenDocument]:
        left = SIZE_TOKENS
        for document in self._passing:
            head = document.tokens[: min(left, SIZE_TOKENS // 8)]
            if len(head):
                self.documents.append(replace(document, tokens=head, text=None))
                left -= len(head)
            yield document


def _blends(text: RetrievedText, tuned: Tuned, thetas: Sequence[float], ngram: bool, metric: str) -> dict[str, Blend]:
    """Weights of every combination of the asked components, by its name."""
    log_p_knn = text.log_p_knn(tuned.temperature, tuned.k) if thetas or ngram else None
    found = {}
    for with_cache in (False, True)[: 1 + bool(thetas)]:
        for with_ngram in (False, True)[: 1 + ngram]:
            if log_p_knn is not None and (with_cache or with_ngram):
                found[blend_name(with_cache, with_ngram)] = fit_blend(
                    text.log_p_lm,
                    log_p_knn,
                    {theta: text.features[cache_name(theta)] for theta in thetas} if with_cache else None,
                    text.features["ngram"] if with_ngram else None,
                    metric=metric,
                )
    return found
