"""`knnlm dump`: the keys of a text, raw and unindexed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from knnlm.cli.console import Command, duration, print_json, result, size
from knnlm.cli.options import (
    Loading,
    Texts,
    as_json,
    key_options,
    loading_options,
    metric,
    out,
    overwrite,
    text_argument,
    text_options,
    threads,
    window_options,
)
from knnlm.cli.work import key_spec, load, shown
from knnlm.store.output_folder import whole_folder
from knnlm.system.counted import counted
from knnlm.text.texts import Reading


@click.command("dump", cls=Command)
@text_argument()
@click.option("--model", required=True, help="Model folder or Hugging Face name.")
@out
@text_options
@key_options
@metric
@window_options
@loading_options
@threads
@overwrite
@as_json
def command(
    text: tuple[str, ...],
    model: str,
    out: Path,
    metric: Literal["l2", "ip"] | None,
    reading: Reading,
    key: str,
    layer: int,
    keys: str,
    autocast: str | None,
    window: int | None,
    context: int | None,
    batch_tokens: int | None,
    loading: Loading,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Run MODEL over TEXT and write (key, next token) of every token to a store, unindexed.

    TEXT is files, folders, globs, packed or not (.gz, .bz2, .xz, .zst), JSONL, hf:NAME, or - for standard input.
    `knnlm build STORE` indexes the result.

    \b
    Example:
      knnlm dump books/ --model model --out store
    """
    from knnlm.build.from_text import dump_texts
    from knnlm.report.progress import Progress

    texts = Texts(text, reading, stamped=True)
    with Progress(json=as_json) as progress, whole_folder(out, overwrite, (*text, model)) as partial:
        loaded = load(model, loading, threads)
        spec = key_spec(key, layer, keys, window, context, autocast)
        store, written = dump_texts(
            partial,
            loaded,
            texts,
            keys=spec,
            keep_keys=keys != "none",
            batch_tokens=batch_tokens,
            metric=metric or "l2",
            progress=shown(progress),
        )
        with store:
            info = store.info()
    texts.finish()
    if as_json:
        print_json(
            {
                "store": str(out),
                "tokens": written.tokens,
                "documents": written.documents,
                "empty_documents": written.empty_documents,
                "failed": written.failed,
                "seconds": written.seconds,
                "bytes": info["bytes"],
                "read": texts.summary(),
            }
        )
        return
    result(
        f"{out}: {counted(written.tokens, 'entry')} of {counted(written.documents, 'document')}, "
        f"{size(info['bytes'])}, in {duration(written.seconds)}; not indexed yet: knnlm build {out}"
    )
