"""What several commands do: load a model, open a store, count tokens, dump."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import numpy as np

from knnlm.cli.console import note, warn
from knnlm.cli.folders import missing

if TYPE_CHECKING:
    from knnlm.build.dump import DumpResult
    from knnlm.cli.options import Loading, Texts
    from knnlm.lm.scored_text import ScoredText
    from knnlm.lm.settings import Settings
    from knnlm.model.key_spec import KeySpec
    from knnlm.model.load import LoadedModel
    from knnlm.report.progress import Progress
    from knnlm.store.datastore import Datastore


def is_store(path: Path) -> bool:
    """Whether the folder has a store's manifest."""
    return path.is_dir() and any(path.glob("manifest-*.json"))


def open_store(path: Path) -> Datastore:
    """The store at `path`; raises FileNotFoundError with what to do where there is none.

    Raises ValueError for attributes that nobody can read: now, and not after the work of a command.
    """
    from knnlm.store.datastore import Datastore

    if not path.exists():
        raise FileNotFoundError(f"expected a store at {path}, found nothing there: {missing(path)}")
    store = Datastore.open(path)
    try:
        _ = store.attributes
    except ValueError:
        store.close()
        raise
    return store


def load(name: str, loading: Loading, threads: int | None) -> LoadedModel:
    """The model by folder or Hugging Face name, torch limited to `threads`."""
    import torch

    from knnlm.model.checkpoint import read_config
    from knnlm.model.load import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    if name.startswith((".", "/", "~")) and not Path(name).exists():  # a name on the hub never looks like this
        raise FileNotFoundError(f"expected a model folder, found nothing at {name}")
    if not Path(name).is_dir() or read_config(name) is None:
        with suppress(ImportError):  # which `load_model` explains
            logging: Any = importlib.import_module("transformers.utils.logging")
            logging.disable_progress_bar()  # it would draw over ours, and into logs
    return load_model(name, loading.device, loading.dtype, trust_remote_code=loading.trust_remote_code)


def load_for(store: Datastore, name: str | None, loading: Loading, threads: int | None) -> LoadedModel:
    """The given model, or the one that the store remembers, in the type of weights that made the store's keys.

    Refuses one that did not write the store. Code of a model is only run if the model is given: whoever made a store
    could have it name any.

    Raises:
        click.UsageError: none is given and none is remembered, or it is gone.
        IdentityError: the model, tokenizer or representation is another.
        ValueError: the store's attributes are not what knnlm writes.
    """
    from knnlm.model.identity import check
    from knnlm.store.attributes import check_attributes

    check_attributes(store)
    remembered = store.attributes.get("model") or {}
    if name is None:
        if loading.trust_remote_code:
            raise click.UsageError(
                "--trust-remote-code runs the code of the model that --model names, found no --model: a store is not "
                "trusted to name one"
            )
        name = remembered.get("source")
        if name is None:
            raise click.UsageError(f"the store {store.path} remembers no model: give it with --model")
        if name.startswith(".") or os.path.isabs(name):  # a folder; a name on the hub never looks like this
            folder = Path(os.path.normpath(Path(store.path).resolve() / name))
            if not folder.exists():
                raise click.UsageError(
                    f"the store {store.path} was written by the model {remembered.get('name')} "
                    f"(fingerprint {str(remembered.get('fingerprint'))[:12]}), expected at {folder}, found nothing "
                    "there: store and model are to be moved together, or give the model with --model"
                )
            name = str(folder)
    loaded = load(name, replace(loading, dtype=loading.dtype or remembered.get("dtype")), threads)
    check(store, loaded)
    return loaded


def key_spec(
    key: str, layer: int, keys: str, window: int | None, context: int | None, autocast: str | None = None
) -> KeySpec:
    """The options of a command as `KeySpec`; codes are made from float32 where raw keys are not kept."""
    from knnlm.model.key_spec import KeySpec

    return KeySpec(key, layer, window, context, "float32" if keys == "none" else keys, autocast)


def resolved(loaded: LoadedModel, keys: KeySpec) -> KeySpec:
    """How keys are made with a model, all of it filled in; says where another key had to be taken than was asked."""
    from knnlm.model.key_choice import resolve

    found = resolve(loaded, keys)
    if found.representation != keys.representation:
        note(
            f"{loaded.name} has no feed-forward module that is known: the input of its output embedding "
            f"({found.representation}) is the key; --key chooses another"
        )
    return found


