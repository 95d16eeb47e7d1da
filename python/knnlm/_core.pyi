"""The compiled half: datastore and search in Rust. `knnlm.Datastore` is its public face."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DEBUG",
    "DEFAULT_RECALL",
    "Datastore",
    "FormatError",
    "Held",
    "StoreError",
    "__version__",
    "add_part",
    "calibrate",
    "encode_part",
    "exact_nearest",
    "hold",
    "instruction_sets",
    "plan_calibration",
    "plan_index",
    "reindex",
    "stage_codebook",
    "stage_lists",
]

_DocumentLists: TypeAlias = tuple[Sequence[Sequence[int | str]], Sequence[int]]

class _ExplainedLists(TypedDict):
    """What the search of the lists did with an entry. Scores are those of the metric; estimates may be below 0."""

    nlist: int
    """Number of lists."""
    list: int
    """Number of the entry's list."""
    list_entries: int
    """Entries in it that are not deleted."""
    list_rank: int
    """Rank of its centroid, 0 = nearest."""
    list_distance: float
    """Score of its centroid."""
    probed: bool
    """Whether the search scanned the list."""
    nprobe: int
    """Lists that the query may scan."""
    lists_scanned: int
    """Lists that it scanned."""
    reach: float | None
    """Score beyond which a centroid is out of reach; None where only nprobe counts."""
    first_limit: float | None
    """Limit of first-level scores after the nearest lists; None if these held too few candidates."""
    last_limit: float | None
    """Limit of first-level scores at the end; None if there were too few candidates."""
    first_score: float | None
    """The entry's first-level score."""
    candidates: int
    """Candidates that the search kept."""
    candidate: bool
    """Whether the entry was among them."""
    second_score: float | None
    """Its score with the second-level code; None for codes of one level."""
    rerank: Literal["none", "code", "keys"]
    """How candidates were scored again."""

class _Explained(TypedDict):
    """Why an entry is a neighbor of a query, or why not."""

    reason: Literal[
        "returned",
        "unknown_id",
        "deleted",
        "excluded",
        "not_allowed",
        "denied",
        "list_not_probed",
        "list_out_of_reach",
        "list_left_out_by_estimate",
        "score_beyond_limit",
        "cut_at_rescoring",
        "beyond_k",
    ]
    rank: int | None
    """Place among the neighbors, 0 = nearest, if it is one."""
    distance: float | None
    """The score that it was returned with."""
    kth_distance: float | None
    """Score of the last neighbor; None if fewer than k were found."""
    exact_distance: float | None
    """Score by its raw key, where that is kept."""
    scanned_exactly: bool
    """Whether its raw key was compared: the search was exact, or the entry is in no list."""
    lists: _ExplainedLists | None
    """None for an exact search and for an entry that is in no list."""

__version__: str
DEBUG: bool
DEFAULT_RECALL: float

class StoreError(Exception):
    """The store is not in a state that allows the operation: keys not kept, closed, a second writer."""

class FormatError(ValueError):
    """A file of the store is damaged, truncated, of a newer format or not ours."""

def instruction_sets() -> list[str]:
    """Names of the instruction sets of this CPU that kernels exist for, slowest first."""

def plan_index(n: int, dim: int, nlist: int | None = None) -> tuple[int, int]:
    """Lists aimed at for n keys of dimension dim, and how many keys a build samples and holds as float32."""

def encode_part(
    store: Datastore,
    keys: NDArray[np.float16] | NDArray[np.float32],
    folder: str,
    stem: str,
    *,
    threads: int | None,
) -> str:
    """Encode the keys of a part into files of a folder, without the lock; return what `add_part` needs, as JSON."""

def add_part(
    store: Datastore,
    folder: str,
    encoded: str,
    documents: Sequence[tuple[str | None, str | None, int]],
    values: NDArray[np.unsignedinteger[Any]],
    keys: NDArray[np.float16] | NDArray[np.float32] | None,
) -> tuple[int, int]:
    """Add documents (name, metadata, number of entries) whose keys were encoded; the files move into the store.

    keys: raw keys (n, d) where the store keeps them, else None.
    """

def calibrate(
    store: Datastore,
    queries: NDArray[np.float32],
    own: NDArray[np.int64],
    ids: NDArray[np.int64],
    *,
    threads: int | None,
    progress: Callable[[str, int, int], object] | None,
) -> None:
    """Measure the recall of the index against the exact neighbors (q, k) of queries (q, d)."""

