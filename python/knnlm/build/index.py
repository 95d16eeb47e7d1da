"""Index: a store gets an index of its entries, or a new one, from raw keys or by running its model again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from knnlm.build.from_text import check_lists
from knnlm.build.one_pass import Progress
from knnlm.build.retrain import RetrainResult, retrain
from knnlm.model.loaded import Loaded
from knnlm.store.attributes import attribute_problems
from knnlm.store.datastore import Datastore
from knnlm.store.new_index import needs_model
from knnlm.store.opening import open_store
from knnlm.system.log import LOG
from knnlm.system.usage import UsageError


def check_index(store: Datastore, *, retrain: bool, nlist: int | None = None, metric: str | None = None) -> None:
    """Raise what is wrong with indexing a store, before anything is done.

    Raises:
        UsageError: another metric than the store's; an index of all entries is there and none is to be learnt again;
            more lists than entries.
        ValueError: no entries; neither the raw keys nor the model that a new index takes.
    """
    n, info = len(store), store.info()
    if metric is not None and metric != store.metric:
        raise UsageError(
            f"{store.path} has the metric {store.metric}: expected it (in commands --metric {store.metric}) or none, "
            f"found {metric}: make the store again for that"
        )
    if not n:
        raise ValueError(f"expected entries to index in {store.path}, found none: give a text that has tokens")
    if store.is_built and not retrain and info["indexed"] == n:
        raise UsageError(
            f"{store.path} has an index of all its entries: give retrain=True (in commands --retrain) for a new one"
        )
    if retrain and needs_model(info) and "model" not in store.attributes:
        raise ValueError(
            f"expected raw keys of all {n:,} entries of {store.path}, or a model that it remembers, found "
            f"{info['entries_with_keys']:,} keys and no model: it was built without keeping them, so no new index can "
            "be learned; build it again with keep_keys=True (in commands --keep-keys, or knnlm dump --keys float16)"
        )
    check_lists(n, nlist if retrain or not store.is_built else None)


def index_store(
    path: Path,
    load: Callable[[], Loaded],
    *,
    again: bool = False,
    code: Any = None,
    nlist: int | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    threads: int | None = None,
    workers: int = 0,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> tuple[float, RetrainResult | None]:
    """Index what is in no list of the store at `path` yet, or with `again` learn lists and codes anew.

    A new index is learnt from raw keys, or where they are not kept by running the model over the stored documents
    (`retrain`); an interrupted run of that goes on where it was. Returns seconds, and what that run did, if there was
    one. load: gives the store's model, and must pickle for `workers`. seed: None = that of the index, or 0. settings:
    the store remembers them as its own; what was tuned for another index is said.

    Raises: as `check_index`, `Datastore.build` and `retrain`.
    """
    with open_store(path) as store:
        check_index(store, retrain=again, nlist=nlist)
        before = _tuned_of(store)
        by_model = again and needs_model(store.info())
        if not by_model:
            started = time.perf_counter()
            store.build(seed=seed, nlist=nlist, code=code, retrain=again, threads=threads, progress=progress)
            seconds = time.perf_counter() - started
            _settle(store, before, settings, again)
            return seconds, None
    done = retrain(
        path,
        load(),
        code=code,
        nlist=nlist,
        seed=seed or 0,
        threads=threads,
        workers=workers,
        load=load,
        progress=progress,
        **({} if batch_tokens is None else {"batch_tokens": batch_tokens}),
    )
    with open_store(path) as store:
        _settle(store, before, settings, again)
    return done.seconds, done


def _tuned_of(store: Datastore) -> Mapping[str, Any]:
    """What was tuned for a store, nothing where somebody else wrote its attributes."""
    attributes = store.attributes
    return {} if attribute_problems(attributes) else attributes.get("tuned") or {}


def _settle(store: Datastore, before: Mapping[str, Any], settings: Mapping[str, Any] | None, again: bool) -> None:
    """Have a store with a new index remember settings, if there are any; say what becomes of those that it had."""
    if settings is not None:
        own = {**settings, "k": min(settings["k"], max(1, len(store)))}
        store.set_attributes({**store.attributes, "tuned": own})
        if before and "preset" not in before:
            LOG.info(
                f"the preset's settings replace the tuned ones ({_text(before)}): tune (in commands knnlm "
                "tune) chooses them again"
            )
    elif before and again:
        LOG.info(
            f"kept {_text(before)}, which were chosen with the former index: tune (in commands knnlm tune) "
            "chooses them again"
        )


def _text(tuned: Mapping[str, Any]) -> str:
    return f"λ {tuned['lambda_']:.3f}, T {tuned['temperature']:.4g}, k {tuned['k']}"
