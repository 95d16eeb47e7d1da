"""`knnlm build STORE --retrain` without raw keys: the model runs over the store's own documents again."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knnlm.cli.work import load_for, stages
from knnlm.store.opening import open_store

if TYPE_CHECKING:
    from knnlm.cli.options import Loading
    from knnlm.model.load import LoadedModel
    from knnlm.report.progress import Progress


def needs_model(info: dict[str, Any]) -> bool:
    """Whether a new index takes running the model: raw keys of some entries are not kept."""
    return bool(info["entries_with_keys"] < info["n"])


def advice(info: dict[str, Any]) -> str:
    """How a store gets a new index, by what it has: raw keys, a model, or neither."""
    command = f"knnlm build {info['path']} --retrain learns a new index"
    if not needs_model(info):
        return f"{command}, from the raw keys"
    if "model" in (info.get("attributes") or {}):
        return f"{command}, by running the model over the stored documents"
    return "a new index needs raw keys, which this store does not keep: make it again with keep_keys"


def load_of(path: Path, model: str | None, loading: Loading, threads: int | None) -> LoadedModel:
    """The model of a store, for this process or for a worker."""
    with open_store(path) as store:
        return load_for(store, model, loading, threads)


def retrain_store(
    path: Path,
    model: str | None,
    index: dict[str, Any],
    seed: int,
    loading: Loading,
    threads: int | None,
    workers: int,
    batch_tokens: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Give a store a new index; what an interrupted run of the same command staged is not done again. Returns JSON."""
    from knnlm.build.retrain import retrain

    load = functools.partial(load_of, path, model, loading, threads)
    result = retrain(
        path,
        load(),
        **index,
        seed=seed,
        threads=threads,
        workers=workers,
        load=load,
        progress=stages(progress),
        **({} if batch_tokens is None else {"batch_tokens": batch_tokens}),
    )
    return {
        "tokens": result.tokens,
        "parts": result.parts,
        "resumed_parts": result.resumed_parts,
        "build_seconds": result.seconds,
        "unmeasured": result.unmeasured,
    }
