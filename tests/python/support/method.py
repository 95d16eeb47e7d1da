"""What tests do with a store and a model in one call: the steps of `knnlm.lm` with their settings given by name."""

from __future__ import annotations

from dataclasses import replace

from knnlm.lm import explain as explaining
from knnlm.lm import generate as generating
from knnlm.lm import score as scoring
from knnlm.lm.combiners import fixed
from knnlm.lm.retriever import Retriever
from knnlm.lm.running_text import RunningText
from knnlm.lm.settings import Settings
from knnlm.probability.blend import CACHE_SIZE
from knnlm.probability.fixed import Fixed
from knnlm.probability.mix import mix


def combiner(settings, blend=None):
    """The combiner of settings, or a blend at their T and k."""
    return fixed(settings) if blend is None else replace(blend, temperature=settings.temperature, k=settings.k)


def retrieve(
    loaded,
    documents,
    store,
    *,
    k,
    exclude="document",
    cache_thetas=(),
    cache_size=CACHE_SIZE,
    cache_metric="ip",
    ngram=None,
    shuffle_seed=None,
    keep_values=False,
    keys=None,
    features=(),
    batch_tokens=None,
    progress=None,
    **search,
):
    """A text with its neighbors."""
    return scoring.retrieve(
        loaded, documents, Retriever(store, Settings(k=k, **search), exclude), keys=keys, features=features,
        running=RunningText(cache_thetas, cache_size, cache_metric, ngram), shuffle_seed=shuffle_seed,
        keep_values=keep_values, batch_tokens=batch_tokens, progress=progress,
    )  # fmt: skip


def score(text, settings, blend=None):
    """The evaluation of a text with its neighbors."""
    return scoring.evaluated(text, combiner(_with_temperature(text, settings), blend))


def log_p(text, settings, blend=None):
    """log p of each token of a text with its neighbors."""
    return text.log_p_of(combiner(_with_temperature(text, settings), blend))


def _with_temperature(text, settings):
    return settings if settings.temperature is not None else replace(settings, temperature=text.temperature)


def evaluate(loaded, documents, store, settings=None, *, blend=None, exclude="document", **options):
    """The evaluation of documents in one pass."""
    settings = scoring.filled(store, settings)
    retriever = Retriever(store, settings, exclude)
    return scoring.evaluate(loaded, documents, retriever, combiner(settings, blend), **options)


def explain(loaded, store, document, settings, *, blend=None, exclude="document", **options):
    """The explanation of a document."""
    retriever = Retriever(store, settings, exclude)
    return explaining.explain(loaded, retriever, combiner(settings, blend), document, **options)


def generate(loaded, prompt, *, store=None, settings=None, blend=None, **options):
    """A continuation, token by token."""
    retriever = made = None
    if store is not None:
        settings = scoring.filled(store, settings)
        retriever, made = Retriever(store, settings), combiner(settings, blend)
    elif blend is not None:
        made = blend
    return generating.generate(loaded, prompt, retriever, made, **options)


def interpolate(log_p_lm, log_p_knn, lambda_):
    """LM and p_kNN of targets."""
    return mix({"lm": log_p_lm, "knn": log_p_knn}, {"lm": 1 - lambda_, "knn": lambda_})


def interpolate_vocabulary(log_p_lm, neighbors, temperature, lambda_):
    """LM and p_kNN of all words."""
    return Fixed(lambda_, temperature).log_p(log_p_lm, neighbors, {})
