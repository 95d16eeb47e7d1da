"""Export: neighbors and sparse p_kNN of a text for distillation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.exchange.arrow import arrow
from knnlm.lm.retriever import Retriever
from knnlm.lm.stretches import stretches
from knnlm.model.key_spec import KeySpec
from knnlm.model.loaded import Loaded
from knnlm.probability.knn import sparse_p_knn
from knnlm.system.own_files import replacing, replacing_path

Progress = Callable[[str, int, int], None]


def targets(
    loaded: Loaded,
    documents: Iterable[Any],
    retriever: Retriever,
    temperature: float,
    *,
    keys: KeySpec | None = None,
    neighbors: bool = True,
    failed: list[tuple[str, str]] | None = None,
    progress: Progress | None = None,
    batch_tokens: int | None = None,
) -> Iterator[dict[str, Any]]:
    """One batch of columns for each run of tokens: what a model that learns p_kNN needs.

    retriever: leaves out every document of the store that has the tokens of the one at hand, as distillation on the
    store's own text needs, unless made with exclude="none". temperature: T of p_kNN. neighbors: give ids, distances and
    values too. Columns: document (name), position, token (the target), probability (of the target), tokens and
    probabilities (sparse p_kNN, lists), and ids, distances, values (k, fixed-size lists). failed: gets name and reason
    of a document whose keys are not finite, which has no rows from there on; None: it ends the work.

    Raises:
        IdentityError: the store belongs to another model, or was made with another arithmetic.
        NotFiniteError: a key is not finite, or of `failed` documents none is sound.
    """
    from knnlm.model.forward import NotFiniteError

    done = 0
    for stretch in stretches(
        loaded,
        documents,
        retriever,
        keys=keys,
        scores=False,
        tolerant=failed is not None,
        batch_tokens=batch_tokens,
    ):
        if stretch.bad is not None and failed is not None:
            failed.append((stretch.document.name, stretch.bad))
            continue
        found, tokens = stretch.neighbors, stretch.tokens
        assert found is not None
        sparse = sparse_p_knn(found, temperature)
        offsets = np.asarray(sparse.offsets, np.int64)
        rows = np.repeat(np.arange(len(tokens)), np.diff(offsets))
        own = np.zeros(len(tokens))
        hit = sparse.tokens == tokens[rows]
        own[rows[hit]] = sparse.probabilities[hit]
        batch: dict[str, Any] = {
            "document": stretch.document.name,
            "position": np.arange(stretch.start, stretch.start + len(tokens), dtype=np.int64),
            "token": tokens,
            "probability": own.astype(np.float32),
            "tokens": np.asarray(sparse.tokens, np.uint32),
            "probabilities": np.asarray(sparse.probabilities, np.float32),
            "offsets": offsets,
        }
        if neighbors:
            batch |= {"ids": found.ids, "distances": found.distances, "values": found.values}
        done += len(tokens)
        if progress is not None:
            progress("export", done, 0)
        yield batch
    if failed and not done:
        raise NotFiniteError(failed[0][1])


def target_bytes(k: int, vocabulary: int, neighbors: bool = True) -> int:
    """Most bytes that one token takes in a file of `targets`; Parquet, which is compressed, may take fewer.

    k: neighbors of a token, each of which may have a value of its own.
    """
    fixed, word, neighbor = 32, 4 + 4, 8 + 4 + 4  # position, token, probability, offset; sparse p_kNN; id to value
    return fixed + word * min(k, vocabulary) + (neighbor * k if neighbors else 0)


def write_parquet(path: str | Path, batches: Iterable[dict[str, Any]]) -> int:
    """Write batches of `targets` as Parquet, one row a token; return the number of rows. The file appears whole."""
    pa, parquet = arrow("pyarrow"), arrow("pyarrow.parquet")
    writer, rows = None, 0
    with replacing(Path(path)) as file:
        for batch in batches:
            n = len(batch["token"])
            offsets = pa.array(batch["offsets"], pa.int64())
            columns = {
                "document": pa.array([batch["document"]] * n, pa.string()),
                "position": pa.array(batch["position"]),
                "token": pa.array(batch["token"]),
                "probability": pa.array(batch["probability"]),
                "tokens": pa.LargeListArray.from_arrays(offsets, pa.array(batch["tokens"])),
                "probabilities": pa.LargeListArray.from_arrays(offsets, pa.array(batch["probabilities"])),
            }
            for name in ("ids", "distances", "values"):
                if name in batch:
                    k = batch[name].shape[1]
                    columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(batch[name].reshape(-1)), k)
            table = pa.table(columns)
            writer = writer or parquet.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
            rows += n
        if writer is None:
            raise ValueError("expected text with at least one token, found none")
        writer.close()
    return rows


def write_safetensors(path: str | Path, batches: Iterable[dict[str, Any]]) -> int:
    """Write batches of `targets` as one safetensors file, held in memory before; return the number of rows.

    Tensors: token, position, probability (n,); tokens, probabilities (h,) with offsets (n + 1,); ids, distances, values
    (n, k) if they were asked for; document (n,), index into the JSON list `documents` of the metadata.
    """
    import json

    from safetensors.numpy import save_file

    columns: dict[str, list[NDArray[Any]]] = {}
    names: list[str] = []
    documents: list[NDArray[np.int64]] = []
    offsets: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
    end = 0
    for batch in batches:
        if not names or names[-1] != batch["document"]:
            names.append(batch["document"])
        documents.append(np.full(len(batch["token"]), len(names) - 1, np.int64))
        offsets.append(batch["offsets"][1:] + end)
        end += int(batch["offsets"][-1])
        for name, column in batch.items():
            if name not in ("document", "offsets"):
                columns.setdefault(name, []).append(np.asarray(column))
    if not names:
        raise ValueError("expected text with at least one token, found none")
    tensors = {name: np.ascontiguousarray(np.concatenate(parts)) for name, parts in columns.items()}
    tensors |= {"offsets": np.concatenate(offsets), "document": np.concatenate(documents)}
    with replacing_path(Path(path)) as partial:
        save_file(tensors, partial, metadata={"documents": json.dumps(names, ensure_ascii=False)})
    return len(tensors["token"])
