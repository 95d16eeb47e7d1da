"""`knnlm build`: an index for a dumped store, or a whole store from text."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from knnlm.cli.console import Command, duration, note, print_json, result, size
from knnlm.cli.options import (
    Loading,
    Texts,
    TextSource,
    as_json,
    code_options,
    kept_keys,
    loading_options,
    overwrite,
    seed,
    text_options,
    threads,
    window_options,
)
from knnlm.cli.options import (
    metric as metric_option,
)
from knnlm.cli.out_folder import OutFolder
from knnlm.cli.work import estimating, key_spec, load, load_for, load_of, shown, stages
from knnlm.store.new_index import needs_model
from knnlm.store.opening import is_store, open_store
from knnlm.store.output_folder import refuse_existing, refuse_foreign
from knnlm.system.counted import counted
from knnlm.text.texts import Reading

if TYPE_CHECKING:
    from knnlm.build.one_pass import OnePassResult
    from knnlm.build.retrain import RetrainResult


def _code(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """A product quantiser as (M, BITS), or a word."""
    if value is None or value in ("small", "flat"):
        return value
    try:
        m, bits = (int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected two numbers such as 64,8, small or flat, found {value!r}") from None
    return m, bits


@click.command("build", cls=Command)
@click.argument("source", nargs=-1, required=True, type=TextSource())
@click.option(
    "--model",
    help="Model folder or Hugging Face name: SOURCE is text then, or with --retrain a store.  [default for a store: "
    "the one that it remembers]",
)
@click.option("--out", type=OutFolder(), help="Output folder of a store made from text.")
@click.option("--preset", type=click.Choice(("paper", "small")), help="paper: IVF4096, PQ 64 × 8 bit, nprobe 32, "
              "k 1024, T 1. small: the least bytes.")  # fmt: skip
@click.option("--nlist", type=click.IntRange(min=1), help="Number of lists.  [default: by the number of entries]")
@click.option(
    "--code",
    metavar="M,BITS|small|flat",
    callback=_code,
    help="Code of an entry: M parts of BITS bits, the least bytes, or one level of 4 bits.  [default: two levels]",
)
@click.option(
    "--retrain",
    is_flag=True,
    help="Learn lists and codes again for a store that has an index: from its raw keys, or, if they are not kept, by "
    "running the model over its documents.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Processes that run the model, each with its own copy and --threads threads; without, they share the cores. "
    "On another number of threads a key may differ in its last bits: give --threads for the bytes of a build without "
    "workers.",
)
@click.option("--dry-run", is_flag=True, help="Only say how many tokens, minutes, and bytes on disk and in memory.")
@text_options
@code_options
@metric_option
@window_options
@seed
@loading_options
@threads
@overwrite
@as_json
def command(
    source: tuple[str, ...],
    model: str | None,
    out: Path | None,
    metric: Literal["l2", "ip"] | None,
    preset: str | None,
    nlist: int | None,
    code: Any,
    retrain: bool,
    workers: int,
    dry_run: bool,
    reading: Reading,
    key: str,
    layer: int,
    keys: str | None,
    keep_keys: bool,
    autocast: str | None,
    window: int | None,
    context: int | None,
    batch_tokens: int | None,
    seed: int,
    loading: Loading,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Index a store that `knnlm dump` wrote, or make an indexed store from text.

    From text, keys are encoded in memory, part by part, and raw keys are not written unless asked for (--keep-keys),
    but for 256 that recall is measured with, until the store is finished. Such a build that was killed goes on where it
    was when the same command is run again, and ends with the same bytes if the model runs on as many threads. So does
    --retrain of a store without raw keys, which is searched with its old index until then.

    \b
    Examples:
      knnlm build store
      knnlm build books/ --model model --out store
      knnlm build books/ --model model --dry-run
      knnlm build store --retrain
    """
    from knnlm.build.from_text import build_from_text
    from knnlm.build.index import check_index, index_store
    from knnlm.build.presets import preset_of
    from knnlm.report.progress import Progress

    kept = kept_keys(keys, keep_keys)
    index, settings = preset_of(preset, nlist, code)
    # Without --seed, an index that is there keeps its own.
    said = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    given = click.get_current_context().get_parameter_source("seed") in said
    with Progress(json=as_json) as progress:
        if model is None or (retrain and len(source) == 1 and is_store(Path(source[0]))):
            path = _single_store(source, out)
            with open_store(path) as store:
                check_index(store, retrain=retrain, nlist=index["nlist"], metric=metric)
                by_model = retrain and needs_model(store.info())
                if dry_run:
                    from knnlm.build.estimate import of_retraining, of_store

                    if by_model:
                        loaded = load_for(store, model, loading, threads)
                        estimate = of_retraining(store, loaded, index, batch_tokens, threads, estimating(progress))
                    else:
                        estimate = of_store(store, index, threads)
                    _show_estimate(estimate, as_json)
                    return
            if model is not None and not by_model:
                note(f"{path} keeps its raw keys: the model is not run")
            seconds, made = index_store(
                path,
                functools.partial(load_of, path, model, loading, threads),
                again=retrain,
                **index,
                seed=seed if given else None,
                settings=settings,
                threads=threads,
                workers=workers,
                batch_tokens=batch_tokens,
                progress=stages(progress) if by_model else shown(progress),
            )
            extra = {**_facts(path), "build_seconds": seconds, **({} if made is None else _made(made))}
        else:
            texts = Texts(source, reading, stamped=True)
            spec = key_spec(key, layer, kept, window, context, autocast)
            if dry_run:
                from knnlm.build.estimate import of_text

                if out is not None:
                    refuse_existing(out, overwrite)
                    refuse_foreign(out, (*source, model))
                loaded = load(model, loading, threads)
                estimate = of_text(loaded, texts, spec, kept, index, batch_tokens, threads, estimating(progress), out)
                _show_estimate(estimate, as_json)
                texts.finish()
                return
            if out is None:
                raise click.UsageError("a store made from text needs a place: --out FOLDER")
            refuse_existing(out, overwrite)
            path = out
            done = build_from_text(
                out,
                load(model, loading, threads),
                texts,
                keys=spec,
                overwrite=overwrite,
                keep_keys=kept != "none",
                **index,
                metric=metric or "l2",
                tuned=settings,
                seed=seed,
                threads=threads,
                workers=workers,
                load=functools.partial(load, model, loading, threads),
                batch_tokens=batch_tokens,
                source=model,
                progress=stages(progress),
            )
            extra = {**_facts(out), **_made(done), "read": texts.summary(), "failed": done.failed}
            extra["duplicates"] = done.duplicates
            texts.finish()
    _report(path, extra, as_json)