def exact_nearest(
    keys: NDArray[np.float16] | NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    *,
    metric: str,
    first_id: int,
    exclude: NDArray[np.int64],
    threads: int | None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Exact k nearest of keys, whose ids count from `first_id`, for each query, less one range of ids each."""

def plan_calibration(n: int) -> tuple[int, int, int]:
    """For n entries: stored keys that serve as queries, neighbors of each, entries around its own to leave out."""

@final
class Held:
    """The writer's lock on a store."""

    def release(self) -> None:
        """Let other writers in."""

def hold(store: Datastore) -> Held:
    """Commit what was added, move to the newest generation and keep writers but this store's object out."""

def stage_codebook(
    store: Datastore,
    folder: str,
    name: str,
    sample: NDArray[np.float16] | NDArray[np.float32],
    *,
    expected: int,
    seed: int,
    nlist: int | None,
    code: str | tuple[int, int] | None,
    threads: int | None,
    progress: Callable[[str, int, int], object] | None,
) -> str:
    """Learn a codebook from a sample of keys (n, d) into the file `name` of a folder; return its name as JSON."""

def stage_lists(
    store: Datastore,
    folder: str,
    codebook: str,
    keys: NDArray[np.float16] | NDArray[np.float32],
    runs: Sequence[tuple[int, int]],
    ids: tuple[int, int],
    name: str,
    *,
    threads: int | None,
) -> str:
    """Encode keys (n, d) with a staged codebook into the file `name` of its folder, without the lock.

    runs: (first id, number) of ids that follow each other. ids: the range that the file stands for.
    """

def reindex(
    store: Datastore,
    held: Held,
    folder: str,
    codebook: str,
    lists: str,
    queries: NDArray[np.float32],
    own: NDArray[np.int64],
    ids: NDArray[np.int64],
    *,
    threads: int | None,
    progress: Callable[[str, int, int], object] | None,
) -> None:
    """Publish a staged codebook and lists (a JSON array) of all entries as the next generation.

    queries (q, d), own (q, 2), ids (q, k): exact neighbors that the recall is measured against.
    """

@final
class Datastore:
    """A store on disk. Arrays must be C-contiguous; JSON crosses as text."""

    @staticmethod
    def create(
        path: str,
        *,
        dim: int,
        metric: str,
        keep_keys: str | None,
        value_dtype: str,
        max_value: int | None,
        attributes: str,
        overwrite: bool,
    ) -> Datastore: ...
    @staticmethod
    def open(
        path: str, *, verify: bool = False, generation: int | None = None, resident: bool = False
    ) -> Datastore: ...
    @staticmethod
    def verify_path(path: str, progress: Callable[[str, int, int], object] | None = None) -> list[str]: ...
    def close(self) -> None:
        """Let go of the files; entries that were not committed are dropped."""

    def check_open(self) -> None:
        """Raise StoreError if closed."""

    def add(
        self,
        keys: NDArray[np.float16] | NDArray[np.float32],
        values: NDArray[np.unsignedinteger[Any]],
        document: str | None,
        metadata: str | None,
    ) -> tuple[int, int]: ...
    def commit(self) -> None: ...
    def discard(self) -> None: ...
    def refresh(self) -> None: ...
    def build(
        self,
        *,
        seed: int | None,
        nlist: int | None,
        code: str | tuple[int, int] | None,
        retrain: bool,
        threads: int | None,
        progress: Callable[[str, int, int], object] | None,
    ) -> None: ...
    def train(
        self,
        keys: NDArray[np.float16] | NDArray[np.float32],
        *,
        expected: int,
        seed: int,
        nlist: int | None,
        code: str | tuple[int, int] | None,
        threads: int | None,
        progress: Callable[[str, int, int], object] | None,
    ) -> None: ...
    def delete(self, documents: Sequence[int | str]) -> int: ...
    def supersede(self, documents: Sequence[int | str]) -> int:
        """Delete documents with the next commit; `discard` takes it back."""

    def compact(self, progress: Callable[[str, int, int], object] | None) -> None: ...
    def damaged(
        self, progress: Callable[[str, int, int], object] | None = None
    ) -> list[tuple[str | None, int, int, list[str]]]:
        """Name, first id, id after the last and damaged sections of each document that `salvage` would drop."""

    def salvage(
        self, progress: Callable[[str, int, int], object] | None = None
    ) -> list[tuple[str | None, int, int, list[str]]]:
        """Compact without what is damaged; returns what `damaged` tells."""

    def notices(self) -> list[str]:
        """What changes have left as it was since the last call."""

    def set_attributes(self, attributes: str) -> None: ...
    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        nprobe: int | None,
        recall: float | None,
        depth: int | None,
        rerank: str | None,
        exact: bool,
        exclude: NDArray[np.int64] | None,
        allow: _DocumentLists | None,
        deny: _DocumentLists | None,
        return_documents: bool,
        threads: int | None,
    ) -> tuple[
        NDArray[np.float32],
        NDArray[np.unsignedinteger[Any]],
        NDArray[np.int64],
        tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    ]: ...
    def explain(
        self,
        query: NDArray[np.float32],
        k: int,
        id: int,
        *,
        nprobe: int | None,
        recall: float | None,
        depth: int | None,
        rerank: str | None,
        exact: bool,
        exclude: NDArray[np.int64] | None,
        allow: _DocumentLists | None,
        deny: _DocumentLists | None,
        threads: int | None,
    ) -> _Explained:
        """Why an entry is among the neighbors of one query, (1, d), or why not; far slower than a search."""

    def entries_scanned(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        nprobe: int | None,
        recall: float | None,
        depth: int | None,
        rerank: str | None,
    ) -> NDArray[np.int64]: ...
    def get(
        self, ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.int64], NDArray[np.int64]]: ...
    def reconstruct(self, ids: NDArray[np.int64]) -> NDArray[np.float32]: ...
    def keys(self, start: int, stop: int) -> NDArray[np.float32]: ...
    def values(self, start: int, stop: int) -> NDArray[np.unsignedinteger[Any]]: ...
    def document(self, index: int) -> tuple[str | None, int, int, str | None]: ...
    def document_spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First ids and ids after the last of all documents, (D,) each."""

    def find_document(self, name: str) -> int | None: ...
    def info(self) -> str: ...
    def verify(self, progress: Callable[[str, int, int], object] | None = None) -> list[str]: ...
    @property
    def document_count(self) -> int: ...
    @property
    def attributes(self) -> str: ...
    @property
    def n(self) -> int: ...
    @property
    def next_id(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def metric(self) -> str: ...
    @property
    def value_dtype(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def generation(self) -> int: ...
    @property
    def is_built(self) -> bool: ...
    @property
    def resident(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
