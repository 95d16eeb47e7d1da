"""`knnlm build TEXT`: one pass from text to an indexed store; an interrupted build goes on where it was."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knnlm.cli.console import UNMEASURED, note, refuse_existing, refuse_foreign
from knnlm.cli.folders import clear_leftovers, take_place
from knnlm.cli.work import check_lists, count_tokens, key_width, load, resolved, warn_of_failed

if TYPE_CHECKING:
    from knnlm.cli.options import Loading, Texts
    from knnlm.model.key_spec import KeySpec
    from knnlm.model.load import LoadedModel
    from knnlm.report.progress import Progress


def building(out: Path) -> Path:
    """Folder of a build in the making: the same in every run, so that the next one finds it."""
    return out.with_name(f".{out.name}.building")


def stages(progress: Progress) -> Callable[[str, int, int], None]:
    """A bar for each stage of a build that runs the model."""

    def show(stage: str, done: int, total: int) -> None:
        unit = "tok" if stage in ("encode", "count tokens") and total != 0 else ""
        progress.track(stage, unit=unit).update(done, total)

    return show


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
    """Make the store `out`; what an interrupted run of the same command committed is not done again. Facts for JSON."""
    from knnlm.build.one_pass import build_in_one_pass
    from knnlm.model.identity import describe
    from knnlm.store.datastore import Datastore

    partial = building(out)
    if partial.is_symlink():
        raise click.UsageError(f"{partial} is a link: expected an interrupted build, or nothing; remove it")
    clear_leftovers(out, partial)
    refuse_existing(out, overwrite)
    refuse_foreign(out, (*texts.sources, model))
    if index["nlist"] is not None:
        check_lists(count_tokens(loaded, texts, progress), index["nlist"])
    out.parent.mkdir(parents=True, exist_ok=True)
    if partial.exists():
        note(f"{partial}: going on with an interrupted build")
    keys = resolved(loaded, keys)
    attributes = describe(loaded, keys, store=out)
    result = build_in_one_pass(
        partial,
        loaded,
        lambda: texts.tokenised(loaded.tokenizer),
        keys=keys,
        dim=key_width(loaded, keys),
        attributes=attributes if settings is None else {**attributes, "tuned": settings},
        code=index["code"],
        nlist=index["nlist"],
        metric="ip" if metric == "ip" else "l2",
        keep_keys=keep_keys,
        seed=seed,
        threads=threads,
        workers=workers,
        load=functools.partial(load, model, loading, threads),
        progress=stages(progress),
        **({} if batch_tokens is None else {"batch_tokens": batch_tokens}),
    )
    warn_of_failed(result.failed)
    if result.unmeasured:
        note(UNMEASURED)
    take_place(partial, out, overwrite, found_again=True)
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
