"""Build: parallel text to a store, an entry for each target token, a document for each pair."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from knnlm.model.identity import check, describe
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec, key_spec
from knnlm.model.translator import Translator
from knnlm.mt.forced import forced
from knnlm.mt.pairs import Pair
from knnlm.store.datastore import Datastore
from knnlm.store.output_folder import place_of, whole_folder
from knnlm.text.texts import Progress


@dataclass(frozen=True)
class BuildResult:
    """What became of parallel text. failed: (name, why) of pairs that the model cannot hold, which are left out."""

    pairs: int
    tokens: int
    seconds: float
    failed: list[tuple[str, str]] = field(default_factory=list)


def build_from_pairs(
    out: str | os.PathLike[str],
    translator: Translator,
    pairs: Sequence[Pair],
    *,
    keys: KeySpec | None = None,
    keep_keys: Literal["float16", "float32"] | None = None,
    overwrite: bool = False,
    code: Literal["small", "flat"] | tuple[int, int] | None = None,
    nlist: int | None = None,
    metric: Literal["l2", "ip"] = "l2",
    seed: int = 0,
    threads: int | None = None,
    batch_tokens: int = 4096,
    source: str | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Write an indexed store of parallel text (Khandelwal et al., ICLR 2021), whole or not at all.

    The key of a target token is what the decoder had made of the source and the tokens before it, its value the token;
    the end of sentence is one of them. Each pair is a document, named by file and line, with its source beside it.

    Raises:
        UsageError: something is at `out` and `overwrite` is not given.
        ValueError: no pair that the model can hold.
    """
    started = time.perf_counter()
    spec = resolve(translator, keys or KeySpec())
    place = place_of(Path(out))
    with whole_folder(place, overwrite) as new:
        store = Datastore.create(
            new,
            dim=_width(translator, spec),
            metric=metric,
            keep_keys=keep_keys,
            max_value=translator.tokenizer.vocab_size - 1,
        )
        with store:
            store.set_attributes({**describe(translator, spec, source=source, store=place), **_languages(translator)})
            tokens, stored, failed = _add(translator, pairs, store, spec, batch_tokens, progress)
            store.commit()
            store.build(seed=seed, threads=threads, code=code, nlist=nlist)
    return BuildResult(stored, tokens, time.perf_counter() - started, failed)


def add_pairs(translator: Translator, pairs: Iterable[Pair], store: Datastore) -> BuildResult:
    """Add pairs to a store that this model has written, in one commit."""
    started = time.perf_counter()
    check(store, translator)
    spec = resolve(translator, key_spec(store))
    try:
        tokens, stored, failed = _add(translator, list(pairs), store, spec, 4096, None)
    except BaseException:
        store.discard()
        raise
    store.commit()
    return BuildResult(stored, tokens, time.perf_counter() - started, failed)


def content_of(pair: Pair) -> str:
    """SHA-256 of both sides, by which a pair is known again."""
    return hashlib.sha256(f"{pair.source}\0{pair.target}".encode()).hexdigest()


def _add(
    translator: Translator,
    pairs: Sequence[Pair],
    store: Datastore,
    spec: KeySpec,
    batch_tokens: int,
    progress: Progress | None,
) -> tuple[int, int, list[tuple[str, str]]]:
    used = {document.name for document in store.documents()}
    failed: list[tuple[str, str]] = []
    tokens = stored = 0
    for number, one in enumerate(forced(translator, pairs, spec, batch_tokens=batch_tokens), 1):
        if one.problem is not None:
            failed.append((one.pair.name, one.problem))
            continue
        name, again = one.pair.name, 1
        while name in used:
            again += 1
            name = f"{one.pair.name} ({again})"
        used.add(name)
        metadata = {"source": one.pair.source, "sha256": content_of(one.pair)}
        store.add(one.keys, one.tokens, document=name, metadata=metadata)
        tokens, stored = tokens + len(one.tokens), stored + 1
        if progress is not None and (number % 256 == 0 or number == len(pairs)):
            progress("pairs", number, len(pairs))
    if not stored:
        why = f": {failed[0][0]}: {failed[0][1]}" if failed else ""
        raise ValueError(f"pairs: expected at least one that the model can hold, found none of {len(pairs):,}{why}")
    return tokens, stored, failed


def _width(translator: Translator, spec: KeySpec) -> int:
    """Numbers of a key, d, by asking the model for one."""
    (one,) = forced(translator, [Pair("a", "a")], spec)
    return int(one.keys.shape[1])


def _languages(translator: Translator) -> dict[str, Any]:
    original = translator.tokenizer.original
    named = {"source_lang": getattr(original, "src_lang", None), "target_lang": getattr(original, "tgt_lang", None)}
    return {"task": "translation", **{name: value for name, value in named.items() if value is not None}}
