"""An array that grows by rows and moves to a temporary file when it becomes large, so that memory stays bounded."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

LIMIT = 1 << 28
"""Bytes that an array keeps in memory."""


class GrowingArray:
    """Rows appended one block at a time; `finish` gives the whole, in memory or mapped from a file without a name.

    The file lies where Python keeps temporary files (TMPDIR), and its space is free again once the array is gone.
    """

    def __init__(self, limit: int | None = None) -> None:
        """limit: bytes in memory; default `LIMIT`."""
        self._limit = LIMIT if limit is None else limit
        self._parts: list[NDArray[Any]] = []
        self._file: IO[bytes] | None = None
        self._rows = self._bytes = 0

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows (m, ...); all blocks have one dtype and one trailing shape."""
        self._rows += len(rows)
        self._bytes += rows.nbytes
        self._parts.append(rows)
        if self._file is None and self._bytes > self._limit:
            self._file = tempfile.TemporaryFile(prefix="knnlm-")  # noqa: SIM115
        if self._file is not None:
            for part in (part for part in self._parts if part.nbytes):
                self._write(part)
            self._parts = [rows[:0]]

    def _write(self, part: NDArray[Any]) -> None:
        assert self._file is not None
        try:
            self._file.write(np.ascontiguousarray(part).data.cast("B"))
            self._file.flush()
        except OSError as error:
            with suppress(OSError):  # what it has not written yet it tries again
                self._file.close()
            says = f"{error.strerror}; expected room for a temporary file: set TMPDIR to a folder on a larger disk"
            raise OSError(error.errno, says, tempfile.gettempdir()) from error

    def truncate(self, rows: int) -> None:
        """Keep the first `rows` rows."""
        extra = self._rows - rows
        while extra > 0 and self._file is None:
            last = self._parts.pop()
            kept = last[: max(0, len(last) - extra)]
            self._bytes -= last.nbytes - kept.nbytes
            extra -= len(last) - len(kept)
            self._parts.append(kept)
            if not len(kept) and len(self._parts) > 1:
                self._parts.pop()
        if self._file is not None and extra > 0:
            row = self._parts[0].dtype.itemsize * int(np.prod(self._parts[0].shape[1:], dtype=np.int64))
            self._file.truncate(rows * row)
            self._file.seek(rows * row)
            self._bytes = rows * row
        self._rows = min(self._rows, rows)

    def finish(self) -> NDArray[Any]:
        """The rows (n, ...), once; raises ValueError if there was none."""
        if not self._parts:
            raise ValueError("expected at least one block of rows, found none")
        first = self._parts[0]
        if self._file is not None:
            with self._file as file:
                file.flush()
                return np.memmap(file, first.dtype, "r+", shape=(self._rows, *first.shape[1:]))
        out = np.empty((self._rows, *first.shape[1:]), first.dtype)
        at = 0
        while self._parts:  # letting go of the blocks on the way
            part = self._parts.pop(0)
            out[at : at + len(part)] = part
            at += len(part)
        return out
