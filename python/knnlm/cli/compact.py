"""`knnlm compact`: what was deleted off the disk, what came in parts into one."""

from __future__ import annotations

import time
from pathlib import Path

import click

from knnlm.cli.console import Command, duration, note, print_json, size
from knnlm.cli.options import as_json
from knnlm.cli.work import open_store


@click.command("compact", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@as_json
def command(store: Path, as_json: bool) -> None:
    """Rewrite the files of STORE without deleted documents, and join what was added in parts.

    Answers stay as they are. Needs room for a second copy while it works.

    \b
    Example:
      knnlm compact store
    """
    from knnlm.index_progress import COMPACT_STAGES, index_progress
    from knnlm.progress import Progress

    started = time.perf_counter()
    with Progress(json=as_json) as progress, open_store(store) as opened:
        before = opened.info()
        opened.compact(progress=index_progress(progress, "compact", COMPACT_STAGES))
        after = opened.info()
    seconds = time.perf_counter() - started
    gone = {"documents": before["deleted_documents"], "entries": before["deleted_entries"]}
    if as_json:
        sizes = {"bytes_before": before["bytes"], "bytes": after["bytes"], "files": len(after["files"])}
        print_json({"store": str(store), "removed": gone, **sizes, "seconds": seconds})
        return
    note(
        f"{store}: {gone['entries']:,} deleted entries of {gone['documents']:,} documents removed, "
        f"{size(before['bytes'])} before, {size(after['bytes'])} now, in {duration(seconds)}"
    )
