"""Perplexity of documents under LM and datastore: find the neighbours once, mix as often as wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.cached import Cached, Evaluation, evaluation
from knnlm.identity import KeySpec, Loaded, Settings, check, key_spec, settings_of, stored_temperature
from knnlm.interpolate import mix
from knnlm.neighbours import Searchable

__all__ = [
    "Cached",
    "Evaluation",
    "StoredTexts",
    "cache_name",
    "evaluate",
    "excluded_ranges",
    "mixed_log_p",
    "neighbours_of",
    "score",
]

QUERIES = 2048
"""Queries of one search call."""

EXCLUDE = ("document", "entry", "none")


class StoredTexts:
    """Finds whether a text is itself in a store, by name first, then by content.

    A text matches a document whose values are its tokens. Reads the document table once.
    """

    def __init__(self, store: Any) -> None:
        """Index the documents of `store` by name and by length; a store without a document table holds nothing."""
        self._store = store
        self._named: dict[str, list[tuple[int, int]]] = {}
        self._long: dict[int, list[tuple[int, int]]] = {}
        documents = getattr(store, "documents", None)
        for info in documents() if callable(documents) else ():
            span = (int(info.start), int(info.stop))
            self._named.setdefault(info.name, []).append(span)
            self._long.setdefault(span[1] - span[0], []).append(span)

    def find(self, name: str, tokens: NDArray[np.uint32]) -> tuple[int, int] | None:
        """The range of ids that holds exactly these tokens, None if there is none."""
        spans = [s for s in self._named.get(name, ()) if s[1] - s[0] == len(tokens)]
        for start, stop in (*spans, *self._long.get(len(tokens), ())):
            # The first values settle nearly every comparison.
            head = min(stop, start + 32)
            if np.array_equal(self._store.values(start, head), tokens[: head - start]) and np.array_equal(
                self._store.values(start, stop), tokens
            ):
                return start, stop
        return None


def neighbours_of(
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
    features: Sequence[str] = (),
    cache_thetas: Sequence[float] = (),
    cache_size: int = 2000,
    cache_metric: str = "ip",
    batch_tokens: int | None = None,
    dtype: Any = None,
    progress: Callable[[str, int, int], None] | None = None,
    total: int = 0,
) -> Cached:
    """Score documents with the LM and search the neighbours of each token.

    keys: how keys are made; default: as the store says. exclude: where the text is in the store itself (same tokens),
    leave out its whole "document", its own "entry" only, or "none". shuffle_seed: also match against a permutation of
    the store's values, the control that keeps distances and token frequencies. cache_thetas: also log p of the
    continuous cache of each document (Grave et al. 2017), as the feature `cache_name(theta)`. total: tokens, for the
    progress alone. Raises IdentityError if the store belongs to another model.
    """
    from knnlm.keys import document_tokens, iterate

    if exclude not in EXCLUDE:
        raise ValueError(f"exclude: expected one of {', '.join(EXCLUDE)}, found {exclude!r}")
    check(store, loaded, keys)
    spec = (keys or key_spec(store) or KeySpec()).resolved(loaded.context)
    stored = StoredTexts(store) if exclude != "none" else None
    shuffled = None
    if shuffle_seed is not None:
        values: NDArray[Any] = np.array(store.values(0, len(store)))  # type: ignore[attr-defined]
        shuffled = np.random.default_rng(shuffle_seed).permutation(values)

    cache = _CacheColumns(cache_thetas, cache_size, cache_metric)
    rows: dict[str, list[NDArray[Any]]] = {}
    names: list[str] = []
    words: list[int] = []
    lengths: list[int] = []
    span: tuple[int, int] | None = None
    excluded = 0
    model_seconds = search_seconds = 0.0
    done = 0
    chunks = iterate(
        loaded,
        documents,
        captures=[(spec.representation, spec.layer)],
        window=spec.window,
        context=spec.context,
        key_dtype="float32",
        batch_tokens=batch_tokens,
        features=features,
        dtype=dtype,
    )
    while True:
        started = time.perf_counter()
        chunk = next(chunks, None)
        model_seconds += time.perf_counter() - started
        if chunk is None:
            break
        document = chunk.document
        if chunk.start == 0:
            names.append(document.name)
            lengths.append(0)
            words.append(_words(document))
            span = stored.find(document.name, document_tokens(loaded, document)) if stored is not None else None
            excluded += span is not None
        lengths[-1] += len(chunk.tokens)
        started = time.perf_counter()
        for at in range(0, len(chunk.tokens), QUERIES):
            targets = chunk.tokens[at : at + QUERIES]
            found = store.search(
                chunk.key[at : at + QUERIES],
                k,
                nprobe=nprobe,
                rerank=rerank,
                exact=exact,
                exclude=excluded_ranges(span, exclude, chunk.start + at, len(targets)),
                threads=threads,
            )
            part: dict[str, NDArray[Any]] = {
                "distances": found.distances,
                "match": (found.values == targets[:, None]) & found.found,
            }
            if shuffled is not None:
                # A missing id (-1) reads the last value; the mask takes it out again.
                part["match_shuffled"] = (shuffled[found.ids] == targets[:, None]) & found.found
            if keep_values:
                part["values"] = found.values
            for name, array in part.items():
                rows.setdefault(name, []).append(array)
            done += len(targets)
            if progress is not None:
                progress("score", done, total)
        search_seconds += time.perf_counter() - started
        rows.setdefault("tokens", []).append(chunk.tokens)
        rows.setdefault("log_p_lm", []).append(chunk.log_p)
        for name, feature in (*chunk.features.items(), *cache.add(chunk)):
            rows.setdefault(f"features.{name}", []).append(feature)

    joined = {name: _join(rows.pop(name)) for name in list(rows)}
    return Cached(
        log_p_lm=joined.get("log_p_lm", np.zeros(0, np.float32)),
        distances=joined.get("distances", np.zeros((0, k), np.float32)).astype(np.float32, copy=False),
        match=joined.get("match", np.zeros((0, k), bool)),
        metric=store.metric,
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        tokens=joined.get("tokens", np.zeros(0, np.uint32)),
        words=np.array(words, np.int64),
        names=names,
        match_shuffled=joined.get("match_shuffled"),
        values=joined.get("values"),
        features={n.removeprefix("features."): a for n, a in joined.items() if n.startswith("features.")},
        default_temperature=stored_temperature(store),
        model_seconds=model_seconds,
        search_seconds=search_seconds,
        excluded_documents=excluded,
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
    )


def cache_name(theta: float) -> str:
    """Name of the feature that holds log p of the continuous cache with this theta."""
    return f"cache theta={theta:g}"


class _CacheColumns:
    """log p_cache of whole documents, from keys that arrive in chunks."""

    def __init__(self, thetas: Sequence[float], size: int, metric: str) -> None:
        self.thetas, self.size, self.metric = list(thetas), size, metric
        self.chunks: list[Any] = []

    def add(self, chunk: Any) -> list[tuple[str, NDArray[np.float32]]]:
        """The columns of a document that this chunk ends, else nothing."""
        if not self.thetas:
            return []
        self.chunks.append(chunk)
        if not chunk.last:
            return []
        from knnlm.cache import continuous_cache_log_p

        keys = np.concatenate([c.key for c in self.chunks])  # (L, d)
        tokens = np.concatenate([c.tokens for c in self.chunks])  # (L,)
        self.chunks = []
        log_p = continuous_cache_log_p(keys, tokens, self.thetas, self.size, self.metric)  # (thetas, L)
        return [(cache_name(theta), row.astype(np.float32)) for theta, row in zip(self.thetas, log_p, strict=True)]


def _words(document: Any) -> int:
    """Words of a document; one that came as tokens has no words to count."""
    text = getattr(document, "text", None)
    if text is None:
        return 0
    from knnlm.tokens import count_words

    return int(count_words(text))


def _join(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate, letting go of the parts on the way: the distances are most of the memory."""
    out = np.empty((sum(len(p) for p in parts), *parts[0].shape[1:]), parts[0].dtype)
    at = 0
    for i, part in enumerate(parts):
        out[at : at + len(part)] = part
        at += len(part)
        parts[i] = part[:0]
    return out


