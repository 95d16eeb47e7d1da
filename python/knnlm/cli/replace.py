"""`knnlm replace`: another text for a document of a store."""

from __future__ import annotations

from pathlib import Path

import click

from knnlm.cli.console import Command, note, print_json
from knnlm.cli.options import Loading, as_json, loading_options, model, threads
from knnlm.cli.work import load_for, open_store


@click.command("replace", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("document")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@model
@loading_options
@threads
@as_json
def command(
    store: Path, document: str, file: Path, model: str | None, loading: Loading, threads: int | None, as_json: bool
) -> None:
    """Put the text of FILE in the place of DOCUMENT in STORE, at once: interrupted, it leaves the old one.

    The next `knnlm add` of the TEXT that DOCUMENT came from takes the text there again: correct it there, too.

    \b
    Example:
      knnlm replace store chapter-3.txt corrected.txt
    """
    from knnlm.documents import Document, decode_text
    from knnlm.dumping import dump
    from knnlm.identity import KeySpec, key_spec
    from knnlm.update import HASH, content_hash

    text, reasons = decode_text(file.read_bytes())
    if text is None:
        raise ValueError(f"expected text in {file}, found none: {reasons[0]}")
    with open_store(store) as opened:
        index = opened.find_document(document)
        if index is None:
            raise ValueError(f"expected a document of {store} to replace, found none named {document!r}")
        info = opened.documents()[index]
        old = info.stop - info.start
        new = Document(document, text, {**(info.metadata or {}), HASH: content_hash(text)})
        loaded = load_for(opened, model, loading, threads)
        written = dump(loaded, [new], opened, keys=key_spec(opened) or KeySpec(), replace=[document])
        if opened.is_built:
            opened.build(threads=threads)
        left = len(opened)
    if as_json:
        print_json({"store": str(store), "document": document, "old": old, "new": written.tokens, "entries": left})
        return
    note(f"{store}: {document} replaced, {old:,} entries by {written.tokens:,}; {left:,} entries")
