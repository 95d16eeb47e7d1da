"""`knnlm import`: stores of other programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from knnlm.cli.console import Command, print_json, result
from knnlm.cli.options import as_json, out, overwrite
from knnlm.store.output_folder import whole_folder
from knnlm.system.counted import counted


@click.command("import", cls=Command)
@click.argument("source", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("values", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@out
@click.option("--faiss", "is_faiss", is_flag=True, help="SOURCE is a FAISS index, not a file of keys.")
@click.option(
    "--ids", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="File with the FAISS id of each value."
)
@click.option("--dim", type=click.IntRange(min=1), help="Dimension of a key.  [default: from the file name]")
@click.option(
    "--key-dtype", type=click.Choice(("float16", "float32")), help="Type of a key.  [default: from the lengths]"
)
@click.option(
    "--value-dtype", type=click.Choice(("int16", "int32", "int64")), help="Type of a value.  [default: likewise]"
)
@click.option("--metric", type=click.Choice(("l2", "ip")), help="For a file of keys.  [default: l2]")
@click.option(
    "--keys",
    "kept",
    type=click.Choice(("float16", "float32")),
    help="Keep vectors of a FAISS index so.  [default: float32 if it has them exactly]",
)
@click.option("--ignore", type=int, help="Leave out rows of this value, such as -100.")
@overwrite
@as_json
def command(
    source: Path,
    values: Path,
    out: Path,
    is_faiss: bool,
    ids: Path | None,
    dim: int | None,
    key_dtype: str | None,
    value_dtype: str | None,
    metric: str | None,
    kept: Literal["float16", "float32"] | None,
    ignore: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make a store of SOURCE (raw keys of urvashik/knnlm or neulab/knn-transformers, or a FAISS index) and its VALUES.

    The store has no index yet, and does not know its model: knnlm build STORE indexes it.

    Of an index, the value of a vector is the row of VALUES that its id names; --ids says otherwise.

    \b
    Examples:
      knnlm import dstore_gpt2_116988150_768_keys.npy dstore_gpt2_116988150_768_vals.npy --out store
      knnlm import knn.index dstore_vals.npy --faiss --out store
    """
    from knnlm.exchange.import_vectors import import_faiss, import_memmaps
    from knnlm.report.progress import Progress

    _refuse_options(
        is_faiss, {"--dim": dim, "--key-dtype": key_dtype, "--metric": metric}, {"--ids": ids, "--keys": kept}
    )
    inputs = (source, values) if ids is None else (source, values, ids)
    with Progress(json=as_json) as progress, whole_folder(out, overwrite, inputs) as partial:
        task = progress.track("import", unit="entries")
        options: dict[str, Any] = {"value_dtype": value_dtype, "ignore": ignore}
        options["progress"] = lambda _, done, total: task.update(done, total)
        if is_faiss:
            found = import_faiss(partial, source, values, ids=ids, keep_keys=kept, **options)
        else:
            found = import_memmaps(
                partial,
                source,
                values,
                dim=dim,
                key_dtype=key_dtype,
                metric="ip" if metric == "ip" else "l2",
                **options,
            )
    if as_json:
        print_json({"store": str(out)} | asdict(found))
        return
    said = [f"{counted(found.entries, 'entry')} of dimension {found.dim}"]
    if found.dropped:
        said.append(f"left out {counted(found.dropped, 'row')} at the end, never written")
    if found.ignored:
        said.append(f"left out {counted(found.ignored, 'row')} of the value {ignore}")
    if found.unused:
        said.append(f"left out {counted(found.unused, 'value')} without a vector")
    if found.matched == "order of ids":
        said.append("ids count from another number than 0: values are taken in their order")
    if found.lossy:
        said.append(f"keys are what the index decodes ({found.kind}), not the original ones")
    result(f"{out}: {'; '.join(said)}; index it with knnlm build {out}")


def _refuse_options(is_faiss: bool, of_file: dict[str, Any], of_index: dict[str, Any]) -> None:
    """Raises a usage error for what counts for nothing here."""
    for name, value in (of_file if is_faiss else of_index).items():
        if value is not None:
            kind = "a file of keys: an index says it itself" if is_faiss else "a FAISS index: give --faiss"
            raise click.UsageError(f"{name} is for {kind}")
