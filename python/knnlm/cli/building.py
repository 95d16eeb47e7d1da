"""`knnlm build TEXT`: what the command says and prints of it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knnlm.cli.work import load, stages

if TYPE_CHECKING:
    from knnlm.cli.options import Loading, Texts
    from knnlm.model.key_spec import KeySpec
    from knnlm.model.load import LoadedModel
    from knnlm.report.progress import Progress


def build_from_text(
    out: Path,
    overwrite: bool,
    loaded: LoadedModel,
    model: str,
    loading: Loading,
    texts: Texts,
    keys: KeySpec,
    keep_keys: bool,
    index: dict[str, Any],
    settings: dict[str, Any] | None,
    metric: str,
    seed: int,
    threads: int | None,
    workers: int,
    batch_tokens: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Make the store `out`; facts for JSON."""
    from knnlm.build import from_text
    from knnlm.store.datastore import Datastore

    result = from_text.build_from_text(
        out,
        loaded,
        texts,
        keys=keys,
        overwrite=overwrite,
        keep_keys=keep_keys,
        code=index["code"],
        nlist=index["nlist"],
        metric="ip" if metric == "ip" else "l2",
        tuned=settings,
        seed=seed,
        threads=threads,
        workers=workers,
        load=functools.partial(load, model, loading, threads),
        batch_tokens=batch_tokens,
        source=model,
        progress=stages(progress),
    )
    with Datastore.open(out) as store:
        info = store.info()
    names = ("bytes", "bytes_per_entry", "search_bytes_per_entry", "nlist", "code", "generation")
    return {
        "entries": info["n"],
        "tokens": result.tokens,
        "parts": result.parts,
        "resumed_parts": result.resumed_parts,
        "build_seconds": result.seconds,
        "read": texts.summary(),
        "failed": result.failed,
        "unmeasured": result.unmeasured,
        **{name: info[name] for name in names},
    }