def excluded_ranges(span: tuple[int, int] | None, exclude: str, start: int, count: int) -> NDArray[np.int64] | None:
    """Id ranges (q, 2) to leave out for the tokens start:start+count of a document stored at span."""
    if span is None:
        return None
    if exclude == "document":
        return np.tile(np.array(span, np.int64), (count, 1))
    own = span[0] + start + np.arange(count, dtype=np.int64)
    return np.stack([own, own + 1], axis=1)


def mixed_log_p(cached: Cached, settings: Settings) -> NDArray[np.floating[Any]]:
    """log p of each token under the mixture, (n,). T: None = the cache's default; k: None = all that are cached."""
    temperature = settings.temperature if settings.temperature is not None else cached.temperature
    k = min(cached.k, settings.k or cached.k)
    return mix(cached.log_p_lm, cached.log_p_knn(temperature, k), settings.lambda_)


def score(cached: Cached, settings: Settings) -> Evaluation:
    """Evaluate cached neighbours with one lambda, T and k: arithmetic only."""
    temperature = settings.temperature if settings.temperature is not None else cached.temperature
    used = {
        **cached.settings,
        "lambda_": settings.lambda_,
        "temperature": temperature,
        "k": min(cached.k, settings.k or cached.k),
    }
    return evaluation(cached, mixed_log_p(cached, settings), used)


def evaluate(
    loaded: Loaded, documents: Iterable[Any], store: Searchable, settings: Settings | None = None, **options: Any
) -> Evaluation:
    """Perplexity of documents with a store. settings: default: what `tune` saved in the store, else the defaults.

    options: as `neighbours_of` (keys, exclude, batch_tokens, progress, ...).
    """
    settings = settings_of(store) if settings is None else settings
    if settings.k is None or settings.temperature is None:
        filled = settings_of(store)
        settings = replace(
            settings,
            k=settings.k or filled.k,
            temperature=filled.temperature if settings.temperature is None else settings.temperature,
        )
    assert settings.k is not None
    cached = neighbours_of(
        loaded,
        documents,
        store,
        k=settings.k,
        nprobe=settings.nprobe,
        rerank=settings.rerank,
        exact=settings.exact,
        threads=settings.threads,
        **options,
    )
    return score(cached, settings)
