"""A FAISS index in a process of its own, where what FAISS does with a damaged file harms nobody.

Run by `faiss_index` only. The process reads one index, says what it is, gives the ids of its vectors, then vectors for
as long as it is asked. FAISS is C++ that trusts its files: it may throw, end the process, or answer anything.

Frames on standard input and output: a byte for the kind, eight for the length, the content. `OPEN` (JSON: path) is
answered by `INDEX` (JSON) and, unless ids count from 0, `IDS` (int64); `READ` (int64: places) by `ROWS` (float32).
Instead of an answer there may be `REFUSED` (JSON: kind, text), which ends the process.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

OPEN, READ, INDEX, IDS, ROWS, REFUSED = b"O", b"R", b"I", b"D", b"V", b"E"
HEAD = struct.Struct("<cQ")

BYTES_FOR_FILE = 40
"""Memory that an index may take for each byte of its file: ids, their order and the map to lists are 8 bytes each for a
vector, whose code may have one."""

BYTES = 1 << 30
BYTES_FOR_CORE = 16 << 20
"""Memory that it may take beside that: buffers, and stacks of threads."""


CHECKED = 256
"""Vectors of a block whose transformation is made again, to see that it was turned back."""

DAMAGED = ("IndexIVFRaBitQFastScan",)
"""Types whose vectors FAISS reads back wrongly (1.15: from the 33rd of a list on)."""


class RefusedError(Exception):
    """An index that cannot be imported, with what it is."""


class Vectors(NamedTuple):
    """Stored vectors that can be read. ids: (n,) int64 of each place, None for 0 … n − 1. read: places (m,) int64 →
    (m, d) float32. exact: as they were given to FAISS. kind: names of its types, outermost first."""

    n: int
    dim: int
    ids: Any
    read: Callable[[Any], Any]
    exact: bool
    kind: str


def receive(stream: IO[bytes], most: int | None = None) -> tuple[bytes, bytearray]:
    """The next frame; raises EOFError where it ends early, or is of more than `most` bytes."""
    kind, length = HEAD.unpack(_exactly(stream, HEAD.size))
    if most is not None and length > most:
        raise EOFError
    return kind, _exactly(stream, length)


def send(stream: IO[bytes], kind: bytes, content: Any) -> None:
    """Write a frame, of bytes or of an array."""
    view = memoryview(content).cast("B")
    stream.write(HEAD.pack(kind, len(view)))
    stream.write(view)
    stream.flush()


def _exactly(stream: IO[bytes], length: int) -> bytearray:
    content = bytearray(length)
    view, at = memoryview(content), 0
    while at < length:
        count = stream.readinto(view[at:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        at += count
    return content


def main() -> None:
    """Answer the process that started this one until it asks no more."""
    given = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # FAISS prints
    serve(given, answers)


def serve(given: IO[bytes], answers: IO[bytes]) -> None:
    """Answer frames; returns at the end of `given` or after a refusal."""
    try:
        _serve(given, answers)
    except (EOFError, BrokenPipeError):
        return
    except ImportError as error:
        problem = "import", str(error)
    except RefusedError as error:
        problem = "refused", str(error)
    except (MemoryError, OverflowError):
        problem = "memory", ""
    except Exception as error:
        text = _without_place(str(error))
        problem = ("memory", "") if "bad_alloc" in text else ("faiss", text or type(error).__name__)
    try:
        send(answers, REFUSED, json.dumps(problem).encode())
    except BrokenPipeError:
        return


def _serve(given: IO[bytes], answers: IO[bytes]) -> None:
    import numpy as np

    _, request = receive(given)
    path = json.loads(request)
    import faiss

    _limit(faiss, path)
    index = faiss.read_index(path, _flags(faiss))
    vectors = vectors_of(faiss, index)
    metric = _metric(faiss, int(index.metric_type))
    about = {"n": vectors.n, "dim": vectors.dim, "metric": metric, "exact": vectors.exact, "kind": vectors.kind}
    send(answers, INDEX, json.dumps({**about, "counts": vectors.ids is None}).encode())
    if vectors.ids is not None:
        send(answers, IDS, np.ascontiguousarray(vectors.ids, "<i8"))
    while True:
        places = np.frombuffer(receive(given)[1], "<i8")
        send(answers, ROWS, np.ascontiguousarray(vectors.read(places), "<f4"))


def _limit(faiss: Any, path: str) -> None:
    """Take no more memory than an index of this file can need; be the first to go where the machine has none."""
    size = Path(path).stat().st_size
    if hasattr(faiss, "set_deserialization_vector_byte_limit"):
        faiss.set_deserialization_vector_byte_limit(2 * size + (1 << 16))
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        used = int(status["VmData"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return
    most = used + BYTES_FOR_FILE * size + BYTES + BYTES_FOR_CORE * (os.cpu_count() or 1)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _flags(faiss: Any) -> int:
    """Lists on disk are looked for beside the index, not where it says, and not written to; no tables for searches."""
    names = ("READ_ONLY", "ONDISK_SAME_DIR", "SKIP_PRECOMPUTE_TABLE", "PQ_SKIP_SDC_TABLE")
    flags = 0
    for name in names:
        flags |= getattr(faiss, f"IO_FLAG_{name}", 0)
    return flags


def _metric(faiss: Any, number: int) -> str:
    if number == faiss.METRIC_L2:
        return "l2"
    if number == faiss.METRIC_INNER_PRODUCT:
        return "ip"
    names = [name for name in dir(faiss) if name.startswith("METRIC_") and getattr(faiss, name) == number]
    raise RefusedError(
        f"expected squared L2 or inner product, found FAISS metric {names[0] if names else number}: a store has no "
        "such distance"
    )


def vectors_of(faiss: Any, index: Any) -> Vectors:
    """What is stored in an index, whatever it is wrapped in. Raises RefusedError for what gives no vectors."""
    index = faiss.downcast_index(index)
    kind = type(index).__name__
    if isinstance(index, faiss.IndexIDMap):
        return _mapped(faiss, index, kind)
    if isinstance(index, faiss.IndexPreTransform):
        return _transformed(faiss, index, kind)
    if isinstance(index, faiss.IndexRefine):
        return _within(faiss, index, index.refine_index, kind)
    if isinstance(index, (faiss.IndexHNSW, faiss.IndexNSG, faiss.IndexNNDescent)):
        return _within(faiss, index, index.storage, kind)
    if isinstance(index, faiss.IndexIVF):
        return _listed(faiss, index, kind)
    if isinstance(index, (faiss.IndexFlatCodes, faiss.IndexFastScan)):
        exact = isinstance(index, faiss.IndexFlat)
        _check_codes(faiss, index, kind)
        return Vectors(int(index.ntotal), int(index.d), None, _reader(faiss, index, kind), exact, kind)
    raise RefusedError(f"expected an index that holds vectors, found {kind}")


def _within(faiss: Any, index: Any, inner: Any, kind: str) -> Vectors:
    """Vectors that another index holds, under the same ids."""
    if inner is None:
        raise RefusedError(f"expected {kind} with its vectors, found it without: write it with its storage")
    held = vectors_of(faiss, inner)
    _check(held.n == int(index.ntotal) and held.dim == int(index.d) and inner.metric_type == index.metric_type, kind)
    return held._replace(kind=f"{kind} of {held.kind}")


def _mapped(faiss: Any, index: Any, kind: str) -> Vectors:
    """Vectors by the ids that they were added with."""
    import numpy as np

    held = _within(faiss, index, index.index, kind)
    ids = faiss.vector_to_array(index.id_map).astype(np.int64)  # (n,), a copy
    _check(len(ids) == held.n, kind)
    if held.ids is not None:
        # What was removed from lists leaves gaps there, but none here: FAISS's own search is then wrong as well.
        _check(np.array_equal(np.sort(held.ids), np.arange(held.n)), f"{kind} from which vectors were removed")
        ids = ids[held.ids]
    return held._replace(ids=ids)


def _transformed(faiss: Any, index: Any, kind: str) -> Vectors:
    """Vectors in the space that queries come from."""
    import numpy as np

    steps = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
    names = ", ".join(type(step).__name__ for step in steps)
    if index.index is None:
        raise RefusedError(f"expected {kind} with an index in it, found none")
    held = vectors_of(faiss, index.index)
    widths = [int(index.d), *(int(step.d_out) for step in steps)]
    fits = all(int(step.d_in) == width for step, width in zip(steps, widths[:-1], strict=True))
    _check(fits and widths[-1] == held.dim and held.n == int(index.ntotal), kind)
    _check(index.index.metric_type == index.metric_type, kind)

    refused = RefusedError(
        f"expected vectors in the space of the queries, found {kind} with {names}, which FAISS does not turn back: "
        "make the index again without it, or import the keys themselves"
    )

    def read(places: Any) -> Any:
        inner = np.ascontiguousarray(held.read(places), np.float32)  # (m, e)
        out = np.full((len(places), widths[0]), np.nan, np.float32)  # (m, d)
        try:
            index.reverse_chain(len(places), faiss.swig_ptr(inner), faiss.swig_ptr(out))
        except RuntimeError as error:
            raise refused from error
        some, again = inner[:CHECKED], out[:CHECKED]  # whitening is turned back to something else, without a word
        for step in steps:
            again = step.apply(np.ascontiguousarray(again))
        if not np.allclose(again, some, rtol=1e-3, atol=1e-3 * float(np.abs(some).max(initial=0)), equal_nan=True):
            raise refused
        return out

    return Vectors(held.n, widths[0], held.ids, read, held.exact and not steps, f"{kind} ({names}) of {held.kind}")


def _listed(faiss: Any, index: Any, kind: str) -> Vectors:
    """Vectors in inverted lists: places are in the order of ids, and FAISS is told where each of them is."""
    import numpy as np

    if kind in DAMAGED:
        raise RefusedError(
            f"expected an index whose vectors FAISS can read back, found {kind}: import the keys themselves"
        )
    lists = index.invlists
    if lists is None:
        raise RefusedError(f"expected {kind} with its lists, found it without: write it with them")
    count = int(index.nlist)
    centroids = index.quantizer
    _check(int(lists.nlist) == count == int(centroids.ntotal) and centroids.d == index.d, kind)
    _check_codes(faiss, index, kind)
    sizes = [int(lists.list_size(number)) for number in range(count)]
    n = int(index.ntotal)
    if sum(sizes) != n:
        raise RefusedError(f"expected {n:,} vectors in the lists of {kind}, found {sum(sizes):,}")
    ids, where = np.empty(n, np.int64), np.empty(n, np.int64)
    at = 0
    for number, size in enumerate(sizes):
        if size:
            held = lists.get_ids(number)
            ids[at : at + size] = faiss.rev_swig_ptr(held, size)
            lists.release_ids(number, held)
            where[at : at + size] = (number << 32) + np.arange(size, dtype=np.int64)  # lo_build
            at += size
    order = np.argsort(ids, kind="stable")
    ids, where = ids[order], where[order]
    if hasattr(index, "fine_quantizer") and index.fine_quantizer is None:  # FAISS 1.15 leaves it out
        index.fine_quantizer = index.pq if hasattr(index, "pq") else index.aq
    faiss.copy_array_to_vector(where, index.direct_map.array)
    index.direct_map.type = faiss.DirectMap.Array
    exact = isinstance(index, faiss.IndexIVFFlat)
    counts = n == 0 or (ids[0] == 0 and ids[-1] == n - 1 and bool((np.diff(ids) == 1).all()))
    return Vectors(n, int(index.d), None if counts else ids, _reader(faiss, index, kind), exact, kind)


def _reader(faiss: Any, index: Any, kind: str) -> Callable[[Any], Any]:
    import numpy as np

    def read(places: Any) -> Any:
        out = np.full((len(places), int(index.d)), np.nan, np.float32)  # what FAISS leaves out is seen
        try:
            index.reconstruct_batch(places, out)  # not reconstruct_n: it may leave rows out, and ends the process
        except RuntimeError as error:
            raise RefusedError(
                f"expected an index that gives its vectors, found {kind}: {_without_place(str(error))}"
            ) from error
        return out

    return read


def _check_codes(faiss: Any, index: Any, kind: str) -> None:
    """Refuse a damaged index over which FAISS, of older versions above all, would read what lies beside its codes."""
    coder: Any = next((c for name in ("pq", "sq", "aq") if (c := getattr(index, name, None)) is not None), None)
    if coder is not None:
        _check(coder.d == index.d, kind)
    if hasattr(coder, "centroids"):
        _check(coder.M * coder.dsub == coder.d and coder.centroids.size() == coder.d * coder.ksub, kind)
    if hasattr(index, "bbs"):  # fast scan: codes of bbs vectors lie together, 4 bits each
        _check(index.M2 == index.M + index.M % 2 and index.bbs > 0 and index.bbs % 32 == 0, kind)
        if coder is not None and hasattr(coder, "M"):
            _check(index.nbits == 4 and index.M >= coder.M and index.ksub == 16, kind)
        lists = getattr(index, "invlists", None)
        if lists is None:
            _check(index.ntotal2 >= index.ntotal and index.codes.size() >= index.ntotal2 * index.M2 // 2, kind)
            return
        lists = faiss.downcast_InvertedLists(lists)
        fits = lists.n_per_block == index.bbs and lists.block_size >= index.bbs * index.M2 // 2
        _check(fits, kind)
    elif isinstance(index, faiss.IndexFlatCodes):
        coarse = getattr(index, "code_size_1", 0)  # of Index2Layer
        _check(coder is None or coarse + coder.code_size == index.code_size, kind)
        _check(index.codes.size() == index.ntotal * index.code_size, kind)
    elif isinstance(index, faiss.IndexIVF):
        _check(coder is None or coder.code_size == index.code_size, kind)
        _check(index.invlists.code_size == index.code_size, kind)


def _check(sound: bool, kind: str) -> None:
    if not sound:
        raise RefusedError(f"expected {kind} whose parts fit, found that they do not: the file is damaged")


def _without_place(text: str) -> str:
    """FAISS's own words, without the functions and lines that they come from."""
    return " ".join(re.sub(r"Error in .*? at \S+:\d+: (Error: )?", "", " ".join(text.split())).split())
