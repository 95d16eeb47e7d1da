"""`knnlm replace`: another text for a document of a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from knnlm.cli.console import Command, note, print_json
from knnlm.cli.options import Loading, Reading, Texts, Words, as_json, loading_options, model, threads
from knnlm.cli.work import load_for, open_store

if TYPE_CHECKING:
    from knnlm.text.documents import Document


@click.command("replace", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("document", type=Words())
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@click.option("--text-field", default="text", show_default=True, help="Field of JSONL input that holds text.")
@model
@loading_options
@threads
@as_json
def command(
    store: Path,
    document: str,
    file: Path,
    text_field: str,
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
    from knnlm.build.dump import dump
    from knnlm.build.update import stamp
    from knnlm.model.key_spec import KeySpec, key_spec
    from knnlm.text.documents import Document

    texts = Texts(("-" if str(file) == "-" else str(file.absolute()),), Reading(text_field=text_field))
    found = _text_for(document, list(texts), file)
    with open_store(store) as opened:
        index = opened.find_document(document)
        if index is None:
            raise ValueError(f"expected a document of {store} to replace, found none named {document!r}")
        info = opened.documents()[index]
        old = info.stop - info.start
        facts = stamp(Document(document, found.text, found.metadata)).metadata or {}  # the origin stays
        new = Document(document, found.text, {**(info.metadata or {}), **facts})
        loaded = load_for(opened, model, loading, threads)
        written = dump(loaded, [new], opened, keys=key_spec(opened) or KeySpec(), replace=[document])
        if opened.is_built:
            opened.build(threads=threads)
        left = len(opened)
    texts.finish()
    if as_json:
        counts = {"old": old, "new": written.tokens, "entries": left}
        print_json({"store": str(store), "document": document, **counts, "read": texts.summary()})
        return
    note(f"{store}: {document} replaced, {old:,} entries by {written.tokens:,}; {left:,} entries")


def _text_for(document: str, found: list[Document], file: Path) -> Document:
    """The only text of a file, or of several the one whose line the document is."""
    line = document.rpartition("#")[2]
    fitting = [
        one
        for one in found
        if len(found) == 1 or (one.name == document if one.named else one.name.rpartition("#")[2] == line)
    ]
    if len(fitting) != 1:
        raise ValueError(
            f"expected one text for {document!r} in {file}, found {len(found):,}: {found[0].name!r} to "
            f"{found[-1].name!r}; put the right one into a file of its own"
        )
    return fitting[0]
