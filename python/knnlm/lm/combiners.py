"""Combiners of a store: the one that its settings name, or the blend that `tune` saved with it, and what that needs."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

from knnlm.lm.running_text import RunningText
from knnlm.lm.settings import DEFAULT_LAMBDA, Settings
from knnlm.probability.blend import Blend
from knnlm.probability.combiner import Combiner
from knnlm.probability.continuous_cache import Theta
from knnlm.probability.fixed import Fixed
from knnlm.probability.ngram import KneserNey
from knnlm.store.attributes import check_attributes
from knnlm.store.entries import values_of_documents
from knnlm.store.protocols import attributes_of, has_documents
from knnlm.system.log import LOG


def combiner_of(store: Any, settings: Settings, *, cache: bool = False, ngram: bool = False) -> Combiner:
    """How a store's neighbors are mixed in: with lambda, or with the weights that `tune` saved for a blend.

    settings: with T and k, as `settings_of` fills them in. Raises ValueError where no weights for what is asked were
    saved: they cannot be guessed.
    """
    blend = blend_of(store, cache, ngram)
    if blend is None:
        return fixed(settings)
    assert settings.temperature is not None
    return replace(blend, temperature=settings.temperature, k=settings.k)


def compared(store: Any, settings: Settings, *, cache: bool = False, ngram: bool = False) -> dict[str, Combiner]:
    """What an evaluation sets beside the model alone: "store", and "blended" with a cache and an n-gram model.

    For want of tuned weights a cache without an n-gram model is mixed with the model alone, which is said. Raises as
    `combiner_of` for an n-gram model without.
    """
    found: dict[str, Combiner] = {"store": fixed(settings)}
    if cache and not ngram and "cache" not in saved_blends(store):
        LOG.warning(
            f"no weights of the cache are tuned: it is mixed with the model alone, weight {DEFAULT_LAMBDA}; "
            "tune(text, cache=True) finds weights beside the store (in commands knnlm tune STORE TEXT --cache)"
        )
        found["blended"] = untuned_cache()
    elif cache or ngram:
        found["blended"] = combiner_of(store, settings, cache=cache, ngram=ngram)
    return found


def fixed(settings: Settings) -> Fixed:
    """One lambda for all tokens. Raises ValueError for settings without T."""
    if settings.temperature is None:
        raise ValueError("settings: expected a temperature; take them from settings_of(store)")
    return Fixed(settings.lambda_, settings.temperature, settings.k)


def blend_name(cache: bool, ngram: bool) -> str:
    """The name that a blend is saved under; "" for none."""
    return "+".join(name for name, wanted in (("cache", cache), ("ngram", ngram)) if wanted)


def saved_blends(store: Any) -> dict[str, Any]:
    """Blends that `tune` saved in a store, by name; ValueError for attributes that knnlm did not write."""
    check_attributes(store)
    return (attributes_of(store).get("tuned") or {}).get("blends") or {}


def blend_of(store: Any, cache: bool, ngram: bool) -> Blend | None:
    """The blend that `tune` saved in a store, None if none is asked for.

    Raises ValueError where none was saved: weights cannot be guessed.
    """
    name = blend_name(cache, ngram)
    if not name:
        return None
    saved = saved_blends(store)
    if name not in saved:
        parts = name.split("+")
        options = ", ".join(f"{part}=True" for part in parts)
        flags = " ".join(f"--{part}" for part in parts)
        raise ValueError(
            f"expected weights of {name} that were tuned on validation text, found "
            f"{', '.join(saved) or 'none'} in the store: call tune(text, {options}) "
            f"(in commands knnlm tune STORE TEXT {flags})"
        )
    return Blend(**saved[name])


def untuned_cache(lambda_: float | None = None, temperature: float | None = None) -> Blend:
    """The LM with a continuous cache alone, for want of tuned weights: lambda 0.25, theta = 1/T or "auto".

    Raises ValueError for a lambda outside 0 to 1 or a T that is not positive.
    """
    weight = DEFAULT_LAMBDA if lambda_ is None else lambda_
    if not 0 <= weight <= 1:
        raise ValueError(f"lambda_: expected a weight between 0 and 1, found {weight}")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, found {temperature}")
    theta: Theta = "auto" if temperature is None else 1 / temperature
    return Blend({"lm": 1 - weight, "knn": 0.0, "cache": weight}, theta, metric="l2")


def running_text(combiner: Combiner, store: Any, vocabulary: int) -> RunningText:
    """What gives a combiner its features while a text is read; vocabulary: v of the tokenizer."""
    if not isinstance(combiner, Blend):
        return RunningText()
    ngram = None if combiner.order is None else ngram_of(store, combiner.order, vocabulary)
    thetas = () if combiner.theta is None else (combiner.theta,)
    return RunningText(thetas, combiner.size, combiner.metric, ngram)


_FITTED: weakref.WeakKeyDictionary[Any, tuple[Any, KneserNey]] = weakref.WeakKeyDictionary()


def ngram_of(store: Any, order: int, vocab_size: int) -> KneserNey:
    """The n-gram model of a store's documents, fitted once for each of its generations.

    Raises ValueError for something that has no documents to count.
    """
    if not has_documents(store):
        raise ValueError(f"expected a store with documents to count n-grams of, found {type(store).__name__}")
    key = (store.generation, order, vocab_size)
    known = _FITTED.get(store)
    if known is not None and known[0] == key:
        return known[1]
    model = KneserNey(order).fit(values_of_documents(store), vocab_size)
    _FITTED[store] = (key, model)
    return model
