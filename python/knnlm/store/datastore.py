"""Datastore: (key, value) entries on disk, written in documents, found by nearest key.

A thin layer over `knnlm._core`: it turns whatever array it is given into the one kind that the core takes, publishes
what was added before anything reads (`reading`), and gives the answers their types. Needs no torch.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from knnlm import _core
from knnlm._core import FormatError, StoreError
from knnlm.store.arrays import (
    one_of,
    to_flag,
    to_floats,
    to_integer,
    to_integers,
    to_optional,
    to_progress,
    to_threads,
)
from knnlm.store.entries import DocumentInfo, Documents, Entries, LostDocument, document_lists, lost_documents
from knnlm.store.index_choice import to_code
from knnlm.store.search import Reader
from knnlm.system.json_text import to_json
from knnlm.system.making import making

__all__ = ["Datastore", "DocumentInfo", "Documents", "Entries", "FormatError", "LostDocument", "StoreError"]

if _core.DEBUG:
    warnings.warn("knnlm was compiled without optimisation and is slow; run `make build`", RuntimeWarning, stacklevel=2)


class Datastore(Reader):
    """A folder of immutable, memory-mapped files. Made by `create` or `open`, never directly.

    Searching is safe from several threads and after `fork`. One process at a time may write. A store pickles as its
    path and generation: unpickling opens the files again.

    Example:
        >>> import tempfile, numpy as np, knnlm
        >>> keys = np.eye(8, dtype=np.float32)
        >>> with knnlm.Datastore.create(tempfile.mkdtemp() + "/store", dim=8, keep_keys="float32") as store:
        ...     ids = store.add(keys, np.arange(8), document="unit vectors")
        ...     store.search(keys[3], k=2).values.tolist()
        [3, 0]
    """

    def __init__(self, core: _core.Datastore) -> None:
        self._core = core
        self._lock = threading.RLock()  # one writing call at a time
        self._pending_in: int | None = None  # process that added entries which no manifest names yet

    # -- life ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        dim: int,
        metric: Literal["l2", "ip"] = "l2",
        keep_keys: Literal["float16", "float32"] | None = None,
        value_dtype: Literal["uint32", "uint64"] = "uint32",
        max_value: int | None = None,
        attributes: dict[str, Any] | None = None,
        overwrite: bool = False,
    ) -> Datastore:
        """Make an empty store.

        Args:
            path: folder to make.
            dim: length of a key, from 1 to 65536.
            metric: `"l2"` (squared Euclidean distance) or `"ip"` (inner product).
            keep_keys: keep raw keys after `build`, in this precision; needed for `exact=True` and `rerank="keys"`.
            value_dtype: width of the values.
            max_value: largest value that `add` takes, for instance the size of the vocabulary − 1.
            attributes: JSON that the store remembers for its caller.
            overwrite: replace a store that is there.

        Raises:
            ValueError: an argument out of range. StoreError: something is there, or another process writes to it.
            OSError: it cannot be written.
        """
        with making(os.fsdecode(path)):
            core = _core.Datastore.create(
                os.fsdecode(path),
                dim=to_integer(dim, "dim", 1, 65536),
                metric=one_of(metric, "metric", ("l2", "ip")),
                keep_keys=one_of(keep_keys, "keep_keys", ("float16", "float32", None)),
                value_dtype=one_of(value_dtype, "value_dtype", ("uint32", "uint64")),
                max_value=None if max_value is None else to_integer(max_value, "max_value", 0, 2**64 - 1),
                attributes=to_json(attributes or {}, "attributes"),
                overwrite=to_flag(overwrite, "overwrite"),
            )
        return cls(core)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = False, resident: bool = False) -> Datastore:
        """Open a store at its newest generation; reads nothing that grows with the number of entries.

        Args:
            path: folder of the store.
            verify: read every byte first and refuse a store with any damage.
            resident: read the whole store into memory of this process, checking every byte on the way, instead of
                mapping its files: no page of it is taken out of memory while it is not used, the system may back it
                with huge pages, and it outlives files that somebody truncates. A refresh reads what is new.

        Raises:
            FileNotFoundError: no folder there. FormatError: no store in it, damaged, or of a newer format.
            StoreError: there is not as much memory as `resident` needs.
        """
        core = _core.Datastore.open(
            os.fsdecode(path), verify=to_flag(verify, "verify"), resident=to_flag(resident, "resident")
        )
        return cls(core)

    def close(self) -> None:
        """Publish what was added and let go of the files. Closing twice is fine."""
        with self._lock:
            try:
                self._publish()
            finally:
                self._core.close()

    def __enter__(self) -> Datastore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an exception, entries that no `commit` has published are dropped."""
        if kind is not None:
            self._pending_in = None
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        self._publish()
        return _reopen, (str(Path(self.path).absolute()), self.generation, self._core.resident)

    # -- writing ------------------------------------------------------------------------------------------------

    def add(self, keys: Any, values: Any, document: str | None = None, metadata: dict[str, Any] | None = None) -> range:
        """Append entries; they are searchable, and on disk for good, from the next `commit` on.

        Args:
            keys: `(n, dim)` floats (NumPy, torch or lists; float32, float16, bfloat16), finite. Squared distances are
                float32, where differences below about 1e-19 square to 0: keys of such a scale have to be scaled up.
            values: `(n,)` integers, 0 or more.
            document: name of the document that the entries belong to; the name of the document being written
                extends it, another begins a new one.
            metadata: JSON of the document, given with its first entries.

        Returns:
            Ids of the entries.

        Raises:
            ValueError: wrong dimension, lengths that differ, NaN or Inf, keys that are all too small for squared
                distances, a value out of range; nothing is added then.
            StoreError: another process is writing.
        """
        rows = to_floats(keys, "keys", self.dim)
        rows = rows[None] if rows.ndim == 1 else rows  # (n, d)
        if rows.ndim != 2:
            raise ValueError(f"keys must have shape (n, {self.dim}), found {rows.shape}")
        _refuse_vanishing(rows, self.metric, "keys")
        if document is not None and not isinstance(document, str):
            raise ValueError(f"document must be a name (str) or None, found {document!r}")
        kind = self._core.value_dtype
        hint = f"the store's values are {kind}, whose largest number means missing"
        limit = int(np.iinfo(kind).max) - 1
        numbers = to_integers(values, "values", kind, 0, limit, hint).reshape(-1)  # (n,)
        text = None if metadata is None else to_json(metadata, "metadata")
        with self._lock:
            self._pending_in = os.getpid()
            start, stop = self._core.add(rows, numbers, document, text)
        return range(start, stop)

    def commit(self) -> None:
        """Publish what was added, as a new generation. `build`, `search`, `len`, `get` and `close` do it first."""
        self._core.check_open()
        self._publish()

    def discard(self) -> None:
        """Forget what was added or superseded since the last `commit`; needed after an `add` that could not write."""
        with self._lock:
            self._core.discard()
            self._pending_in = None

    def refresh(self) -> None:
        """Move to the newest generation on disk; until then this object answers from the one that it opened.

        What was added here and not committed is published first.
        """
        self._publish()
        self._core.refresh()

    def build(
        self,
        *,
        seed: int | None = None,
        nlist: int | None = None,
        code: Literal["small", "flat"] | tuple[int, int] | None = None,
        retrain: bool = False,
        threads: int | None = None,
        progress: Callable[[str, int, int], object] | None = None,
    ) -> None:
        """Index the entries that are in no list yet, so that they are found without being scanned one by one.

        Warns (UserWarning) where the store has outgrown its index by them, and where lists that are damaged were left
        as they are; nothing is lost by that.

        Args:
            seed: of every random choice, 0 by default; same entries and seed, same bytes, for any number of threads.
            nlist: number of lists; by default from the number of entries.
            code: by default two levels, 48 bytes and 4 bits a dimension (272 bytes an entry at d = 384, all in);
                `"small"`: the first alone; `"flat"`: 4 bits a dimension alone (220 bytes), faster in large batches;
                `(m, bits)`: a product quantiser of `m` parts with 4 or 8 bits each.
            retrain: learn centroids and codes again and re-code everything; needs kept keys if a build came before. For
                a store made from text that keeps none there is `knnlm.build.retrain.retrain`.
            threads: by default one per core.
            progress: called with (stage, done, total); total is 0 where it is not known.

        Raises:
            ValueError: an argument out of range, or another code, nlist or seed than the store was built with, without
                `retrain`. StoreError: raw keys are needed and not kept.
        """
        self._publish()
        with self._lock:
            self._core.build(
                seed=None if seed is None else to_integer(seed, "seed", 0, 2**64 - 1),
                nlist=to_optional(nlist, "nlist"),
                code=to_code(code, self.dim),
                retrain=to_flag(retrain, "retrain"),
                threads=to_threads(threads),
                progress=to_progress(progress),
            )
        self._tell()

    def train(
        self,
        sample: Any,
        *,
        expected: int,
        seed: int = 0,
        nlist: int | None = None,
        code: Literal["small", "flat"] | tuple[int, int] | None = None,
        threads: int | None = None,
        progress: Callable[[str, int, int], object] | None = None,
    ) -> None:
        """Learn the index of an empty store from a sample of its keys, before they come.

        From then on entries are encoded in memory as they are added, searchable with the commit; raw keys are written
        only if the store keeps them. The defaults of nprobe and temperature come from the sample.

        Args:
            sample: `(n, dim)` floats, drawn like the keys that will be added.
            expected: number of entries that the lists are laid out for.
            seed, nlist, code, threads, progress: as in `build`.

        Raises:
            ValueError: an argument out of range. StoreError: the store has entries or an index.
        """
        rows = to_floats(sample, "sample", self.dim)
        if rows.ndim != 2:
            raise ValueError(f"sample must have shape (n, {self.dim}), found {rows.shape}")
        _refuse_vanishing(rows, self.metric, "sample")
        self._publish()
        with self._lock:
            self._core.train(
                rows,
                expected=to_integer(expected, "expected", 1, 2**63 - 1),
                seed=to_integer(seed, "seed", 0, 2**64 - 1),
                nlist=to_optional(nlist, "nlist"),
                code=to_code(code, self.dim),
                threads=to_threads(threads),
                progress=to_progress(progress),
            )

    def delete(self, documents: str | int | Sequence[str | int]) -> int:
        """Delete documents, by name or index; return the number of their entries.

        They are in no result of this object when the call returns, and in none of another from its next `refresh` on.
        Their ids are never given again. Their names, values, keys and codes stay on disk until `compact`; centroids and
        code words still carry statistics of them until the store is re-trained.

        Raises:
            ValueError: a document that is not there; nothing is deleted then. StoreError: another process is writing.
        """
        keys = _documents_given(documents)
        self._publish()
        with self._lock:
            return self._core.delete(keys)

    def supersede(self, documents: str | int | Sequence[str | int]) -> int:
        """Delete documents, by name or index, with the next `commit`; return the number of their entries.

        Until then everybody finds them, and `add` may write new documents of their names: old and new change places in
        one generation, so that there is no moment, not even after a crash, without either. `discard` takes it back,
        with what was added; a `commit` with nothing added only deletes. Like `add`, it is published by whatever reads.

        Raises:
            ValueError: a document that is not there; nothing is superseded then.
            StoreError: another process is writing.
        """
        keys = _documents_given(documents)
        with self._lock:
            self._pending_in = os.getpid()
            return self._core.supersede(keys)

    def replace(self, keys: Any, values: Any, document: str, metadata: dict[str, Any] | None = None) -> range:
        """Put entries in the place of a document's, in one generation.

        The new entries have new ids. Readers find the old entries or the new ones, never none or both, after a crash
        too. What else was added and not committed is published first. Arguments, errors: as `add`; nothing changes if
        one of them is wrong or the disk refuses.
        """
        with self._lock:
            self._publish()
            old = self._core.find_document(document)
            if old is None:
                raise ValueError(f"document {document!r}: expected one to replace, found none of that name")
            try:
                self.supersede(old)
                ids = self.add(keys, values, document, metadata)
                self._publish()
            except BaseException:
                self.discard()
                raise
        return ids

    def compact(
        self, *, drop_damaged: bool = False, progress: Callable[[str, int, int], object] | None = None
    ) -> list[LostDocument]:
        """Rewrite the files without what is deleted, and join data and lists that came in parts.

        Answers stay as they were. Takes room for a second copy of the store while it works. Readers of an older
        generation keep its files alive until they refresh or close. What is copied is checked first.

        Args:
            drop_damaged: drop documents of which bytes are damaged, too, and return them; `damaged` tells of them
                beforehand. Without, damage is an error that names it.
            progress: called with (stage, done, total).

        Raises:
            FormatError: something is damaged. StoreError: another process is writing. OSError: it cannot be written.
                The store is then as it was.
        """
        self._publish()
        with self._lock:
            if to_flag(drop_damaged, "drop_damaged"):
                return lost_documents(self._core.salvage(to_progress(progress)))
            self._core.compact(to_progress(progress))
        return []

    def set_attributes(self, attributes: dict[str, Any]) -> None:
        """Replace the JSON that the store remembers for its caller, as a new generation."""
        text = to_json(attributes, "attributes")
        self._publish()
        with self._lock:
            self._core.set_attributes(text)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Commit entries that this process has added. A forked child leaves its parent's alone."""
        if self._pending_in is None:
            return
        with self._lock:
            if self._pending_in == os.getpid():
                self._core.commit()
            self._pending_in = None
        self._tell()

    def _tell(self) -> None:
        """Warn of what a change has left as it was."""
        for notice in self._core.notices():
            warnings.warn(notice, UserWarning, stacklevel=3)


