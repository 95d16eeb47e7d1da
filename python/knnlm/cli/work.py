"""What several commands do: load a model, open a store, count tokens, dump."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knnlm.cli.console import note, warn
from knnlm.system.counted import counted

if TYPE_CHECKING:
    from knnlm.cli.options import Loading
    from knnlm.lm.settings import Settings
    from knnlm.model.key_spec import KeySpec
    from knnlm.model.load import LoadedModel
    from knnlm.report.progress import Progress
    from knnlm.store.datastore import Datastore


def load(
    name: str,
    loading: Loading,
    threads: int | None,
) -> LoadedModel:
    """The model by folder or Hugging Face name, torch limited to `threads`."""
    return _loaded(name, threads, **loading.given())


def _loaded(name: str, threads: int | None, **options: Any) -> LoadedModel:
    import torch

    from knnlm.model.checkpoint import read_config
    from knnlm.model.load import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    if not Path(name).is_dir() or read_config(name) is None:
        with suppress(ImportError):  # which `load_model` explains
            logging: Any = importlib.import_module("transformers.utils.logging")
            logging.disable_progress_bar()  # it would draw over ours, and into logs
    return load_model(name, **options)


def load_for(store: Datastore, name: str | None, loading: Loading, threads: int | None) -> LoadedModel:
    """The given model, or the one that the store remembers; see `knnlm.model.of_store.load_for`."""
    from knnlm.model import of_store

    if name is None and loading.trust_remote_code:
        raise click.UsageError(
            "--trust-remote-code runs the code of the model that --model names, found no --model: a store is not "
            "trusted to name one"
        )
    found: LoadedModel = of_store.load_for(
        store, name, load=functools.partial(_loaded, threads=threads), **loading.given()
    )
    return found


def load_of(path: Path, model: str | None, loading: Loading, threads: int | None) -> LoadedModel:
    """The model of the store at a path, for this process or for a worker."""
    from knnlm.store.opening import open_store

    with open_store(path) as store:
        return load_for(store, model, loading, threads)


def key_spec(
    key: str, layer: int, keys: str, window: int | None, context: int | None, autocast: str | None = None
) -> KeySpec:
    """The options of a command as `KeySpec`; codes are made from float32 where raw keys are not kept."""
    from knnlm.model.key_spec import KeySpec

    return KeySpec(key, layer, window, context, "float32" if keys == "none" else keys, autocast)


TOKENS = ("dump", "add", "score", "overlap", "sizes")
"""Stages that count tokens."""


RUN = ("count tokens", "sample", "model", "encode")
"""Stages of a build that count tokens."""


def stages(progress: Progress) -> Callable[[str, int, int], None]:
    """A bar for each stage of a build that runs the model."""

    bars = {"model": "encode", "sample": "sample keys"}
    begun: list[str] = []  # of the index, which does not say when a stage of it is done

    def show(stage: str, done: int, total: int) -> None:
        if begun and begun[-1] != stage:
            progress.track(begun.pop()).finish()
        if stage in ("lists", "words", "calibrate"):
            begun[:] = [stage]
        if stage == "sample" and not total:  # of the index, which takes some of them
            return
        task = progress.track(bars.get(stage, stage), unit="tok" if stage in RUN else "")
        if stage != "encode" or done >= max(task.done, total):  # "model" has said more of what is on its way
            task.update(done, total)

    return show


def estimating(progress: Progress) -> Callable[[str, int, int], None]:
    """The same for an estimate, whose sample takes so many seconds."""
    units = {"count tokens": "tok", "sample": "s"}
    return lambda stage, done, total: progress.track(stage, unit=units.get(stage, "")).update(done, total)


UNITS = {
    **dict.fromkeys(TOKENS, "tok"),
    "read": "bytes",
    "tokenizer: count": "characters",
    "tokenise": "characters",
}
"""What a stage counts."""


def shown(progress: Progress, **units: str) -> Callable[[str, int, int], None]:
    """A bar for each stage that a function of the package tells of; those of an index build share one.

    units: what a stage counts, where only the command knows it.
    """
    from knnlm.report.index_progress import STAGES, index_progress

    index: list[Callable[[str, int, int], None]] = []

    def show(stage: str, done: int, total: int) -> None:
        if stage in STAGES:
            if not index:
                index.append(index_progress(progress, "index"))
            index[0](stage, done, total)
        else:
            progress.track(stage, unit=(UNITS | units).get(stage, "")).update(done, total)

    return show


def blend_text(blend: Mapping[str, Any]) -> str:
    """A blend in one line: weights, and what the cache is."""
    names = {"lm": "model", "knn": "store", "cache": "cache", "ngram": "5-gram"}
    weights = ", ".join(f"{names[name]} {weight:.3f}" for name, weight in blend["weights"].items())
    theta = blend["theta"]
    cache = (
        ""
        if theta is None
        else f"; cache of {counted(blend['size'], 'token')}, θ {theta if theta == 'auto' else f'{theta:.3g}'}"
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


def warn_of_lambda(lambda_: float | None, blended: bool) -> None:
    """Say that a given λ counts for nothing beside tuned weights."""
    if blended and lambda_ is not None:
        warn("--lambda does not change what is blended in: its weights are those that knnlm tune saved")


OVERLAP = 0.01  # a larger share of a text's tokens in the store's 13-grams is worth a warning


def warn_of_overlap(share: float | None, means: str) -> None:
    """Say where a text is partly known to the store, and what that means for the command."""
    if share is not None and share > OVERLAP:
        warn(
            f"{100 * share:.1f} % of the tokens are in a run of 13 tokens that the store has too: the text is partly "
            f"known, and {means}"
        )