def _report(path: Path, extra: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"store": str(path), **extra})
        return
    result(
        f"{path}: {counted(extra['entries'], 'entry')} indexed in {duration(extra['build_seconds'])}, "
        f"{size(extra['bytes'])}, {extra['bytes_per_entry']:.1f} bytes per entry of which "
        f"{extra['search_bytes_per_entry']:.1f} are searched"
    )


def _single_store(source: tuple[str, ...], out: Path | None) -> Path:
    if len(source) == 1 and is_store(Path(source[0])):
        if out is not None:
            raise click.UsageError("--out is for a store made from text; a store is indexed where it is")
        return Path(source[0])
    if len(source) == 1 and source[0] != "-" and not Path(source[0]).exists():
        raise click.UsageError(f"expected a store or text, found nothing at {source[0]}")
    raise click.UsageError(f"expected one store, found {', '.join(source)}; to build from text add --model")


def _facts(path: Path) -> dict[str, Any]:
    """What a store has become, for JSON."""
    with open_store(path) as store:
        info = store.info()
    names = ("bytes", "bytes_per_entry", "search_bytes_per_entry", "nlist", "code", "generation")
    return {"entries": info["n"], **{name: info[name] for name in names}}


def _made(done: OnePassResult | RetrainResult) -> dict[str, Any]:
    """What running the model took, for JSON."""
    names = ("tokens", "parts", "resumed_parts", "unmeasured")
    return {**{name: getattr(done, name) for name in names}, "build_seconds": done.seconds}


def _show_estimate(estimate: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(estimate)
        return
    from knnlm.cli.console import facts

    stages = {"text": "text_seconds", "sample": "sample_seconds", "keys": "dump_seconds", "index": "build_seconds"}
    parts = [f"{name} {duration(estimate[key])}" for name, key in stages.items() if estimate.get(key)]
    facts(
        {
            "tokens": f"{estimate['tokens']:,} in {counted(estimate['documents'], 'document')}",
            "time": f"about {duration(estimate['seconds'])} ({', '.join(parts)}), from {estimate['sample_tokens']:,} "
            "sample tokens",
            "disk": f"about {size(estimate['disk_bytes'])}, {size(estimate['peak_disk_bytes'])} while building; "
            f"{size(estimate['free_bytes'])} are free",
            "memory": f"about {size(estimate['memory_bytes'])}",
        }
    )
