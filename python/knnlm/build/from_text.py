"""From text: a store made of texts in one pass, whole or not at all; an interrupted build goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from knnlm.build.dump import DumpResult, dump
from knnlm.build.one_pass import OnePassResult, Progress, build_in_one_pass
from knnlm.model.identity import describe
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec
from knnlm.model.keys import iterate
from knnlm.model.loaded import Loaded
from knnlm.store.datastore import Datastore
from knnlm.store.index_choice import check_index_choice, to_code
from knnlm.store.output_folder import clear_leftovers, refuse_existing, refuse_foreign, take_place
from knnlm.store.recall_sample import UNMEASURED
from knnlm.system.counted import counted
from knnlm.system.log import LOG, log_failed
from knnlm.system.making import make_with_parents
from knnlm.system.usage import UsageError
from knnlm.text.inputs import TokenDocument
from knnlm.text.texts import Texts


def building(out: Path) -> Path:
    """Folder of a build in the making: the same in every run, so that the next one finds it."""
    return out.with_name(f".{out.name}.building")


def build_from_text(
    out: Path,
    loaded: Loaded,
    texts: Texts,
    *,
    keys: KeySpec,
    overwrite: bool = False,
    keep_keys: bool = False,
    code: Any = None,
    nlist: int | None = None,
    metric: Literal["l2", "ip"] = "l2",
    tuned: dict[str, Any] | None = None,
    seed: int = 0,
    threads: int | None = None,
    workers: int = 0,
    load: Callable[[], Loaded] | None = None,
    batch_tokens: int | None = None,
    source: str | Path | None = None,
    progress: Progress | None = None,
) -> OnePassResult:
    """Make the store `out`; what an interrupted run of the same text and settings committed is not done again.

    Until it is whole, the store is made beside `out` (`building`), and what is at `out` stays as it was. texts: with
    names that are unique, `stamped` if `add` is to know them again. tuned: settings that the store remembers. source:
    the model as it was named, which must not be replaced. Other arguments: as `build_in_one_pass`.

    Raises:
        ValueError: a choice of index that none can be made with, found before anything is made.
        UsageError: `out` exists and `overwrite` is not given, or to replace it would remove what knnlm did not write,
            an input or the model; fewer tokens than lists.
        Others: as `build_in_one_pass` and `take_place`.
    """
    check_index_choice(code=code, nlist=nlist, metric=metric, seed=seed, threads=threads)
    partial = building(out)
    if partial.is_symlink():
        raise UsageError(f"{partial} is a link: expected an interrupted build, or nothing; remove it")
    clear_leftovers(out, partial)
    refuse_existing(out, overwrite)
    refuse_foreign(out, (*texts.sources, *([] if source is None else [source])))
    if nlist is not None:
        check_lists(count_tokens(loaded, texts, progress), nlist)
    keys = resolved(loaded, keys)
    dim = key_width(loaded, keys)
    to_code(code, dim)
    make_with_parents(out.parent)
    if partial.exists():
        LOG.info(f"{partial}: going on with an interrupted build")
    attributes = describe(loaded, keys, store=out)
    result = build_in_one_pass(
        partial,
        loaded,
        lambda: texts.tokenised(loaded.tokenizer),
        keys=keys,
        dim=dim,
        attributes=attributes if tuned is None else {**attributes, "tuned": tuned},
        code=code,
        nlist=nlist,
        metric=metric,
        keep_keys=keep_keys,
        seed=seed,
        threads=threads,
        workers=workers,
        load=load,
        progress=progress,
        **({} if batch_tokens is None else {"batch_tokens": batch_tokens}),
    )
    log_failed(result.failed)
    if result.duplicates:
        LOG.info(
            f"{counted(result.duplicates, 'document')} with the very words of another one: each is stored, and counts "
            "again"
        )
    if result.unmeasured:
        LOG.info(UNMEASURED)
    take_place(partial, out, overwrite, found_again=True)
    return result


def resolved(loaded: Loaded, keys: KeySpec) -> KeySpec:
    """How keys are made with a model, all of it filled in; says where another key had to be taken than was asked."""
    found = resolve(loaded, keys)
    if found.representation != keys.representation:
        LOG.info(
            f"{loaded.name} has no feed-forward module that is known: the input of its output embedding "
            f"({found.representation}) is the key; representation (in commands --key) chooses another"
        )
    return found


def key_width(loaded: Loaded, keys: KeySpec) -> int:
    """Dimension of the model's keys, from running it on one token."""
    probe = TokenDocument("", np.zeros(1, np.uint32))
    chunks = iterate(loaded, [probe], captures=[(keys.representation, keys.layer)], key_dtype="float32")
    return int(next(chunks).key.shape[1])


def count_tokens(loaded: Loaded, texts: Texts, progress: Progress | None) -> int:
    """Tokens of a text, which is read once for it."""
    for _ in texts.tokenised(loaded.tokenizer):
        if progress is not None:
            progress("count tokens", texts.tokens, texts.expected_tokens())
    return texts.tokens


def check_lists(entries: int, nlist: int | None) -> None:
    """Raises UsageError for more lists than entries."""
    if nlist is not None and entries < nlist:
        raise UsageError(
            f"the text has {counted(entries, 'token')}, fewer than the {counted(nlist, 'list')} asked for: "
            f"leave out nlist={nlist} (in commands --nlist or the preset), or add text"
        )


def dump_texts(
    path: Path,
    loaded: Loaded,
    texts: Texts,
    *,
    keys: KeySpec,
    keep_keys: bool,
    batch_tokens: int | None = None,
    metric: Literal["l2", "ip"] = "l2",
    progress: Progress | None = None,
) -> tuple[Datastore, DumpResult]:
    """A new store at `path` with the keys of texts, unindexed; they are read as they are needed.

    keep_keys: whether they stay once there is an index. Raises as `dump`; nothing is left at `path` to be read then.
    """
    keys = resolved(loaded, keys)
    kept: Any = keys.key_dtype if keep_keys else None
    store = Datastore.create(
        path,
        dim=key_width(loaded, keys),
        metric=metric,
        keep_keys=kept,
        max_value=int(loaded.tokenizer.vocab_size) - 1,
        attributes=describe(loaded, keys, store=path),
    )
    try:
        written = dump(
            loaded,
            texts.tokenised(loaded.tokenizer),
            store,
            keys=keys,
            batch_tokens=batch_tokens,
            tolerant=True,
            progress=texts.counting(progress, "dump"),
        )
    except BaseException:
        store.discard()
        store.close()
        raise
    log_failed(written.failed)
    return store, written
