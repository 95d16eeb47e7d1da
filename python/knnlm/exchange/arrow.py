"""Arrow: a store for programs that read Arrow files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from knnlm.store.datastore import Datastore
from knnlm.system.extras import module
from knnlm.system.own_files import replacing

ROWS = 1 << 14
"""Entries of a store that one batch holds."""

Progress = Callable[[str, int, int], None]


def arrow(name: str) -> Any:
    """A module of PyArrow; MissingPackageError with what to install."""
    return module(name, "Arrow and Parquet")


def arrow_bytes(store: Datastore, keys: bool = True) -> int:
    """About how large the file of `write_arrow` gets."""
    spans = ((info.stop - info.start, len((info.name or "").encode()) + 4) for info in store.documents())
    value = 4 if store.info()["value_dtype"] == "uint32" else 8
    return len(store) * (8 + value + 8 + (4 * store.dim if keys else 0)) + sum(n * name for n, name in spans)


def write_arrow(path: str | Path, store: Datastore, *, keys: bool = True, progress: Progress | None = None) -> int:
    """Write a store as an Arrow IPC file, one row an entry in the order of ids; return the number of rows.

    Columns: id, value, document (name), position, and with `keys` key (fixed-size list: the raw keys if they are kept,
    else what the codes decode to; the schema's metadata says which). The store's attributes are in the metadata.
    """
    import json

    pa = arrow("pyarrow")
    info = store.info()
    raw = info["entries_with_keys"] > 0 and info["keep_keys"] is not None
    value = pa.uint32() if info["value_dtype"] == "uint32" else pa.uint64()
    fields = [("id", pa.int64()), ("value", value), ("document", pa.string()), ("position", pa.int64())]
    if keys:
        fields.append(("key", pa.list_(pa.float32(), store.dim)))
    facts = {"attributes": store.attributes, "metric": store.metric, "keys": "raw" if raw else "decoded"}
    schema = pa.schema(fields, metadata={"knnlm": json.dumps(facts)})
    rows = 0
    with replacing(Path(path)) as file, pa.ipc.new_file(file, schema) as writer:
        for document in store.documents():
            for start in range(document.start, document.stop, ROWS):
                stop = min(document.stop, start + ROWS)
                ids = np.arange(start, stop)
                columns = [
                    pa.array(ids),
                    pa.array(store.values(start, stop)),
                    pa.array([document.name] * len(ids), pa.string()),
                    pa.array(ids - document.start),
                ]
                if keys:
                    flat = pa.array(store.reconstruct(ids).reshape(-1))
                    columns.append(pa.FixedSizeListArray.from_arrays(flat, store.dim))
                writer.write_batch(pa.record_batch(columns, schema=schema))
                rows += len(ids)
                if progress is not None:
                    progress("export", rows, len(store))
    return rows
