"""`knnlm delete`: documents out of a store."""

from __future__ import annotations

from pathlib import Path

import click

from knnlm.cli.console import Command, note, print_json
from knnlm.cli.options import Words, as_json
from knnlm.store.opening import open_store
from knnlm.system.counted import counted


@click.command("delete", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("document", nargs=-1, required=True, type=Words())
@click.option("--compact", is_flag=True, help="Remove their bytes from the disk as well, now.")
@as_json
def command(store: Path, document: tuple[str, ...], compact: bool, as_json: bool) -> None:
    """Delete documents of STORE by name: no search finds them any more.

    Their names, values and codes stay on disk until `knnlm compact STORE`; the index still carries statistics of them
    until it is learnt anew (`knnlm build STORE --retrain`).

    \b
    Example:
      knnlm delete store chapter-3.txt --compact
    """
    with open_store(store) as opened:
        entries = opened.delete(document)
        if compact:
            opened.compact()
        info = opened.info()
    if as_json:
        print_json({"store": str(store), "documents": len(set(document)), "entries": entries, "left": info["n"]})
        return
    on_disk = counted(info["deleted_entries"], "deleted entry")
    waiting = "" if compact else f"; still on disk: {on_disk} (knnlm compact {store})"
    note(f"{store}: {counted(entries, 'entry')} deleted, {info['n']:,} left{waiting}")
