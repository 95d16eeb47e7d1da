"""`knnlm import`: stores of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from knnlm.cli.console import Command, note, print_json
from knnlm.cli.folders import whole_folder
from knnlm.cli.options import as_json, out, overwrite


@click.command("import", cls=Command)
@click.argument("source", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("values", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@out
@click.option("--faiss", "is_faiss", is_flag=True, help="SOURCE is a FAISS index, not a file of keys.")
@click.option("--dim", type=click.IntRange(min=1), help="Dimension of a key.  [default: from the file name]")
@click.option(
    "--key-dtype", type=click.Choice(("float16", "float32")), help="Type of a key.  [default: from the lengths]"
)
@click.option(
    "--value-dtype", type=click.Choice(("int16", "int32", "int64")), help="Type of a value.  [default: likewise]"
)
@click.option("--metric", type=click.Choice(("l2", "ip")), default="l2", show_default=True, help="For a file of keys.")
@overwrite
@as_json
def command(
    source: Path,
    values: Path,
    out: Path,
    is_faiss: bool,
    dim: int | None,
    key_dtype: str | None,
    value_dtype: str | None,
    metric: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make a store of SOURCE (raw keys of urvashik/knnlm or neulab/knn-transformers, or a FAISS index) and its VALUES.

    The store has no index yet, and does not know its model: knnlm build STORE indexes it.

    \b
    Examples:
      knnlm import dstore_gpt2_116988150_768_keys.npy dstore_gpt2_116988150_768_vals.npy --out store
      knnlm import knn.index dstore_vals.npy --faiss --out store
    """
    from knnlm.importing import import_faiss, import_memmaps
    from knnlm.progress import Progress

    with Progress(json=as_json) as progress, whole_folder(out, overwrite, (source, values)) as partial:
        task = progress.track("import", unit="entries")
        show: dict[str, Any] = {"progress": lambda _, done, total: task.update(done, total)}
        if is_faiss:
            found = import_faiss(partial, source, values, value_dtype=value_dtype, **show)
        else:
            found = import_memmaps(
                partial,
                source,
                values,
                dim=dim,
                key_dtype=key_dtype,
                value_dtype=value_dtype,
                metric="ip" if metric == "ip" else "l2",
                **show,
            )
    if as_json:
        print_json({"store": str(out), "entries": found.entries, "dim": found.dim, "dropped": found.dropped})
        return
    dropped = f"; {found.dropped:,} rows at the end were never written and are left out" if found.dropped else ""
    lossy = "; keys are what the index decodes, not the original ones" if found.lossy else ""
    note(f"{out}: {found.entries:,} entries of dimension {found.dim}{dropped}{lossy}; index it with knnlm build {out}")
