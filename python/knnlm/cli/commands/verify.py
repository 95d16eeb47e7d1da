"""`knnlm verify`: reads every byte of a store and lists what is wrong."""

from __future__ import annotations

import time
from pathlib import Path

import click

from knnlm.cli.console import Command, ProblemsError, duration, note, print_json, write_out
from knnlm.cli.options import as_json
from knnlm.system.counted import counted
from knnlm.system.terminal import printable


@click.command("verify", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@as_json
def command(store: Path, as_json: bool) -> None:
    """Check every byte of STORE against its checksums and its own rules.

    Prints one line per problem and exits with 1 if there is any. A store that is too damaged to open is checked too.

    \b
    Example:
      knnlm verify store
    """
    from knnlm.report.progress import Progress
    from knnlm.store.datastore import Datastore

    if not store.exists():
        raise FileNotFoundError(f"expected a store at {store}, found nothing there")
    started = time.perf_counter()
    with Progress(json=as_json) as progress:
        progress.track("verify", unit="bytes")
        problems = Datastore.verify_path(store, progress)
    seconds = time.perf_counter() - started
    if as_json:
        print_json({"store": str(store), "sound": not problems, "problems": problems, "seconds": seconds})
        if problems:
            raise click.exceptions.Exit(1)
        return
    for problem in problems:
        write_out(printable(problem) + "\n")
    if problems:
        raise ProblemsError(f"{counted(len(problems), 'problem')} found in {store}")
    note(f"{store}: sound, every byte read in {duration(seconds)}")
