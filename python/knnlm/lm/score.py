"""Perplexity of documents under LM and datastore: find the neighbors once, mix as often as wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.lm.blend import CACHE_SIZE, Blend
from knnlm.lm.scored_text import Cached, Evaluation, evaluation
from knnlm.lm.settings import Settings, settings_of
from knnlm.lm.stored_texts import EXCLUDE, StoredTexts, excluded_ranges, search_without, stored_texts
from knnlm.model.identity import check
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec
from knnlm.model.loaded import Loaded
from knnlm.probability.continuous_cache import ContinuousCache
from knnlm.probability.interpolate import log_p_of_matches, matches, mix
from knnlm.probability.mixture import mix_components
from knnlm.store.protocols import Searchable
from knnlm.store.temperature import stored_temperature
from knnlm.system.growing_array import GrowingArray

__all__ = [
    "Cached",
    "Evaluation",
    "StoredTexts",
    "cache_name",
    "check_scores",
    "evaluate",
    "excluded_ranges",
    "mixed_log_p",
    "neighbors_of",
    "score",
    "scored_by",
]

QUERIES = 2048
"""Queries of one search call."""


def neighbors_of(
    loaded: Loaded,
    documents: Iterable[Any],
    store: Searchable,
    *,
    k: int,
    nprobe: int | None = None,
    rerank: str | None = None,
    exact: bool = False,
    threads: int | None = None,
    keys: KeySpec | None = None,
    exclude: str = "document",
    shuffle_seed: int | None = None,
    keep_values: bool = False,
    temperature: float | None = None,
    features: Sequence[str] = (),
    cache_thetas: Sequence[Any] = (),
    cache_size: int = CACHE_SIZE,
    cache_metric: str = "ip",
    ngram: Any = None,
    batch_tokens: int | None = None,
    dtype: Any = None,
    progress: Callable[[str, int, int], None] | None = None,
    total: int = 0,
) -> Cached:
    """Score documents with the LM and search the neighbors of each token.

    keys: how keys are made; default: as the store says. exclude: where the text is in the store itself (same tokens),
    leave out its whole "document", its own "entry" only, or "none". shuffle_seed: also match against a permutation of
    the store's values, the control that keeps distances and token frequencies. temperature: keep only log p_kNN at this
    T and k, 5 bytes a token, where (n, k) distances and matches are 5 k bytes; those move to a temporary file when they
    are many (`spill.py`). cache_thetas: also log p of the continuous cache of each document (Grave et al. 2017), as the
    feature `cache_name(theta)`; ngram: a model with `log_probs`, as the feature "ngram". total: tokens, for the
    progress alone. A document for which the model gives NaN is left out and named in `Cached.failed`.

    Raises:
        IdentityError: the store belongs to another model or was made with another arithmetic.
        NotFiniteError: the model gives NaN before it has given anything else, or for every document.
    """
    from knnlm.model.keys import NotFiniteError, arithmetic, iterate_as

    if exclude not in EXCLUDE:
        raise ValueError(f"exclude: expected one of {', '.join(EXCLUDE)}, found {exclude!r}")
    if temperature is not None and (shuffle_seed is not None or keep_values):
        raise ValueError("a fixed temperature keeps no neighbors: expected no shuffle_seed and no keep_values")
    check(store, loaded, keys)
    spec = resolve(loaded, keys, store)
    stored = stored_texts(store) if exclude != "none" else None
    shuffled = None
    if shuffle_seed is not None:
        stop = getattr(store, "next_id", len(store))
        values: NDArray[Any] = np.array(store.values(0, stop))  # type: ignore[attr-defined]
        held = values != np.iinfo(values.dtype).max  # the values of deleted entries stay where they are
        values[held] = np.random.default_rng(shuffle_seed).permutation(values[held])
        shuffled = values

    whole = _WholeDocuments(cache_thetas, cache_size, cache_metric, ngram)
    columns: dict[str, GrowingArray] = {}
    names: list[str] = []
    words: list[int] = []
    lengths: list[int] = []
    copies: list[tuple[int, int]] = []
    excluded = 0
    failed: list[tuple[str, str]] = []
    failing = -1  # index of the document that is left out
    model_seconds = search_seconds = 0.0
    done = 0

    def keep(part: dict[str, NDArray[Any]]) -> None:
        for name, array in part.items():
            columns.setdefault(name, GrowingArray()).append(array)

    chunks = iterate_as(
        loaded,
        documents,
        spec,
        key_dtype="float32",
        batch_tokens=batch_tokens,
        features=features,
        tolerant=True,
        dtype=arithmetic(store, spec, dtype),
    )
    while True:
        started = time.perf_counter()
        chunk = next(chunks, None)
        model_seconds += time.perf_counter() - started
        if chunk is None:
            break
        document = chunk.document
        if chunk.index == failing:
            continue
        if chunk.bad is not None:
            if not sum(lengths):
                raise NotFiniteError(chunk.bad)
            failing = chunk.index
            failed.append((document.name, chunk.bad))
            if chunk.start:  # what was kept of it
                names.pop(), words.pop(), lengths.pop()
                excluded -= bool(copies)
                whole.forget()
                for column in columns.values():
                    column.truncate(sum(lengths))
            continue
        if chunk.start == 0:
            names.append(document.name)
            lengths.append(0)
            words.append(_words(document))
            copies = stored.find_all(document.name, chunk.all_tokens) if stored is not None else []
            excluded += bool(copies)
        lengths[-1] += len(chunk.tokens)
        started = time.perf_counter()
        for at in range(0, len(chunk.tokens), QUERIES):
            targets = chunk.tokens[at : at + QUERIES]
            found = search_without(
                store,
                chunk.key[at : at + QUERIES],
                k,
                copies,
                exclude,
                chunk.start + at,
                nprobe=nprobe,
                rerank=rerank,
                exact=exact,
                threads=threads,
            )
            match = matches(found, targets)
            if temperature is None:
                keep({"distances": found.distances.astype(np.float32, copy=False), "match": match})
            else:
                log_p = log_p_of_matches(found.distances, match, temperature, found.metric, dtype=np.float32)[0]
                keep({"scored": log_p.astype(np.float32), "hits": np.asarray(match.any(axis=1))})
            if shuffled is not None:
                # A missing id (-1) reads the last value; the mask takes it out again.
                keep({"match_shuffled": (shuffled[found.ids] == targets[:, None]) & found.found})
            if keep_values:
                keep({"values": found.values})
            done += len(targets)
            if progress is not None:
                progress("score", done, total)
        search_seconds += time.perf_counter() - started
        keep({"tokens": chunk.tokens, "log_p_lm": chunk.log_p})
        keep({f"features.{name}": feature for name, feature in (*chunk.features.items(), *whole.add(chunk))})

    if failed and not sum(lengths):
        raise NotFiniteError(failed[0][1])
    joined = {name: column.finish() for name, column in columns.items()}
    tokens = joined.get("tokens", np.zeros(0, np.uint32))
    width = k if temperature is None else 0
    return Cached(
        log_p_lm=joined.get("log_p_lm", np.zeros(0, np.float32)),
        distances=joined.get("distances", np.zeros((len(tokens), width), np.float32)),
        match=joined.get("match", np.zeros((len(tokens), width), bool)),
        metric=store.metric,
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        tokens=tokens,
        words=np.array(words, np.int64),
        names=names,
        match_shuffled=joined.get("match_shuffled"),
        values=joined.get("values"),
        features={n.removeprefix("features."): a for n, a in joined.items() if n.startswith("features.")},
        default_temperature=stored_temperature(store) if temperature is None else temperature,
        model_seconds=model_seconds,
        search_seconds=search_seconds,
        excluded_documents=excluded,
        failed=failed,
        settings={
            "k": k,
            "nprobe": nprobe,
            "rerank": rerank,
            "exact": exact,
            "exclude": exclude,
            "store_size": len(store),
            "model": loaded.name,
            **asdict(spec),
        },
        scored=None if temperature is None else joined.get("scored", np.zeros(0, np.float32)),
        scored_at=None if temperature is None else (temperature, k),
        hits=joined.get("hits"),
    )


def check_scores(loaded: Loaded, documents: Iterable[Any], store: Searchable) -> None:
    """Run the model over the first window of text, before work that takes long. Raises NotFiniteError for NaN."""
    from knnlm.model.keys import arithmetic, document_tokens, iterate_as
    from knnlm.text.inputs import TokenDocument

    spec = resolve(loaded, store=store)
    for document in documents:
        tokens = document_tokens(loaded, document)[: spec.window]
        if len(tokens):
            first = TokenDocument(document.name, tokens)
            for _ in iterate_as(loaded, [first], spec, key_dtype="float32", dtype=arithmetic(store, spec, None)):
                return


def cache_name(theta: float | str) -> str:
    """Name of the feature that holds log p of the continuous cache with this theta."""
    return f"cache theta={theta if isinstance(theta, str) else format(theta, 'g')}"


class _WholeDocuments:
    """Columns that look back into their document: log p_cache, of keys that come in chunks, and log p of the n-gram."""

    def __init__(self, thetas: Sequence[Any], size: int, metric: str, ngram: Any) -> None:
        self.thetas, self.size, self.metric, self.ngram = list(thetas), size, metric, ngram
        self.cache: ContinuousCache | None = None

    def add(self, chunk: Any) -> list[tuple[str, NDArray[np.float32]]]:
        """The columns of a chunk, or of the document that it ends."""
        columns: list[tuple[str, NDArray[np.float32]]] = []
        if self.thetas:
            if self.cache is None:
                self.cache = ContinuousCache(chunk.key.shape[1], self.size, self.metric)
            log_p = self.cache.log_p_and_add(chunk.key, chunk.tokens, self.thetas)  # (thetas, m)
            columns += zip(map(cache_name, self.thetas), log_p.astype(np.float32), strict=True)
        if self.ngram is not None and chunk.last:
            columns.append(("ngram", self.ngram.log_probs(chunk.all_tokens).astype(np.float32)))
        if chunk.last:
            self.forget()
        return columns

    def forget(self) -> None:
        """Begin another document."""
        self.cache = None


def _words(document: Any) -> int:
    """Words of a document; one that came as tokens has no words to count."""
    text = getattr(document, "text", None)
    if text is None:
        return 0
    from knnlm.text.tokenizer import count_words

    return int(count_words(text))


def mixed_log_p(cached: Cached, settings: Settings, blend: Blend | None = None) -> NDArray[np.floating[Any]]:
    """log p of each token under the mixture, (n,). T: None = the cache's default; k: None = all that are cached.

    blend: weights of more components than two (`blend.py`); lambda counts for nothing then.
    """
    temperature = settings.temperature if settings.temperature is not None else cached.temperature
    log_p_knn = cached.log_p_knn(temperature, min(cached.k, settings.k or cached.k))
    if blend is None:
        return mix(cached.log_p_lm, log_p_knn, settings.lambda_)
    components: dict[str, NDArray[Any]] = {"lm": cached.log_p_lm, "knn": log_p_knn}
    if blend.theta is not None:
        components["cache"] = cached.features[cache_name(blend.theta)]
    if blend.order is not None:
        components["ngram"] = cached.features["ngram"]
    return mix_components(components, blend.weights)


def score(cached: Cached, settings: Settings, blend: Blend | None = None) -> Evaluation:
    """Evaluate cached neighbors with one lambda, T and k, or with the weights of a blend: arithmetic only."""
    temperature = settings.temperature if settings.temperature is not None else cached.temperature
    used = {
        **cached.settings,
        "lambda_": settings.lambda_,
        "temperature": temperature,
        "k": min(cached.k, settings.k or cached.k),
        **({} if blend is None else {"blend": blend.to_dict()}),
    }
    return evaluation(cached, mixed_log_p(cached, settings, blend), used)


def evaluate(
    loaded: Loaded,
    documents: Iterable[Any],
    store: Searchable,
    settings: Settings | None = None,
    *,
    blend: Blend | None = None,
    **options: Any,
) -> Evaluation:
    """Perplexity of documents with a store. settings: default: what `tune` saved in the store, else the defaults.

    blend: mix in a continuous cache or an n-gram model as well, with weights that `tune` saved (`blend_of`). options:
    as `neighbors_of` (keys, exclude, batch_tokens, progress, ...). Memory: nothing that grows by k with the text.
    """
    return score(*scored_by(loaded, documents, store, settings, blend=blend, **options), blend)


def scored_by(
    loaded: Loaded,
    documents: Iterable[Any],
    store: Searchable,
    settings: Settings | None = None,
    *,
    blend: Blend | None = None,
    **options: Any,
) -> tuple[Cached, Settings]:
    """What `evaluate` scores: log p_LM, log p_kNN and what a blend needs of each token, and the settings filled in."""
    from knnlm.lm.blend import ngram_of

    settings = settings_of(store) if settings is None else settings
    if settings.k is None or settings.temperature is None:
        filled = settings_of(store)
        settings = replace(
            settings,
            k=settings.k or filled.k,
            temperature=filled.temperature if settings.temperature is None else settings.temperature,
        )
    assert settings.k is not None
    if blend is not None and blend.theta is not None:
        options |= {"cache_thetas": (blend.theta,), "cache_size": blend.size, "cache_metric": blend.metric}
    if blend is not None and blend.order is not None:
        options |= {"ngram": ngram_of(store, blend.order, int(loaded.tokenizer.vocab_size))}
    cached = neighbors_of(
        loaded,
        documents,
        store,
        k=settings.k,
        nprobe=settings.nprobe,
        rerank=settings.rerank,
        exact=settings.exact,
        threads=settings.threads,
        temperature=settings.temperature,
        **options,
    )
    return cached, settings
