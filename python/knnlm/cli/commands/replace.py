"""`knnlm replace`: another text for a document of a store."""

from __future__ import annotations

from pathlib import Path

import click

from knnlm.cli.console import Command, note, print_json
from knnlm.cli.options import Loading, Texts, Words, as_json, loading_options, model, threads
from knnlm.cli.work import load_for
from knnlm.store.opening import open_store
from knnlm.system.counted import counted
from knnlm.text.texts import Reading


@click.command("replace", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("document", type=Words())
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@click.option("--text-field", default="text", show_default=True, help="Field of JSONL input that holds text.")
@click.option("--name-field", help="Field of JSONL input that names a document.  [default: as for the other commands]")
@model
@loading_options
@threads
@as_json
def command(
    store: Path,
    document: str,
    file: Path,
    text_field: str,
    name_field: str | None,
    model: str | None,
    loading: Loading,
    threads: int | None,
    as_json: bool,
) -> None:
    """Put the text of FILE in the place of DOCUMENT in STORE, at once: interrupted, it leaves the old one.

    FILE (- is standard input) is read as the other commands read it. Of JSONL with several texts, the one that has the
    name, or the line, of DOCUMENT (rows.jsonl#3) is taken; its other fields stand above those that STORE has of
    DOCUMENT. The next `knnlm add` of the TEXT that DOCUMENT came from takes the text there again: correct it there too.

    \b
    Example:
      knnlm replace store chapter-3.txt corrected.txt
    """
    from knnlm.build.replace import replace_document, text_for

    texts = Texts(
        ("-" if str(file) == "-" else str(file.absolute()),), Reading(text_field=text_field, name_field=name_field)
    )
    found = text_for(document, list(texts), file)
    with open_store(store) as opened:
        old, new = replace_document(
            opened, document, found, lambda: load_for(opened, model, loading, threads), threads=threads
        )
        left = len(opened)
    texts.finish()
    if as_json:
        counts = {"old": old, "new": new, "entries": left}
        print_json({"store": str(store), "document": document, **counts, "read": texts.summary()})
        return
    note(f"{store}: {document} replaced, {counted(old, 'entry')} by {new:,}; {counted(left, 'entry')} in all")