def key_width(loaded: LoadedModel, keys: KeySpec) -> int:
    """Dimension of the model's keys, from running it on one token."""
    from knnlm.model.keys import iterate
    from knnlm.text.inputs import TokenDocument

    probe = TokenDocument("", np.zeros(1, np.uint32))
    chunks = iterate(loaded, [probe], captures=[(keys.representation, keys.layer)], key_dtype="float32")
    return int(next(chunks).key.shape[1])


def count_tokens(loaded: LoadedModel, texts: Texts, progress: Progress) -> int:
    """Tokens of a text, which is read once for it."""
    task = progress.track("count tokens", unit="tok")
    for _ in texts.tokenised(loaded.tokenizer):
        task.update(texts.tokens, texts.expected_tokens())
    return texts.tokens


def check_lists(entries: int, nlist: int | None) -> None:
    """Raises a usage error for more lists than entries."""
    if nlist is not None and entries < nlist:
        raise click.UsageError(
            f"the text has {entries:,} tokens, fewer than the {nlist:,} lists asked for: "
            "leave out --nlist or the preset, or add text"
        )


def dump_to(
    path: Path,
    loaded: LoadedModel,
    texts: Texts,
    keys: KeySpec,
    kept: str,
    batch_tokens: int | None,
    progress: Progress,
    metric: Literal["l2", "ip"] = "l2",
) -> tuple[Datastore, DumpResult]:
    """A new store at `path` with the keys of the texts, unindexed; they are read as they are needed."""
    from knnlm.build.dump import dump
    from knnlm.model.identity import describe
    from knnlm.store.datastore import Datastore

    keys = resolved(loaded, keys)
    store = Datastore.create(
        path,
        dim=key_width(loaded, keys),
        metric=metric,
        keep_keys=None if kept == "none" else kept,  # type: ignore[arg-type]
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
            progress=texts.callback(progress, "dump"),
        )
        return store, written
    except BaseException:
        store.discard()
        store.close()
        raise


FAILED_SHOWN = 8
"""Documents that failed and are named; the rest is counted."""


def warn_of_failed(failed: Sequence[tuple[str, str]]) -> None:
    """Says which documents were left out because the model gave NaN for them."""
    for _, reason in failed[:FAILED_SHOWN]:
        warn(f"left out: {reason}")
    if len(failed) > FAILED_SHOWN:
        warn(f"left out: {len(failed) - FAILED_SHOWN:,} documents more, for the like")


def blend_text(blend: Mapping[str, Any]) -> str:
    """A blend in one line: weights, and what the cache is."""
    names = {"lm": "model", "knn": "store", "cache": "cache", "ngram": "5-gram"}
    weights = ", ".join(f"{names[name]} {weight:.3f}" for name, weight in blend["weights"].items())
    theta = blend["theta"]
    cache = (
        ""
        if theta is None
        else f"; cache of {blend['size']:,} tokens, θ {theta if theta == 'auto' else f'{theta:.3g}'}"
    )
    return weights + cache


def note_defaults(store: Datastore, settings: Settings, **given: Any) -> None:
    """Says which of λ, T and k nobody chose for this store: neither `given` on the command line nor tuned."""
    tuned = store.attributes.get("tuned") or {}
    shown = {
        "lambda_": f"λ {settings.lambda_:.3f}",
        "temperature": f"T {settings.temperature:.4g}",
        "k": f"k {settings.k}",
    }
    preset = tuned.get("preset")
    unchosen = [text for name, text in shown.items() if given.get(name) is None and (preset or tuned.get(name) is None)]
    if unchosen:
        why = f"are of the preset {preset}" if preset else "are defaults, the store is not tuned"
        note(f"{', '.join(unchosen)} {why}: knnlm tune {store.path} TEXT chooses them on text of yours")


OVERLAP = 0.01  # a larger share of a text's tokens in the store's 13-grams is worth a warning


def overlap_share(text: ScoredText, store: Datastore, progress: Progress) -> float:
    """Share of the scored tokens that lie in a 13-gram of the store."""
    from knnlm.evaluate.overlap import overlap_13gram
    from knnlm.store.entries import values_of_documents

    task = progress.track("overlap", len(store), "tok")
    scored = [text.tokens[rows] for rows in text.documents()]
    return overlap_13gram(scored, values_of_documents(store, task.update))


def warn_of_overlap(share: float) -> None:
    """Say where a text is partly known to the store."""
    if share > OVERLAP:
        warn(
            f"{100 * share:.1f} % of the tokens are in a run of 13 tokens that the store has too: the perplexity is of "
            "text that is partly known, and weights that are chosen on it are too large for other text"
        )
