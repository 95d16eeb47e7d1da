"""Reading a datastore: search, look-ups by id, range or document, and what it says of itself.

What was added before is published first, so that it is found. Needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from knnlm import _core
from knnlm._core import StoreError
from knnlm.store.arrays import (
    MAX_ID,
    one_of,
    to_flag,
    to_floats,
    to_integer,
    to_integers,
    to_optional,
    to_progress,
    to_threads,
    widened,
)
from knnlm.store.entries import DocumentInfo, Documents, Entries, LostDocument, document_lists, lost_documents
from knnlm.store.neighbors import Neighbors
from knnlm.store.recall_sample import around, spread_ids
from knnlm.store.why import Why, why
from knnlm.system.counted import counted
from knnlm.system.json_text import from_json
from knnlm.system.memory import refuse_answer


class Reader:
    """What a `Datastore` answers; safe from several threads and after `fork`."""

    _core: _core.Datastore

    def _publish(self) -> None:
        """Commit entries that this process has added."""
        raise NotImplementedError

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
    ) -> Neighbors:
        """Find the `k` nearest entries of each query.

        Args:
            queries: `(..., dim)` finite floats.
            k: neighbors per query, 1 or more; where the store has fewer, the rest is missing, and the answer as large
                as if it were there.
            nprobe: lists to scan; more is slower and finds more. By default as many as `recall` needs.
            recall: share of the true neighbors to find, above 0 and at most 1, from what `build` measured; 0.97, or
                what its codes can reach, if neither this nor `nprobe` is given. Small stores are scanned as a whole.
            depth: candidates to score again, where that is done; by default as many as `recall` needs, with `nprobe`
                twice k.
            rerank: `"code"` scores candidates again with second-level codes, `"keys"` with raw keys, `"none"` does not;
                None is `"code"` where the store has such codes.
            exact: scan all raw keys instead of the index.
            exclude: `(..., 2)` integers: a half-open range of ids per query that must not come back.
            allow: documents, by name or index, that alone may come back; or one list of them per query.
            deny: documents that must not come back (such as a query's own); or one list of them per query.
            return_documents: give `Neighbors` its `documents` and `positions` as well.
            threads: by default one per core; never changes the answer.

        Returns:
            Neighbors with arrays `(..., k)`. With `exclude`, `allow` or `deny` a query that would find fewer than k
            looks into more lists than `nprobe`.

        Raises:
            ValueError: wrong dimension, NaN or Inf, k < 1, an answer that memory cannot hold, a document that is not
                there.
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
        count = to_integer(k, "k", 1, 2**32)
        n = len(self)
        present = min(count, max(n, 1))  # the core makes room for k: what cannot be there is added below
        refuse_answer(len(rows), count, n, 4 + 8 + 8 * (3 if return_documents else 1))
        distances, values, ids, documents = self._core.search(
            rows,
            present,
            nprobe=to_optional(nprobe, "nprobe"),
            recall=_share(recall),
            depth=to_optional(depth, "depth"),
            rerank=one_of(rerank, "rerank", ("none", "code", "keys", None)),
            exact=to_flag(exact, "exact"),
            exclude=ranges,
            allow=document_lists(allow, "allow", len(rows)),
            deny=document_lists(deny, "deny", len(rows)),
            return_documents=to_flag(return_documents, "return_documents"),
            threads=to_threads(threads),
        )
        shape = (*lead, present)
        distances, values, ids = distances.reshape(shape), values.reshape(shape), ids.reshape(shape)
        where = [numbers.reshape(shape) for numbers in documents or ()]
        if present < count:
            distances = widened(distances, count, np.inf if self.metric == "l2" else -np.inf)
            values, ids = widened(values, count, np.iinfo(values.dtype).max), widened(ids, count, -1)
            where = [widened(numbers, count, -1) for numbers in where]
        return Neighbors(distances, values, ids, self.metric, *where)

    def why(self, query: Any, id: int, k: int = 1024, **options: Any) -> Why:
        """Say why an entry is among the `k` neighbors of one query, `(dim,)`, or why not; far slower than a search.

        Args:
            query: one key. id: of the entry. k: neighbors. options: of `search`, all but return_documents.

        Returns:
            A `Why`; its text is one sentence.

        Raises:
            ValueError, StoreError: as `search`.
        """
        self._publish()
        return why(self._core, query, id, k, **options)

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
                distances, their own entries and those nearby left out.
            ks: numbers of neighbors.
            recall: what to ask `search` for.
            count: number of stored keys where no queries are given.
            threads: by default one per core.
            show: called with a line for each k; None for silence.

        Returns:
            For each k: k, asked, recall (share of the exact neighbors that were found) and queries.

        Raises:
            StoreError: raw keys are not kept. What was measured while such a store was made is in `info()`, and
                `search(recall=)` uses it.
        """
        n = len(self)
        if self._core.is_built and self.info()["entries_with_keys"] < n:
            known = {row["k"]: round(row["best_recall"], 4) for row in self.info()["calibration"] or ()}
            raise StoreError(
                "calibrate: expected raw keys of all entries, found a store that keeps codes only; "
                + (f"its best recall for k was measured when it was built: {known}" if known else "")
                + " build it with keep_keys (in commands --keep-keys) to measure again"
            )
        own = None
        if queries is None:
            chosen = spread_ids(self, count)  # (q,)
            queries = self.reconstruct(chosen)
            own = around(chosen, _core.plan_calibration(n)[2])  # (q, 2)
        rows = to_floats(queries, "queries", self.dim).reshape(-1, self.dim)  # (q, d)
        measured = []
        exact = self.search(rows, max(ks), exact=True, exclude=own, threads=threads).ids
        for k in ks:
            found = self.search(rows, k, recall=recall, exclude=own, threads=threads).ids
            pairs = zip(found, exact[:, :k], strict=True)
            hits = sum(np.isin(a, b[b >= 0], assume_unique=False).sum() for a, b in pairs)
            there = int((exact[:, :k] >= 0).sum())
            asked = round(_core.DEFAULT_RECALL, 6) if recall is None else recall
            share = float(hits) / there if there else 1.0
            measured.append({"k": k, "asked": asked, "recall": share, "queries": len(rows)})
            if show is not None:
                show(f"k = {k}: recall {share:.4f}, asked {asked:.2f}, {counted(len(rows), 'query')}")
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
        """Look entries up by id; −1 (a missing neighbor) is allowed and stays missing.

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

    def document_spans(self) -> NDArray[np.int64]:
        """Return the half-open ranges of ids of all documents, (D, 2) in corpus order: without names, in one call."""
        self._publish()
        return np.stack(self._core.document_spans(), axis=1)

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
        return from_json(self._core.attributes, f"{self.path}: attributes")

    def info(self) -> dict[str, Any]:
        """Return what the store is, as JSON.

        Among others: n, next_id, dim, metric, value_dtype, keep_keys, generation, documents, deleted_documents and
        deleted_entries (on disk until `compact`), attributes, bytes, bytes_per_entry, search_bytes_per_entry, sections
        (name → bytes), files; and of the index, None before `build`: nlist, code (m parts of bits, in bytes;
        second_bits a dimension, 0 = no second level), default_nprobe, default_temperature, seed, list_lengths
        (histogram by powers of two: empty, 1, 2–3, 4–7 …), drift (by how much the mean quantisation error of what was
        added since the codebook was learnt is larger, as a fraction), retrain_advised and retrain_reason (whether the
        store has outgrown its index, by that error or by its size) and calibration (for each k the best recall that can
        be asked for, by codes and, where they are kept, by raw keys).
        """
        self._publish()
        facts = from_json(self._core.info(), f"{self.path}: attributes and facts")
        index = facts.pop("index") or {}
        facts["n"] = facts.pop("entries")
        names = {"m": "m", "bits": "bits", "bytes": "code_bytes", "second_bits": "second_bits"}
        facts["code"] = {name: index[held] for name, held in names.items()} if index else None
        shape = ("shortest_list", "mean_list", "longest_list", "list_lengths")
        drift = ("fit", "drift", "retrain_advised", "retrain_reason", "lists_segments", "calibration")
        for name in ("nlist", "default_nprobe", "default_temperature", "seed", *shape, *drift):
            facts[name] = index.get(name)
        sections: dict[str, int] = {}
        for section in (section for file in facts["files"] for section in file["sections"]):
            sections[section["section"]] = sections.get(section["section"], 0) + section["bytes"]
        return facts | {"sections": sections}

    def damaged(self, progress: Callable[[str, int, int], object] | None = None) -> list[LostDocument]:
        """Read every byte; return the documents that `compact(drop_damaged=True)` would drop, none for a sound store.

        What is damaged is known by the MiB. Damage of values, keys or the document table touches a few documents; of
        codes, whose entries lie in the order of lists, nearly all, unless raw keys are kept: then codes are made anew
        and nothing is lost by it. `retrain` makes codes anew from the model.

        Raises:
            FormatError: the codebook is damaged, without which no code means anything: `build(retrain=True)`.
        """
        self._publish()
        return lost_documents(self._core.damaged(to_progress(progress)))

    def verify(self, progress: Callable[[str, int, int], object] | None = None) -> list[str]:
        """Read every byte and check it; return one line per problem, none for a sound store.

        progress: called with ("verify", bytes done, bytes in all).
        """
        self._publish()
        return self._core.verify(to_progress(progress))

    @staticmethod
    def verify_path(
        path: str | os.PathLike[str], progress: Callable[[str, int, int], object] | None = None
    ) -> list[str]:
        """Do as `verify` does, for a store that may be too damaged to open."""
        return _core.Datastore.verify_path(os.fsdecode(path), to_progress(progress))

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
    def default_temperature(self) -> float | None:
        """The T that `build` found for this store, None before."""
        found = self.info()["default_temperature"]
        return float(found) if found is not None and found > 0 else None

    @property
    def is_built(self) -> bool:
        """Whether there is an index."""
        return self._core.is_built

    def __repr__(self) -> str:
        if self._core.closed:
            return f"<Datastore {self.path!r}, closed>"
        state = "built" if self.is_built else "not built"
        return f"<Datastore {self.path!r}: {counted(self._core.n, 'entry')}, dim {self.dim}, {self.metric}, {state}>"

    # -- inside -----------------------------------------------------------------------------------------------------

    def _documents(self) -> Documents:
        core = self._core
        return Documents(core.document_count, core.document)

    def _ids(self, ids: Any, low: int) -> NDArray[np.int64]:
        n = self.next_id
        last = "" if n == len(self) else f", the last with id {n - 1}"
        held = f"the store has {counted(len(self), 'entry')}{last}"
        return to_integers(ids, "ids", np.int64, low, n - 1, held)

    def _range(self, start: int, stop: int) -> tuple[int, int]:
        n = self.next_id
        first = to_integer(start, "start", 0, n)
        return first, to_integer(stop, "stop", first, n)


def _share(recall: Any) -> float | None:
    """Check a number from 0 to 1 that may be left out; the core knows its limits."""
    try:
        return None if recall is None else float(recall)
    except (TypeError, ValueError):
        raise ValueError(f"recall must be above 0 and at most 1, found {recall!r}") from None