def _reopen(path: str, generation: int, resident: bool) -> Datastore:
    """Unpickle."""
    return Datastore(_core.Datastore.open(path, generation=generation, resident=resident))


VANISHING = 2.0**-63
"""The square of what is smaller is no normal float32."""


def _refuse_vanishing(rows: NDArray[Any], metric: str, what: str) -> None:
    """Raise ValueError for keys whose squared distances would all be 0, or nearly."""
    if metric != "l2" or rows.dtype != np.float32 or not len(rows) or np.abs(rows[0]).max() >= VANISHING:
        return  # one that is large enough: what is small beside it is near 0, and found there
    largest = float(np.abs(rows).max())
    if 0 < largest < VANISHING:
        raise ValueError(
            f"{what}: expected numbers whose squares float32 holds, found none above {largest:.3g}: every squared "
            "distance would be 0; multiply keys and queries by one power of two"
        )


def _documents_given(documents: str | int | Sequence[str | int]) -> list[int | str]:
    """Check documents by name or index, one or several."""
    if isinstance(documents, (str, int, np.integer)):
        given = [documents]
    elif isinstance(documents, Iterable) and not isinstance(documents, (bytes, bytearray, memoryview)):
        given = list(documents)  # bytes would be the documents of these numbers
    else:
        raise ValueError(f"documents must be names or indices, one or several, found {documents!r}")
    found = document_lists(given, "documents", 0)
    return [key for keys in found[0] for key in keys] if found else []
