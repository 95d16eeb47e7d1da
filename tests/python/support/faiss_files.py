"""FAISS indexes of every type that it writes, and processes that read them for the import without a start each.

`Forks` stands in for `knnlm.exchange.faiss_index.start`: a process that has loaded FAISS forks, which takes a few
milliseconds.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

D = 16

EXACT, LOSSY = "exact", "lossy"

# Factory string or name below → what becomes of it; what else is there is the text of a refusal.
KINDS = {
    "Flat": EXACT,
    "IVF4,Flat": EXACT,
    "SQ8": LOSSY,
    "SQ4": LOSSY,
    "SQ6": LOSSY,
    "SQfp16": LOSSY,
    "SQbf16": LOSSY,
    "IVF4,SQ8": LOSSY,
    "IVF4,SQfp16": LOSSY,
    "PQ4x4": LOSSY,
    "PQ2x6": LOSSY,
    "PQ4x4fs": LOSSY,
    "IVF4,PQ4x4": LOSSY,
    "IVF4,PQ4x4fs": LOSSY,
    "IVF4,PQ4x4fsr": LOSSY,
    "IVF4,PQ2+4": LOSSY,
    "HNSW8,Flat": EXACT,
    "HNSW8,SQ8": LOSSY,
    "HNSW8,PQ4x4": LOSSY,
    "NSG8,Flat": EXACT,
    "NSG8,SQ8": LOSSY,
    "NSG8,PQ4x4": LOSSY,
    "nndescent": EXACT,
    "LSH": LOSSY,
    "LSHr": LOSSY,
    "LSHt": LOSSY,
    "OPQ4,PQ4x4": LOSSY,
    "OPQ4_16,IVF4,PQ4x4": LOSSY,
    "PCA8,Flat": LOSSY,
    "PCAR8,Flat": LOSSY,
    "PCAW8,Flat": "with PCAMatrix, which FAISS does not turn back",
    "ITQ8,Flat": "with ITQTransform, which FAISS does not turn back",
    "RR8,Flat": LOSSY,
    "RR24,IVF4,Flat": LOSSY,
    "L2norm,Flat": LOSSY,
    "Pad32,Flat": LOSSY,
    "center": LOSSY,
    "PQ4x4fs,RFlat": EXACT,
    "IVF4,PQ4x4,RFlat": EXACT,
    "PQ4x4,Refine(SQfp16)": LOSSY,
    "IMI2x2,Flat": EXACT,
    "IVF4_HNSW8,Flat": EXACT,
    "Residual4,PQ4x4": LOSSY,
    "RQ2x4": LOSSY,
    "LSQ2x4": LOSSY,
    "PRQ2x1x4": LOSSY,
    "PLSQ2x1x4": LOSSY,
    "IVF4,RQ2x4": LOSSY,
    "IVF4,LSQ2x4": LOSSY,
    "RQ2x4fs_32_Nrq2x4": LOSSY,
    "IVF4,RQ2x4fs_32_Nrq2x4": LOSSY,
    "IVF4,PLSQ2x1x4fs_32_Nlsq2x4": LOSSY,
    "RaBitQ": LOSSY,
    "RaBitQfs": LOSSY,
    "IVF4,RaBitQ": LOSSY,
    "IVF4,RaBitQfs": "whose vectors FAISS can read back, found IndexIVFRaBitQFastScan",
    "IVF4,ITQ8,SH": "that gives its vectors, found IndexIVFSpectralHash",
    "dedup": "that gives its vectors, found IndexIVFFlatDedup",
    "IDMap,Flat": EXACT,
    "IDMap2,Flat": EXACT,
    "IDMap,IVF4,Flat": EXACT,
    "IDMap2,IVF4,PQ4x4fs": LOSSY,
    "IDMap2,OPQ4,PQ4x4": LOSSY,
    "IDMap,HNSW8,Flat": EXACT,
    "binary": "expected an index of float vectors, found a binary one",
}


def vectors(n: int, seed: int = 0) -> Any:
    """Keys (n, D) float32."""
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


def index_of(kind: str, keys: Any, ids: Any = None) -> Any:
    """A FAISS index of the kind with these keys; skips the test where this FAISS has no such kind."""
    faiss = pytest.importorskip("faiss")
    for_training = np.concatenate([keys, vectors(300, 1)])
    try:
        if kind == "nndescent":
            index = faiss.IndexNNDescentFlat(D, 8, faiss.METRIC_L2)
        elif kind == "center":
            index = faiss.IndexPreTransform(faiss.CenteringTransform(D), faiss.IndexFlatL2(D))
        elif kind == "dedup":
            quantizer = faiss.IndexFlatL2(D)
            index = faiss.IndexIVFFlatDedup(quantizer, D, 4, faiss.METRIC_L2)
            index.own_fields = bool(quantizer.this.disown()) or True
        elif kind == "binary":
            index = faiss.IndexBinaryFlat(8 * D)
            index.add(keys.view(np.uint8)[:, :D].copy())
            return index
        else:
            index = faiss.index_factory(D, kind)
    except (AttributeError, RuntimeError) as error:
        pytest.skip(f"this FAISS has no {kind}: {error}")
    _train_little(index)
    with hidden_output():
        index.train(for_training)
        if ids is None and not kind.startswith("IDMap"):
            index.add(keys)
        else:
            index.add_with_ids(keys, np.arange(len(keys)) if ids is None else np.asarray(ids, np.int64))
    return index


def _train_little(index: Any) -> None:
    """Leave out what takes most of the time of training and changes only how well an index does."""
    import faiss

    index = faiss.downcast_index(index)
    if hasattr(index, "do_polysemous_training"):
        index.do_polysemous_training = False
    if isinstance(index, faiss.IndexNSG):
        index.build_type = 0  # the other way of building aborts now and then on as few vectors
    if isinstance(index, faiss.IndexPreTransform):
        for number in range(index.chain.size()):
            step = faiss.downcast_VectorTransform(index.chain.at(number))
            if isinstance(step, faiss.OPQMatrix):
                step.niter = 2
    for name in ("index", "storage", "base_index", "refine_index"):
        inner = getattr(index, name, None)
        if isinstance(inner, faiss.Index):
            _train_little(inner)


def write(index: Any, path: Path) -> Path:
    """The index in a file."""
    import faiss

    binary = isinstance(index, faiss.IndexBinary)
    (faiss.write_index_binary if binary else faiss.write_index)(index, str(path))
    return path


class hidden_output:  # noqa: N801
    """FAISS's warnings of few training vectors go nowhere; they do not pass through Python."""

    def __enter__(self) -> None:
        self.kept = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)

    def __exit__(self, *error: object) -> None:
        os.dup2(self.kept, 2)
        os.close(self.kept)


