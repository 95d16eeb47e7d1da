"""Gzip as it is read: members one after the other, no more in memory than is asked for, and what lies behind the end.

Python's `gzip` refuses a whole file for bytes behind its last member, which downloads and tapes have.
"""

from __future__ import annotations

import io
import os
import zlib
from typing import Any, BinaryIO

_MAGIC = b"\x1f\x8b"
_PACKED = 1 << 16  # bytes read at a time


class Gunzip(io.RawIOBase):
    """The unpacked bytes of an open gzip file; wrap it in `io.BufferedReader`.

    trailing: bytes behind the last member that are neither zeros nor gzip, known at the end; they are left out. Reading
    raises EOFError where the file ends within a member, zlib.error where it is damaged or no gzip at all.
    """

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__()
        self.trailing = 0
        self._raw = raw
        self._packed = b""
        self._member: Any = None
        self._members = 0
        self._ended = False

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, less only at the end."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and not self._ended:
            if self._member is None and not self._begin():
                break
            self._packed = self._packed or self._raw.read(_PACKED)
            at_end = not self._packed
            try:
                found = self._member.decompress(self._packed, len(view) - filled)
            except zlib.error:
                if filled:
                    return filled  # what came before it first: the next call meets it again
                raise
            view[filled : filled + len(found)] = found
            filled += len(found)
            if self._member.eof:
                self._packed, self._member = self._member.unused_data, None
            else:
                self._packed = self._member.unconsumed_tail
                if at_end and not found:
                    if filled:
                        return filled
                    raise EOFError("it ends before its end mark")
        return filled

    def _begin(self) -> bool:
        """Go on to the next member; False at the end."""
        while True:
            if self._members:  # zeros fill the last block of a tape
                self._packed = self._packed.lstrip(b"\0")
            if len(self._packed) > 1:
                break
            more = self._raw.read(_PACKED)
            if not more:
                break
            self._packed += more
        if self._packed.startswith(_MAGIC):
            self._member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
            self._members += 1
            return True
        if self._packed and not self._members:
            raise zlib.error("it does not begin as gzip does")
        if self._packed:
            self.trailing = len(self._packed) + os.fstat(self._raw.fileno()).st_size - self._raw.tell()
        self._ended = True
        return False
