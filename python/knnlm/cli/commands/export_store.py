"""`knnlm export`: neighbors and p_kNN of a text, or the store itself, for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from knnlm.cli.console import Command, note, print_json, size
from knnlm.cli.options import (
    Loading,
    Mixing,
    Texts,
    as_json,
    loading_options,
    mixing_options,
    model,
    overwrite,
    text_argument,
    text_options,
    threads,
)
from knnlm.cli.work import load_for, stages
from knnlm.store.opening import open_store
from knnlm.store.output_folder import refuse_existing
from knnlm.system.counted import counted
from knnlm.system.log import log_failed
from knnlm.text.texts import Reading


@click.command("export", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@text_argument(required=False)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True,
    help="Output: .parquet or .safetensors for a text, .arrow for the store.",
)  # fmt: skip
@click.option("--only-p", is_flag=True, help="Sparse p_kNN only, without the neighbors that it comes from.")
@click.option("--own-document", is_flag=True, help="Let a document of TEXT find its own entries in the store.")
@click.option("--no-keys", is_flag=True, help="Leave keys out of the .arrow file.")
@model
@mixing_options
@text_options
@loading_options
@threads
@overwrite
@as_json
def command(
    store: Path,
    text: tuple[str, ...],
    out: Path,
    only_p: bool,
    own_document: bool,
    no_keys: bool,
    model: str | None,
    mixing: Mixing,
    reading: Reading,
    loading: Loading,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """With TEXT: each token's neighbors in STORE and the sparse p_kNN that they give. Without: STORE as Arrow.

    With TEXT a token takes up to 24 bytes a neighbor, 25 kB at k 1024: 20,000 tokens 500 MB. A smaller --k takes less,
    --only-p a third; .parquet is compressed, .safetensors is held in memory until it is written. Of STORE an entry
    takes 4 bytes a dimension (none with --no-keys), 20 more and its document's name. The size is said before the work.

    A document of TEXT that is in STORE, by its tokens, does not find its own entries (but see --own-document).

    \b
    Examples:
      knnlm export store books/ --out targets.parquet
      knnlm export store --out store.arrow
    """
    from knnlm.build.from_text import count_tokens
    from knnlm.exchange.arrow import arrow_bytes, write_arrow
    from knnlm.lm.combiners import fixed
    from knnlm.lm.distill import target_bytes, targets, write_parquet, write_safetensors
    from knnlm.lm.retriever import Retriever
    from knnlm.lm.settings import settings_of
    from knnlm.report.progress import Progress

    writers = {".parquet": write_parquet, ".safetensors": write_safetensors}
    expected = tuple(writers) if text else (".arrow",)
    if out.suffix not in expected:
        raise click.UsageError(f"--out: expected a name that ends in {' or '.join(expected)}, found {out}")
    refuse_existing(out, overwrite)
    failed: list[tuple[str, str]] = []
    decoded = False
    with Progress(json=as_json) as progress, open_store(store) as opened:
        task = progress.track("export", unit="tok")
        if text:
            loaded = load_for(opened, model, loading, threads)
            texts = Texts(text, reading)
            mixing = mixing.within(opened)
            settings = settings_of(opened, **mixing.given(), threads=threads)
            retriever = Retriever(opened, settings, "none" if own_document else "document")
            count = count_tokens(loaded, texts, stages(progress))
            each = target_bytes(retriever.k, loaded.tokenizer.vocab_size, not only_p)
            tokens = counted(count, "token")
            note(f"{out} will take up to {size(count * each)}: {tokens}, {size(each)} each at k {retriever.k}")
            batches = targets(
                loaded,
                texts.tokenised(loaded.tokenizer),
                retriever,
                fixed(settings).temperature,
                neighbors=not only_p,
                failed=failed,
                progress=lambda _, done, total: task.update(done, total or texts.expected_tokens()),
            )
            rows = writers[out.suffix](out, batches)
            texts.finish()
            log_failed(failed)
        else:
            info = opened.info()
            decoded = not no_keys and bool(info["n"]) and not (info["keep_keys"] and info["entries_with_keys"])
            note(f"{out} will take about {size(arrow_bytes(opened, not no_keys))}: {counted(len(opened), 'entry')}")
            rows = write_arrow(out, opened, keys=not no_keys, progress=lambda _, done, total: task.update(done, total))
    if as_json:
        found = {"store": str(store), "out": str(out), "rows": rows, "bytes": out.stat().st_size}
        print_json({**found, "failed": failed} if text else found)
    else:
        note(f"{out}: {counted(rows, 'row')}")
        if decoded:
            note("its keys are decoded from the codes, near the model's but not the same: raw keys are not kept")
    if failed:
        click.get_current_context().exit(1)