class Forks:
    """A process that has loaded FAISS and becomes, once for each index, the one that reads it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; import faiss_files; faiss_files._fork_for({theirs.fileno()})"
        self._server = subprocess.Popen(
            [sys.executable, "-I", "-c", code], pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL
        )
        theirs.close()

    def start(self, printed: IO[bytes]) -> Forked:
        """As `knnlm.exchange.faiss_index.start`."""
        (given, asked), (answers, answered) = os.pipe(), os.pipe()
        socket.send_fds(self._socket, [b"import"], [given, answered, printed.fileno()])
        os.close(given)
        os.close(answered)
        return Forked(self, int(self._socket.recv(100)), os.fdopen(asked, "wb"), os.fdopen(answers, "rb"))

    def reconstructed(self, path: Path, out: Path) -> bool:
        """Have FAISS write what its own `reconstruct` gives, by id (`oracle`); False where that ends its process."""
        with open(os.devnull, "r+b") as nowhere:
            names = f"{path}\n{out}".encode()
            socket.send_fds(self._socket, [b"oracle " + names], [nowhere.fileno()] * 3)
        return self.wait(int(self._socket.recv(100))) == 0

    def wait(self, process: int) -> int:
        """Its exit code, negative for a signal."""
        self._socket.send(b"wait %d" % process)
        return int(self._socket.recv(100))

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._server.wait()


class Forked:
    """What the import needs of a process."""

    def __init__(self, forks: Forks, process: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.forks, self.process, self.stdin, self.stdout = forks, process, stdin, stdout
        self.code: int | None = None

    def kill(self) -> None:
        if self.code is None:
            os.kill(self.process, signal.SIGKILL)

    def wait(self) -> int:
        if self.code is None:
            self.code = self.forks.wait(self.process)
        return self.code


def _fork_for(descriptor: int) -> None:
    import faiss  # noqa: F401

    from knnlm.exchange import faiss_process

    asked = socket.socket(fileno=descriptor)
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, 4096, 3)
        if not message:
            return
        if message.startswith(b"wait "):
            asked.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(int(message[5:]), 0)[1]))
            continue
        process = os.fork()
        if process == 0:
            asked.close()
            for number, given in enumerate(descriptors):
                os.dup2(given, number)
                os.close(given)
            try:
                if message == b"import":
                    faiss_process.main()
                else:
                    oracle(*message[7:].decode().split("\n"))
            except BaseException:
                os._exit(1)
            os._exit(0)
        for given in descriptors:
            os.close(given)
        asked.send(b"%d" % process)


def oracle(path: str, out: str) -> None:
    """Write ids and FAISS's own reconstruction of each vector: by searching for all of them, or one by one."""
    import faiss

    owner = faiss.read_index(path)
    outer = index = faiss.downcast_index(owner)
    n = int(index.ntotal)
    ids = np.arange(n)
    if isinstance(outer, faiss.IndexIDMap):
        ids, index = faiss.vector_to_array(outer.id_map), faiss.downcast_index(outer.index)
    lists = lists_of(index)
    if lists is not None:
        if hasattr(lists, "fine_quantizer"):
            lists.fine_quantizer = lists.pq if hasattr(lists, "pq") else lists.aq
        own = [
            faiss.rev_swig_ptr(lists.invlists.get_ids(i), lists.invlists.list_size(i)).copy()
            for i in range(lists.nlist)
        ]
        lists.set_direct_map_type(faiss.DirectMap.Hashtable)
        ids = np.sort(np.concatenate(own)) if index is outer else ids
        places = ids if index is outer else np.arange(n)
    else:
        places = np.arange(n)
    np.savez(out, ids=ids, keys=np.stack([index.reconstruct(int(i)) for i in places]))


def lists_of(index: Any) -> Any:
    """The inverted lists of an index, None where it has none."""
    import faiss

    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return lists_of(index.index)
    return index if isinstance(index, faiss.IndexIVF) else None


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """One for the tests of a file."""
    if os.name != "posix":
        pytest.skip("no fork there")
    pytest.importorskip("faiss")
    made = Forks()
    yield made
    with suppress(OSError):
        made.close()
