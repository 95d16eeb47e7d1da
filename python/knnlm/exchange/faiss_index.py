"""A FAISS index that another process reads for this one, so that a damaged file harms only that process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from knnlm.exchange.faiss_process import IDS, INDEX, OPEN, READ, REFUSED, ROWS, receive, send
from knnlm.exchange.vector_files import check_regular
from knnlm.system.extras import explained

MOST_DIM = 1 << 16
"""Length of a key at most, as of a store."""

MOST_JSON = 1 << 20
"""Bytes of what the process says of an index or an error."""

SAID = 2000
"""Characters of what FAISS printed before it died that are looked at for the reason."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from knnlm.exchange.faiss_process import main; main()"
)


class FaissError(RuntimeError):
    """FAISS could not read an index, or its process ended over it."""


class FaissIndex:
    """An open index: n vectors of `dim`, `metric` "l2" or "ip". Close it, or use it as a context.

    ids: (n,) int64, the id of each place; None where place and id are the same. exact: whether vectors are those that
    were given to FAISS, not decoded ones. kind: its FAISS types, outermost first.

    Raises:
        FaissError: the process ended, or FAISS refused the file. ValueError: an index that gives no vectors, or of
            another metric. ImportError: no FAISS. OSError: no such file.
    """

    def __init__(self, path: str | Path, most: int | None = None) -> None:
        """Open the index; `most`: vectors that it may have."""
        self.path = os.fspath(path)
        _check_kind(self.path)
        self._printed: IO[bytes] = tempfile.TemporaryFile(prefix="knnlm-")  # noqa: SIM115
        self._process = start(self._printed)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asked, self._answers = self._process.stdin, self._process.stdout
        try:
            self._send(OPEN, json.dumps(os.path.abspath(path)).encode())
            about = json.loads(self._receive(INDEX))
            self.n, self.dim = int(about["n"]), int(about["dim"])
            self.metric: Literal["l2", "ip"] = "ip" if about["metric"] == "ip" else "l2"
            self.exact, self.kind = bool(about["exact"]), str(about["kind"])
            if not 0 < self.dim <= MOST_DIM:
                raise ValueError(f"{self.path}: expected vectors of dimension 1 to {MOST_DIM:,}, found {self.dim:,}")
            if most is not None and not 0 <= self.n <= most:
                raise ValueError(
                    f"{self.path}: expected at most as many vectors as values, found {self.n:,} for {most:,} values"
                )
            self.ids: NDArray[np.int64] | None = None
            if not about["counts"]:
                self.ids = np.frombuffer(self._receive(IDS, 8 * self.n), "<i8")
        except BaseException:
            self.close()
            raise

    def ask(self, places: NDArray[np.int64]) -> None:
        """Have the vectors of `places` (m,) read; `rows` gives them."""
        self._expected = len(places)
        self._send(READ, np.ascontiguousarray(places, "<i8"))

    def rows(self) -> NDArray[np.float32]:
        """The vectors (m, dim) that were asked for; NaN where FAISS gave none."""
        content = self._receive(ROWS, 4 * self._expected * self.dim)
        return np.frombuffer(content, "<f4").reshape(self._expected, self.dim)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for stream in (self._asked, self._answers):
            with suppress(OSError):  # bytes that a dead process did not take
                stream.close()
        self._process.wait()
        self._printed.close()

    def __enter__(self) -> FaissIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, kind: bytes, content: Any) -> None:
        try:
            send(self._asked, kind, content)
        except OSError:  # it is dead, or has said why it stops: reading tells
            return

    def _receive(self, expected: bytes, length: int | None = None) -> bytearray:
        try:
            kind, content = receive(self._answers, max(MOST_JSON, length or 0))
        except EOFError:
            self._died()
        if kind == REFUSED:
            self._refused(*json.loads(content))
        if kind != expected or (length is not None and len(content) != length):
            raise FaissError(f"{self.path}: expected an answer of {length} bytes, found {len(content)} of another kind")
        return content

    def _refused(self, why: str, text: str) -> NoReturn:
        text = _printable(text)
        if why == "import":
            raise explained(ModuleNotFoundError(name="faiss"), "importing a FAISS index")
        if why == "refused":
            raise ValueError(f"{self.path}: {text}")
        if why == "memory":
            raise FaissError(
                f"{self.path}: expected an index of {os.path.getsize(self.path):,} bytes, found one that asks for far "
                "more memory than that, or a machine that has too little: the file is damaged, or free some memory"
            )
        raise FaissError(f"{self.path}: expected a FAISS index that is whole, found that FAISS refuses it: {text}")

    def _died(self) -> NoReturn:
        self._process.kill()  # where it has not ended by itself, it talks nonsense
        code = self._process.wait()
        how = f"ended with code {code}"
        if code < 0:
            with suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
        if code == -getattr(signal, "SIGKILL", 9):
            raise FaissError(
                f"{self.path}: the process that reads it for FAISS {how}: was it killed, or is memory short? Nothing "
                "was imported"
            )
        self._printed.seek(max(0, self._printed.seek(0, os.SEEK_END) - SAID))
        printed = _printable(" ".join(self._printed.read().decode(errors="replace").split()))
        raise FaissError(
            f"{self.path}: the process that reads it for FAISS {how}, as it does over a damaged file or an index that "
            f"gives no vectors; nothing was imported" + (f"; it said: … {printed[-300:]}" if printed else "")
        )


def start(printed: IO[bytes]) -> subprocess.Popen[bytes]:
    """The process that reads an index, with this one's places to import from, and no others."""
    return subprocess.Popen(
        [sys.executable, "-I", "-c", _START, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=printed,
        bufsize=-1,
    )


def _printable(text: str) -> str:
    """Foreign text without what would change a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _check_kind(path: str) -> None:
    """Refuse by its first bytes what FAISS would call unknown."""
    check_regular(path)
    with open(path, "rb") as file:
        mark = file.read(4)
    if not mark:
        raise ValueError(f"{path}: expected a FAISS index, found an empty file")
    if mark[:2] == b"IB":
        raise ValueError(
            f"{path}: expected an index of float vectors, found a binary one ({mark.decode(errors='replace')}): its "
            "bits are no keys"
        )
