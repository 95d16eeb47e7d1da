"""Standard input as a source: kept in a temporary file, because text is read more than once."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any, BinaryIO

from knnlm.text.decoding import lines_of
from knnlm.text.rows import Rows
from knnlm.text.unpacking import FORMATS, DamagedError, Unpacked, suffix_of

_AT_ONCE = 1 << 20  # bytes
_FIRST_LINE = 1 << 24  # bytes of the row that tells whether there are rows


class StandardInput(os.PathLike[str]):
    """What a stream held, read to its end; a source for `read_documents`. The file goes with the object.

    It has no name, so its content tells what it is: packed by the mark of a format, JSONL by a first line that is an
    object with the text field. What came from there before is another origin: it is never taken for an earlier state.
    """

    def __init__(self, stream: BinaryIO, text_field: str = "text") -> None:
        folder = tempfile.mkdtemp(prefix="knnlm-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)  # at the end of the process at last
        raw = Path(folder) / "stdin"
        digest = hashlib.sha256()
        with raw.open("xb") as file:
            while part := stream.read(_AT_ONCE):
                digest.update(part)
                file.write(part)
        self.origin = f"standard input {digest.hexdigest()[:16]}"
        self._path = raw.with_name("stdin" + _suffix(raw, text_field))
        raw.rename(self._path)

    def __fspath__(self) -> str:
        """The path of the file."""
        return str(self._path)

    def __str__(self) -> str:
        return "standard input"


def _suffix(path: Path, text_field: str) -> str:
    """What a name would end in that said what is in the file: .jsonl, .txt.gz and so on; "" for plain text."""
    with path.open("rb") as raw:
        packed = suffix_of(raw.peek(8))
        file: Any = io.BufferedReader(Unpacked(raw, FORMATS[packed])) if packed else raw
        try:
            first = next((line for _, line, _ in lines_of(file, _FIRST_LINE) if line is None or line.strip()), None)
        except DamagedError:  # which reading reports
            return packed
        row = Rows(text_field, _FIRST_LINE).parsed(first) if first else ""
        return (".jsonl" if isinstance(row, dict) and text_field in row else "") + packed
