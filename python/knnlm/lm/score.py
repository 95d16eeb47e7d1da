"""Score: log p of every token of documents, under the LM and under combiners of it with a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.lm.collected import Collected
from knnlm.lm.combiners import running_text
from knnlm.lm.retrieved_text import RetrievedText
from knnlm.lm.retriever import Retriever
from knnlm.lm.running_text import RunningText
from knnlm.lm.scored_text import Evaluation, ScoredText, evaluation
from knnlm.lm.settings import Settings, settings_of
from knnlm.lm.stretches import stretches
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec
from knnlm.model.loaded import Loaded
from knnlm.probability.combiner import Combiner
from knnlm.probability.knn import matches
from knnlm.store.protocols import has_documents
from knnlm.store.temperature import stored_temperature

Progress = Callable[[str, int, int], None]


def score(
    loaded: Loaded,
    documents: Iterable[Any],
    retriever: Retriever | None = None,
    combiners: Mapping[str, Combiner] | None = None,
    *,
    keys: KeySpec | None = None,
    keep_keys: bool = False,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    total: int = 0,
) -> ScoredText:
    """Score documents with the LM, and with each combiner of it and the neighbors that the retriever finds.

    documents: objects with `name` and `text` or `tokens`. combiners: by any names; their log p is `ScoredText.log_p` of
    these. keys: how keys are made; default: as the store says. keep_keys: keep all of them, (n, d). total: tokens, for
    the progress alone. Memory: a few numbers a token, whatever k is. A document for which the model gives NaN is left
    out and named in `ScoredText.failed`.

    Raises:
        IdentityError: the store belongs to another model or was made with another arithmetic.
        NotFiniteError: the model gives NaN before it has given anything else, or for every document.
    """
    combiners = dict(combiners or {})
    store = None if retriever is None else retriever.store
    texts = [running_text(combiner, store, int(loaded.tokenizer.vocab_size)) for combiner in combiners.values()]
    kept = Collected(loaded, retriever, keys, progress, total)
    for stretch in kept.each(
        stretches(
            loaded, documents, retriever, keys=keys, features=_features(combiners), running=RunningText.of(texts),
            want_keys=keep_keys, batch_tokens=batch_tokens,
        )
    ):  # fmt: skip
        for name, combiner in combiners.items():
            log_p = combiner.log_p(stretch.log_p_lm, stretch.neighbors, stretch.features, stretch.tokens)
            kept.add({f"log_p.{name}": log_p})
        if stretch.neighbors is not None:
            kept.add({"hits": np.asarray(matches(stretch.neighbors, stretch.tokens).any(axis=1))})
        if keep_keys:
            kept.add({"keys": stretch.keys})
    fields = kept.fields()
    for name in combiners:
        fields["log_p"].setdefault(name, np.zeros(0))
    return ScoredText(**fields)


def retrieve(
    loaded: Loaded,
    documents: Iterable[Any],
    retriever: Retriever,
    *,
    keys: KeySpec | None = None,
    features: Iterable[str] = (),
    running: RunningText | None = None,
    shuffle_seed: int | None = None,
    keep_values: bool = False,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    total: int = 0,
) -> RetrievedText:
    """Score documents with the LM and keep the neighbors of each token, so that settings can be tried.

    features: "entropy" and "max" of p_LM, to be kept; running: gives others. shuffle_seed: also match against a
    permutation of the store's values, the control that keeps distances and token frequencies. keep_values: keep the
    values of all neighbors, not only whether they are the target. Memory: 5 k bytes a token, which move to a temporary
    file when they are many (`growing_array.py`). Else as `score`.
    """
    shuffled = None if shuffle_seed is None else _shuffled(retriever.store, shuffle_seed)
    kept = Collected(loaded, retriever, keys, progress, total)
    for stretch in kept.each(
        stretches(
            loaded, documents, retriever, keys=keys, features=features, running=running,
            batch_tokens=batch_tokens,
        )
    ):  # fmt: skip
        found = stretch.neighbors
        assert found is not None
        kept.add({
            "distances": found.distances.astype(np.float32, copy=False), "match": matches(found, stretch.tokens)
        })  # fmt: skip
        if shuffled is not None:
            # A missing id (-1) reads the last value; the mask takes it out again.
            kept.add({"match_shuffled": (shuffled[found.ids] == stretch.tokens[:, None]) & found.found})
        if keep_values:
            kept.add({"values": found.values})
    held = kept.fields()
    held.setdefault("distances", np.zeros((0, retriever.k), np.float32))
    held.setdefault("match", np.zeros((0, retriever.k), bool))
    proposed = stored_temperature(retriever.store)
    return RetrievedText(**held, metric=retriever.store.metric, default_temperature=proposed)


def evaluate(
    loaded: Loaded,
    documents: Iterable[Any],
    retriever: Retriever,
    combiner: Combiner,
    **options: Any,
) -> Evaluation:
    """Perplexity of documents with a store and without. options: of `score`."""
    return evaluated(score(loaded, documents, retriever, {"p": combiner}, **options), combiner, "p")


def evaluated(scored: ScoredText, combiner: Combiner, name: str | None = None) -> Evaluation:
    """What one combiner makes of a text: scored by that name, or of its neighbors if they are kept."""
    if name is not None:
        log_p = scored.log_p[name]
    elif isinstance(scored, RetrievedText):
        log_p = scored.log_p_of(combiner)
    else:
        raise TypeError("expected a text with its neighbors, or the name that the combiner was scored by")
    return evaluation(scored, log_p, {**scored.settings, **_flat(combiner)})


def filled(store: Any, settings: Settings | None) -> Settings:
    """Settings with T and k: as given, else those of the store (`settings_of`)."""
    if settings is None:
        return settings_of(store)
    if settings.k is not None and settings.temperature is not None:
        return settings
    own = settings_of(store)
    temperature = own.temperature if settings.temperature is None else settings.temperature
    return replace(settings, k=settings.k or own.k, temperature=temperature)


def check_scores(loaded: Loaded, documents: Iterable[Any], store: Any) -> None:
    """Run the model over the first window of text, before work that takes long. Raises NotFiniteError for NaN."""
    from knnlm.model.keys import document_tokens, iterate_as
    from knnlm.text.inputs import TokenDocument

    spec = resolve(loaded, store=store)
    for document in documents:
        tokens = document_tokens(loaded, document)[: spec.window]
        if len(tokens):
            first = TokenDocument(document.name, tokens)
            for _ in iterate_as(loaded, [first], spec, key_dtype="float32"):
                return


def _features(combiners: Mapping[str, Combiner]) -> set[str]:
    return {name for combiner in combiners.values() for name in combiner.features}


def _flat(combiner: Combiner) -> dict[str, Any]:
    """A combiner's settings beside those of the search."""
    settings = combiner.to_dict()
    if "weights" in settings:
        return {"temperature": combiner.temperature, "k": combiner.k, "blend": settings}
    return settings


def _shuffled(store: Any, seed: int) -> NDArray[Any]:
    """The values of a store by id, permuted; the values of deleted entries stay where they are."""
    if not has_documents(store):
        raise ValueError(f"shuffle_seed: expected a store that gives its values, found a {type(store).__name__}")
    values: NDArray[Any] = np.array(store.values(0, store.next_id))
    held = values != np.iinfo(values.dtype).max
    values[held] = np.random.default_rng(seed).permutation(values[held])
    return values
