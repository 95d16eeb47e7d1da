"""`knnlm compact`: what was deleted off the disk, what came in parts into one, what is damaged out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from knnlm.cli.console import Command, duration, note, print_json, result, size
from knnlm.cli.options import as_json
from knnlm.store.opening import open_store
from knnlm.system.counted import counted

if TYPE_CHECKING:
    from knnlm.store.datastore import Datastore, LostDocument

SHOWN = 20
"""Lost documents that are shown one by one; `--json` has all."""

CODES = "Codes"


@click.command("compact", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--drop-damaged", is_flag=True, help="Drop documents of which bytes are damaged, and name them; keep the rest."
)
@click.option("--dry-run", is_flag=True, help="With --drop-damaged: say what would be dropped, change nothing.")
@click.option(
    "--lose-codes",
    is_flag=True,
    help="With --drop-damaged: drop what has damaged codes, too, although a model could make them anew.",
)
@as_json
def command(store: Path, drop_damaged: bool, dry_run: bool, lose_codes: bool, as_json: bool) -> None:
    """Rewrite the files of STORE without deleted documents, and join what was added in parts.

    Answers stay as they are. Needs room for a second copy while it works. All that is copied is checked: damage is an
    error that names file and entries, and changes nothing. Put the file back from a copy, or keep the rest with
    --drop-damaged.

    \b
    Examples:
      knnlm compact store
      knnlm compact store --drop-damaged --dry-run
    """
    from knnlm.report.index_progress import COMPACT_STAGES, index_progress
    from knnlm.report.progress import Progress

    if (dry_run or lose_codes) and not drop_damaged:
        raise click.UsageError("--dry-run and --lose-codes go with --drop-damaged")
    started = time.perf_counter()
    lost: list[LostDocument] = []
    refused: str | None = None
    with Progress(json=as_json) as progress, open_store(store) as opened:
        before = opened.info()
        if drop_damaged:
            lost = opened.damaged(progress=index_progress(progress, "verify", ("verify",)))
            refused = None if lose_codes else _loses_codes(opened, lost)
            if refused and not dry_run:
                raise click.UsageError(refused)
        if not dry_run:
            stages = ("verify", *COMPACT_STAGES) if drop_damaged else COMPACT_STAGES
            shown = index_progress(progress, "compact", stages)
            lost = opened.compact(drop_damaged=drop_damaged, progress=shown) if drop_damaged else lost
            if not drop_damaged:
                opened.compact(progress=shown)
        after = opened.info()
    seconds = time.perf_counter() - started
    gone = {"documents": before["deleted_documents"], "entries": before["deleted_entries"]}
    if as_json:
        sizes = {"bytes_before": before["bytes"], "bytes": after["bytes"], "files": len(after["files"])}
        damaged = [
            {"name": found.name, "ids": [found.start, found.stop], "damaged": list(found.sections)} for found in lost
        ]
        told = {"damaged": damaged, "dry_run": dry_run, "refused": refused} if drop_damaged else {}
        print_json({"store": str(store), "removed": gone, **told, **sizes, "seconds": seconds})
        return
    if drop_damaged:
        _tell(store, lost, dry_run, sum(map(len, lost)) < before["n"])
        if refused:
            result(f"{store}: but it is refused without --lose-codes: {refused}")
    if not dry_run and after["generation"] == before["generation"]:
        note(
            f"{store}: nothing is deleted, nothing came in parts: no file was read or written (knnlm verify reads all)"
        )
    elif not dry_run:
        note(
            f"{store}: removed {counted(gone['entries'], 'deleted entry')} of {counted(gone['documents'], 'document')}"
            f", {size(before['bytes'])} before, {size(after['bytes'])} now, in {duration(seconds)}"
        )


def _loses_codes(store: Datastore, lost: list[LostDocument]) -> str | None:
    """What to do instead where a model could make anew what is damaged; None where it could not."""
    only_codes = [found for found in lost if found.sections == (CODES,)]
    if not only_codes or not store.attributes.get("model"):
        return None
    return (
        f"damaged in their codes alone, which the model can make anew: {counted(len(only_codes), 'document')}. "
        f"knnlm build {store.path} --retrain loses none of them. --lose-codes drops them all the same"
    )


def _tell(store: Path, lost: list[LostDocument], dry_run: bool, left: bool) -> None:
    what = "would be dropped" if dry_run else "dropped"
    if not lost:
        result(f"{store}: no document is damaged")
        return
    for found in lost[:SHOWN]:
        name = "a document without a name that can be read" if found.name is None else found.name
        ids = f"ids {found.start:,} to {found.stop - 1:,}" if len(found) else "no entries"
        result(f"{what}: {name} ({ids}; damaged: {', '.join(found.sections)})")
    if len(lost) > SHOWN:
        result(f"{what}: and {len(lost) - SHOWN:,} more (--json names all)")
    rest = "the rest is as it was" if left else "which is all of them"
    result(f"{store}: {what}: {counted(len(lost), 'document')} of {counted(sum(map(len, lost)), 'entry')}, {rest}")
