"""Packed files as they are read: members one after the other, no more in memory than is asked for, and what lies behind
the end.

Python's own readers refuse a whole file for bytes behind its last member, which downloads and tapes have, or leave them
out without a word.
"""

from __future__ import annotations

import io
import os
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO, NoReturn

from knnlm.system.extras import module

_PACKED = 1 << 16  # bytes read at a time
_HEAD = 6  # bytes of the longest mark
MEMORY = 1 << 28
"""Bytes that unpacking may take for what it looks back at (256 MiB): of an .xz file its header says how many."""


class DamagedError(Exception):
    """Packed data that cannot be unpacked, or not to its end; the message says of which format it is, and why."""


@dataclass(frozen=True)
class Format:
    """A format of packed files.

    name: for people. marks: what a member may begin with. member: makes an object that unpacks one member, as those of
    `bz2` do.
    """

    name: str
    marks: tuple[bytes, ...]
    member: Callable[[], Any]

    def begins(self, head: bytes) -> bool:
        """Whether bytes are the beginning of a member."""
        return head.startswith(self.marks)


class _Deflated:
    """`zlib.decompressobj` with the methods of the other formats' objects."""

    def __init__(self) -> None:
        self._object, self._tail = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), b""

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        found = self._object.decompress(self._tail + data, max_length)
        self._tail = self._object.unconsumed_tail
        return found


def _bzip2() -> Any:  # some builds of Python lack it, and the next one
    return module("bz2", "a .bz2 file").BZ2Decompressor()


def _xz() -> Any:
    lzma = module("lzma", "an .xz file")
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, MEMORY)


def _zstandard() -> Any:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return module(name, "a .zst file").ZstdDecompressor()


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        ".gz": Format("gzip", (b"\x1f\x8b",), _Deflated),
        ".bz2": Format("bzip2", (b"BZh",), _bzip2),
        ".xz": Format("xz", (b"\xfd7zXZ\0",), _xz),
        ".zst": Format(
            "zstandard",
            (b"\x28\xb5\x2f\xfd", *(bytes([number]) + b"\x2a\x4d\x18" for number in range(0x50, 0x60))),
            _zstandard,
        ),
    }
)
"""By the suffix of a file."""


def suffix_of(head: bytes) -> str:
    """The suffix of the format that the first bytes of a file tell; "" where they tell none."""
    return next((suffix for suffix, one in FORMATS.items() if one.begins(head)), "")


class Unpacked(io.RawIOBase):
    """The unpacked bytes of an open packed file; wrap it in `io.BufferedReader`.

    trailing: bytes behind the last member that are neither zeros nor another, known at the end; they are left out.
    Reading raises DamagedError where the file ends within a member, is damaged, or is not of the format.
    """

    def __init__(self, raw: BinaryIO, packed: Format) -> None:
        super().__init__()
        self.trailing = 0
        self.format = packed
        self._raw = raw
        self._packed = b""
        self._member: Any = None
        self._members = 0
        self._ended = False
        self._failed: DamagedError | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, less only at the end, or in front of damage, which the next call meets."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and not self._ended:
            try:
                found = self._more(len(view) - filled)
            except DamagedError:
                if filled:
                    break
                raise
            view[filled : filled + len(found)] = found
            filled += len(found)
        return filled

    def _more(self, most: int) -> bytes:
        """Up to so many unpacked bytes, perhaps none."""
        if self._failed is not None:
            raise self._failed
        if self._member is None and not self._begin():
            return b""
        packed, at_end = b"", False
        if self._member.needs_input:
            packed, self._packed = self._packed or self._raw.read(_PACKED), b""
            at_end = not packed
        try:
            found: bytes = self._member.decompress(packed, most)
        except Exception as error:  # each library has its own
            self._fail(str(error) or type(error).__name__, error)
        if self._member.eof:
            self._packed, self._member = self._member.unused_data, None
        elif at_end and not found:
            self._fail("it ends before its end mark")
        return found

    def _begin(self) -> bool:
        """Go on to the next member; False at the end."""
        while True:
            if self._members:  # zeros fill the last block of a tape
                self._packed = self._packed.lstrip(b"\0")
            more = self._raw.read(_PACKED) if len(self._packed) < _HEAD else b""
            if not more:
                break
            self._packed += more
        if self.format.begins(self._packed):
            self._member = self.format.member()
            self._members += 1
            return True
        if self._packed and not self._members:
            self._fail(f"it does not begin as {self.format.name} does")
        if self._packed:
            self.trailing = len(self._packed) + os.fstat(self._raw.fileno()).st_size - self._raw.tell()
        self._ended = True
        return False

    def _fail(self, why: str, error: Exception | None = None) -> NoReturn:
        self._failed = DamagedError(f"damaged {self.format.name} data: {why}")
        raise self._failed from error
