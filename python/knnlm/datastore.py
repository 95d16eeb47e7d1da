"""Datastore: (key, value) entries on disk, written in documents, found by nearest key.

A thin layer over `knnlm._core`: it turns whatever array it is given into the one kind that the core takes, publishes
what was added before anything reads, and gives the answers their types. Needs no torch.
"""

from __future__ import annotations

import json
import operator
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from knnlm import _core
from knnlm._core import FormatError, StoreError
from knnlm.arrays import to_floats, to_integers, to_json
from knnlm.entries import DocumentInfo, Documents, Entries, document_lists
from knnlm.neighbours import Neighbours

__all__ = ["Datastore", "DocumentInfo", "Documents", "Entries", "FormatError", "StoreError"]

MAX_ID = 2**63 - 1

if _core.DEBUG:
    warnings.warn("knnlm was compiled without optimisation and is slow; run `make build`", RuntimeWarning, stacklevel=2)


class Datastore:
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
        core = _core.Datastore.create(
            os.fsdecode(path),
            dim=_integer(dim, "dim", 1, 65536),
            metric=metric,
            keep_keys=keep_keys,
            value_dtype=value_dtype,
            max_value=None if max_value is None else _integer(max_value, "max_value", 0, 2**64 - 1),
            attributes=to_json(attributes or {}, "attributes"),
            overwrite=overwrite,
        )
        return cls(core)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = False) -> Datastore:
        """Open a store at its newest generation; reads nothing that grows with the number of entries.

        Args:
            path: folder of the store.
            verify: read every byte first and refuse a store with any damage.

        Raises:
            FileNotFoundError: no folder there. FormatError: no store in it, damaged, or of a newer format.
        """
        return cls(_core.Datastore.open(os.fsdecode(path), verify=verify))

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
        return _reopen, (str(Path(self.path).absolute()), self.generation)

    # -- writing ------------------------------------------------------------------------------------------------

    def add(self, keys: Any, values: Any, document: str | None = None, metadata: dict[str, Any] | None = None) -> range:
        """Append entries; they are searchable, and on disk for good, from the next `commit` on.

        Args:
            keys: `(n, dim)` floats (NumPy, torch or lists; float32, float16, bfloat16), finite.
            values: `(n,)` integers, 0 or more.
            document: name of the document that the entries belong to; the name of the document being written
                extends it, another begins a new one.
            metadata: JSON of the document, given with its first entries.

        Returns:
            Ids of the entries.

        Raises:
            ValueError: wrong dimension, lengths that differ, NaN or Inf, a value out of range; nothing is added then.
            StoreError: another process is writing.
        """
        rows = to_floats(keys, "keys", self.dim)
        rows = rows[None] if rows.ndim == 1 else rows  # (n, d)
        if rows.ndim != 2:
            raise ValueError(f"keys must have shape (n, {self.dim}), found {rows.shape}")
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
        code: Literal["small"] | tuple[int, int] | None = None,
        retrain: bool = False,
        threads: int | None = None,
        progress: Callable[[str, int, int], object] | None = None,
    ) -> None:
        """Index the entries that are in no list yet, so that they are found without being scanned one by one.

        Args:
            seed: of every random choice, 0 by default; same entries and seed, same bytes, for any number of threads.
            nlist: number of lists; by default from the number of entries.
            code: bytes per entry: by default chosen for quality, `"small"`, or `(m, bits)` for a product quantiser of
                `m` parts with 4 or 8 bits each.
            retrain: learn centroids and codes again and re-code everything; needs kept keys if a build came before.
            threads: by default one per core.
            progress: called with (stage, done, total); total is 0 where it is not known.

        Raises:
            ValueError: an argument out of range, or another code, nlist or seed than the store was built with, without
                `retrain`. StoreError: raw keys are needed and not kept.
        """
        chosen = code if code is None or isinstance(code, str) else (operator.index(code[0]), operator.index(code[1]))
        self._publish()
        with self._lock:
            self._core.build(
                seed=None if seed is None else _integer(seed, "seed", 0, 2**64 - 1),
                nlist=_optional(nlist, "nlist"),
                code=chosen,
                retrain=retrain,
                threads=_optional(threads, "threads"),
                progress=progress,
            )

    def train(
        self,
        sample: Any,
        *,
        expected: int,
        seed: int = 0,
        nlist: int | None = None,
        code: Literal["small"] | tuple[int, int] | None = None,
        threads: int | None = None,
        progress: Callable[[str, int, int], object] | None = None,
    ) -> None:
        """Learn the index of an empty store from a sample of its keys, before they come.

        From then on entries are encoded in memory as they are added, searchable with the commit, and raw keys are never
        written. The defaults of nprobe and temperature come from the sample.

        Args:
            sample: `(n, dim)` floats, drawn like the keys that will be added.
            expected: number of entries that the lists are laid out for.
            seed, nlist, code, threads, progress: as in `build`.

        Raises:
            ValueError: an argument out of range. StoreError: the store has entries or an index, or keeps raw keys.
        """
        rows = to_floats(sample, "sample", self.dim)
        if rows.ndim != 2:
            raise ValueError(f"sample must have shape (n, {self.dim}), found {rows.shape}")
        chosen = code if code is None or isinstance(code, str) else (operator.index(code[0]), operator.index(code[1]))
        self._publish()
        with self._lock:
            self._core.train(
                rows,
                expected=_integer(expected, "expected", 1, 2**63 - 1),
                seed=_integer(seed, "seed", 0, 2**64 - 1),
                nlist=_optional(nlist, "nlist"),
                code=chosen,
                threads=_optional(threads, "threads"),
                progress=progress,
            )

    def delete(self, documents: str | int | Sequence[str | int]) -> int:
        """Delete documents, by name or index; return the number of their entries.

        They are in no result of this object when the call returns, and in none of another from its next `refresh` on.
        Their ids are never given again. Their names, values, keys and codes stay on disk until `compact`; centroids and
        code words still carry statistics of them until `build(retrain=True)`.

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

    def compact(self, *, progress: Callable[[str, int, int], object] | None = None) -> None:
        """Rewrite the files without what is deleted, and join data and lists that came in parts.

        Answers stay as they were. Takes room for a second copy of the store while it works. Readers of an older
        generation keep its files alive until they refresh or close.

        Args:
            progress: called with (stage, done, total).

        Raises:
            StoreError: another process is writing. OSError: it cannot be written; the store is then as it was.
        """
        self._publish()
        with self._lock:
            self._core.compact(progress)

    def set_attributes(self, attributes: dict[str, Any]) -> None:
        """Replace the JSON that the store remembers for its caller, as a new generation."""
        text = to_json(attributes, "attributes")
        self._publish()
        with self._lock:
            self._core.set_attributes(text)

    # -- searching ----------------------------------------------------------------------------------------------

    def search(
        self,
        queries: Any,
        k: int = 1024,
        *,
        nprobe: int | None = None,
        recall: float | None = None,
        depth: int | None = None,
        rerank: Literal["none", "code", "keys"] | str | None = None,
        exact: bool = False,
        exclude: Any = None,
        allow: Sequence[Any] | None = None,
        deny: Sequence[Any] | None = None,
        return_documents: bool = False,
        threads: int | None = None,
    ) -> Neighbours:
        """Find the `k` nearest entries of each query.

        Args:
            queries: `(..., dim)` finite floats.
            k: neighbours per query, 1 or more; where the store has fewer, the rest is missing.
            nprobe: lists to scan; more is slower and finds more. By default as many as `recall` needs.
            recall: share of the true neighbours to find, above 0 and at most 1, from what `build` measured; 0.95 if
                neither this nor `nprobe` is given. Small stores are scanned as a whole.
            depth: candidates to score again; by default as many as `recall` needs, with `nprobe` twice k.
            rerank: `"code"` scores candidates again with second-level codes, `"keys"` with raw keys, `"none"` does not;
                None is `"code"` where the store has such codes.
            exact: scan all raw keys instead of the index.
            exclude: `(..., 2)` integers: a half-open range of ids per query that must not come back.
            allow: documents, by name or index, that alone may come back; or one list of them per query.
            deny: documents that must not come back (such as a query's own); or one list of them per query.
            return_documents: give `Neighbours` its `documents` and `positions` as well.
            threads: by default one per core; never changes the answer.

        Returns:
            Neighbours with arrays `(..., k)`. With `exclude`, `allow` or `deny` a query that would find fewer than k
            looks into more lists than `nprobe`.

        Raises:
            ValueError: wrong dimension, NaN or Inf, k < 1, a document that is not there.
            StoreError: raw keys are needed and not kept.
        """
        array = to_floats(queries, "queries", self.dim)
        lead = array.shape[:-1]
        rows = array.reshape(-1, self.dim).astype(np.float32, copy=False)  # (q, d)
        ranges = None
        if exclude is not None:
            ranges = to_integers(exclude, "exclude", np.int64, 0, MAX_ID, "give (start, stop) ids per query")
            if ranges.shape != (*lead, 2):
                raise ValueError(f"exclude must have shape {(*lead, 2)}, a range per query, found {ranges.shape}")
            ranges = ranges.reshape(-1, 2)
            if (ranges[:, 0] > ranges[:, 1]).any():
                found = ranges[int(np.argmax(ranges[:, 0] > ranges[:, 1]))].tolist()
                raise ValueError(f"exclude must have start <= stop in each range, found {found}")
        count = _integer(k, "k", 1, 2**32)
        present = min(count, max(len(self), 1))  # the core makes room for k: what cannot be there is added below
        distances, values, ids, places = self._core.search(
            rows,
            present,
            nprobe=_optional(nprobe, "nprobe"),
            recall=None if recall is None else float(recall),
            depth=_optional(depth, "depth"),
            rerank=rerank,
            exact=exact,
            exclude=ranges,
            allow=document_lists(allow, "allow", len(rows)),
            deny=document_lists(deny, "deny", len(rows)),
            places=return_documents,
            threads=_optional(threads, "threads"),
        )
        nowhere = np.inf if self.metric == "l2" else -np.inf
        return Neighbours(
            _widened(distances.reshape(*lead, present), count, nowhere),
            _widened(values.reshape(*lead, present), count, np.iinfo(values.dtype).max),
            _widened(ids.reshape(*lead, present), count, -1),
            self.metric,
            *(_widened(place.reshape(*lead, present), count, -1) for place in places or ()),
        )

    def calibrate(
        self,
        queries: Any = None,
        *,
        ks: Sequence[int] = (8, 64, 1024),
        recall: float | None = None,
        count: int = 256,
        threads: int | None = None,
        show: Callable[[str], object] | None = print,
    ) -> list[dict[str, float]]:
        """Measure the recall of the index against brute force over the raw keys.

        Args:
            queries: `(q, dim)` keys of text that the store does not hold; by default `count` stored keys at equal
                distances, their own entries left out, which are easier.
            ks: numbers of neighbours.
            recall: what to ask `search` for.
            count: number of stored keys where no queries are given.
            threads: by default one per core.
            show: called with a line for each k; None for silence.

        Returns:
            For each k: k, asked, recall (share of the exact neighbours that were found) and queries.

        Raises:
            StoreError: raw keys are not kept.
        """
        n = len(self)
        own = None
        if queries is None:
            chosen = np.unique(np.linspace(0, max(n - 1, 0), min(count, n)).astype(np.int64))  # (q,)
            queries = self.reconstruct(chosen)
            own = np.stack([chosen, chosen + 1], axis=-1)  # (q, 2)
        rows = to_floats(queries, "queries", self.dim).reshape(-1, self.dim)  # (q, d)
        measured = []
        exact = self.search(rows, max(ks), exact=True, exclude=own, threads=threads).ids
        for k in ks:
            found = self.search(rows, k, recall=recall, exclude=own, threads=threads).ids
            pairs = zip(found, exact[:, :k], strict=True)
            hits = sum(np.isin(a, b[b >= 0], assume_unique=False).sum() for a, b in pairs)
            there = int((exact[:, :k] >= 0).sum())
            asked = 0.95 if recall is None else recall
            share = float(hits) / there if there else 1.0
            measured.append({"k": k, "asked": asked, "recall": share, "queries": len(rows)})
            if show is not None:
                show(f"k = {k}: recall {share:.4f}, asked {asked:.2f}, {len(rows)} queries")
        return measured

    # -- reading ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        self._publish()
        return self._core.n

    @property
    def next_id(self) -> int:
        """The id that the next entry will get: every id so far is below it, those of deleted entries too."""
        self._publish()
        return self._core.next_id

    def get(self, ids: Any) -> Entries:
        """Look entries up by id; −1 (a missing neighbour) is allowed and stays missing.

        Raises:
            ValueError: an id that the store does not have.
        """
        wanted = self._ids(ids, low=-1)
        values, documents, positions = self._core.get(wanted.reshape(-1))
        shape = wanted.shape
        return Entries(
            wanted, values.reshape(shape), documents.reshape(shape), positions.reshape(shape), self._documents()
        )

    def reconstruct(self, ids: Any) -> NDArray[np.float32]:
        """Return keys `(..., dim)`: the raw ones if kept, else what their codes decode to.

        Raises:
            ValueError: an id that the store does not have.
        """
        wanted = self._ids(ids, low=0)
        return self._core.reconstruct(wanted.reshape(-1)).reshape(*wanted.shape, self.dim)

    def keys(self, start: int, stop: int) -> NDArray[np.float32]:
        """Copy the raw keys `(stop - start, dim)` of a range of ids, as float32 whatever they are kept in.

        Raises:
            ValueError: a range outside of the store. StoreError: raw keys are not kept.
        """
        return self._core.keys(*self._range(start, stop)).reshape(-1, self.dim)

    def values(self, start: int, stop: int) -> NDArray[np.unsignedinteger[Any]]:
        """Copy the values `(stop - start,)` of a range of ids; all ones for entries that are deleted.

        Raises:
            ValueError: a range outside of the store.
        """
        return self._core.values(*self._range(start, stop))

    def documents(self) -> Sequence[DocumentInfo]:
        """Return the documents in corpus order: each with name, range of ids and metadata, read when asked for."""
        self._publish()
        return self._documents()

    def document_of(self, ids: Any) -> NDArray[np.int64]:
        """Return the index into `documents()` of each id `(...)`; −1 for −1."""
        return self.get(ids).documents

    def find_document(self, name: str) -> int | None:
        """Return the index into `documents()` of a name, the latest if several commits added it; None if none has.

        A dump gives each document a name of its own: a repeated one becomes "name (2)", and the
        seventh document, if it has none, "document 7".
        """
        self._publish()
        return self._core.find_document(name)

    @property
    def attributes(self) -> dict[str, Any]:
        """JSON that the store remembers for its caller; change it with `set_attributes`."""
        loaded: dict[str, Any] = json.loads(self._core.attributes)
        return loaded

    def info(self) -> dict[str, Any]:
        """Return what the store is, as JSON.

        Among others: n, next_id, dim, metric, value_dtype, keep_keys, generation, documents, deleted_documents and
        deleted_entries (on disk until `compact`), attributes, bytes, bytes_per_entry,
        search_bytes_per_entry, sections (name → bytes), files; and of the index, None before `build`: nlist, code
        (m, bits, bytes), default_nprobe, default_temperature, seed, list_lengths (histogram by powers of two: empty,
        1, 2–3, 4–7 …), drift (by how much the mean quantisation error of what was added since the codebook was learnt
        is larger, as a fraction) and retrain_advised.
        """
        self._publish()
        facts: dict[str, Any] = json.loads(self._core.info())
        index = facts.pop("index") or {}
        facts["n"] = facts.pop("entries")
        facts["code"] = {"m": index["m"], "bits": index["bits"], "bytes": index["code_bytes"]} if index else None
        shape = ("shortest_list", "mean_list", "longest_list", "list_lengths")
        drift = ("fit", "drift", "retrain_advised", "lists_segments")
        for name in ("nlist", "default_nprobe", "default_temperature", "seed", *shape, *drift):
            facts[name] = index.get(name)
        sections: dict[str, int] = {}
        for section in (section for file in facts["files"] for section in file["sections"]):
            sections[section["section"]] = sections.get(section["section"], 0) + section["bytes"]
        return facts | {"sections": sections}

    def verify(self, progress: Callable[[str, int, int], object] | None = None) -> list[str]:
        """Read every byte and check it; return one line per problem, none for a sound store.

        progress: called with ("verify", bytes done, bytes in all).
        """
        self._publish()
        return self._core.verify(progress)

    @staticmethod
    def verify_path(
        path: str | os.PathLike[str], progress: Callable[[str, int, int], object] | None = None
    ) -> list[str]:
        """Do as `verify` does, for a store that may be too damaged to open."""
        return _core.Datastore.verify_path(os.fsdecode(path), progress)

    @property
    def dim(self) -> int:
        """Length of a key."""
        return self._core.dim

    @property
    def metric(self) -> str:
        """`"l2"` or `"ip"`."""
        return self._core.metric

    @property
    def path(self) -> str:
        """Folder of the store."""
        return self._core.path

    @property
    def generation(self) -> int:
        """Number of the manifest that this object reads."""
        return self._core.generation

    @property
    def is_built(self) -> bool:
        """Whether there is an index."""
        return self._core.is_built

    def __repr__(self) -> str:
        if self._core.closed:
            return f"<Datastore {self.path!r}, closed>"
        state = "built" if self.is_built else "not built"
        return f"<Datastore {self.path!r}: {self._core.n} entries, dim {self.dim}, {self.metric}, {state}>"

    # -- inside -------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Commit entries that this process has added. A forked child leaves its parent's alone."""
        if self._pending_in is None:
            return
        with self._lock:
            if self._pending_in == os.getpid():
                self._core.commit()
            self._pending_in = None

    def _documents(self) -> Documents:
        core = self._core
        return Documents(core.document_count, core.document)

    def _ids(self, ids: Any, low: int) -> NDArray[np.int64]:
        n = self.next_id
        held = f"the store has {len(self)} entries" + ("" if n == len(self) else f", the last with id {n - 1}")
        return to_integers(ids, "ids", np.int64, low, n - 1, held)

    def _range(self, start: int, stop: int) -> tuple[int, int]:
        n = self.next_id
        first = _integer(start, "start", 0, n)
        return first, _integer(stop, "stop", first, n)


def _reopen(path: str, generation: int) -> Datastore:
    """Unpickle."""
    return Datastore(_core.Datastore.open(path, generation=generation))


def _integer(x: Any, what: str, low: int, high: int) -> int:
    """Check an integer argument, of any integer type."""
    try:
        number = operator.index(x)
    except TypeError:
        raise ValueError(f"{what} must be an integer, found {x!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{what} must be from {low} to {high}, found {number}")
    return number


def _widened(columns: NDArray[Any], k: int, missing: float) -> NDArray[Any]:
    """Give `(..., present)` columns the width `k`."""
    if columns.shape[-1] == k:
        return columns
    wide = np.full((*columns.shape[:-1], k), missing, columns.dtype)
    wide[..., : columns.shape[-1]] = columns
    return wide


def _optional(x: Any, what: str) -> int | None:
    return None if x is None else _integer(x, what, 1, 2**32)


def _documents_given(documents: str | int | Sequence[str | int]) -> list[int | str]:
    """Check documents by name or index, one or several."""
    given = [documents] if isinstance(documents, (str, int, np.integer)) else list(documents)
    found = document_lists(given, "documents", 0)
    return [key for keys in found[0] for key in keys] if found else []
