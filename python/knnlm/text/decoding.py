"""Bytes to text: UTF-8, UTF-16 and UTF-32 by their marks; what was changed on the way is said, what is no text is not
taken for one.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import BinaryIO, cast

from knnlm.system.counted import counted

EMPTY = "empty"  # why a document without text is left out
_BOMS = (  # the longer first: FF FE begins both UTF-16 and UTF-32
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_MARK = "\udcff"  # stands for bytes of a line that cannot be decoded; no decoder gives it
_LOOKED_AT = 4096  # characters that tell whether 16-bit units are text
_AT_ONCE = 1 << 20  # bytes of a file read at a time


def encoding_of(head: bytes) -> str:
    """The encoding that the first four bytes of a file tell: utf-32, utf-16, utf-8-sig, or utf-8 without a mark."""
    return next((name for mark, name in _BOMS if head.startswith(mark)), "utf-8")


def decode_text(data: bytes) -> tuple[str | None, list[str]]:
    """Text of a file's bytes and what was done to get it; None with the reason where it is no text."""
    encoding = encoding_of(data[:4])
    wide = encoding in ("utf-16", "utf-32")
    name = encoding.upper() if wide else "UTF-8"
    if not wide and b"\0" in data:
        hint = "; if it is UTF-16, put a byte-order mark in front" if _may_be_wide(data[:_LOOKED_AT]) else ""
        return None, [f"binary (it has a zero byte{hint})"]
    notes = []
    if encoding != "utf-8":
        notes.append(f"{name} with a byte-order mark, converted" if wide else "byte-order mark removed")
    try:
        text, invalid = data.decode(encoding), 0
    except UnicodeDecodeError:
        text = data.decode(encoding, "replace")
        # Those that were there are in the text without the invalid parts as well.
        invalid = text.count("\ufffd") - data.decode(encoding, "ignore").count("\ufffd")
    if "\0" in text:
        return None, [f"binary (it has a zero character in {name})"]
    if 3 * invalid > len(text):
        return None, [f"no text in {name} ({invalid:,} of {len(text):,} characters are invalid)"]
    if wide and _is_noise(text[:_LOOKED_AT]):
        return None, [f"no text in {name} (its characters are of no script)"]
    if invalid:
        notes.append(f"{counted(invalid, f'invalid {name} sequence')} replaced by U+FFFD")
    if "\r\n" in text:
        notes.append(f"{counted(text.count(chr(13) + chr(10)), 'CRLF line end')} turned into LF")
        text = text.replace("\r\n", "\n")
    if not text.strip():
        return None, [EMPTY]
    return text, notes


def _may_be_wide(data: bytes) -> bool:
    """Whether bytes look like Latin text in UTF-16 without a mark: one of each two is mostly zero, the other never."""
    zeros = sorted(data[start::2].count(0) for start in (0, 1))
    return zeros[0] == 0 and 8 * zeros[1] > len(data) >= 16  # fewer tell nothing


def read_whole(file: BinaryIO, most: int) -> bytes | None:
    """The bytes of a file, None if they are more than `most`; of a binary one no more than tells that it is."""
    parts: list[bytes] = []
    length = 0
    while part := file.read(_AT_ONCE):
        if not parts and b"\0" in part and encoding_of(part[:4]) in ("utf-8", "utf-8-sig"):
            return part
        parts.append(part)
        length += len(part)
        if length > most:
            return None
    return b"".join(parts)


def lines_of(file: io.BufferedReader, most: int) -> Iterator[tuple[int, str | None, str]]:
    """The lines of a file from 1 on: number and text, or None and the reason why it has none.

    A byte-order mark is no part of the first. Lines that are longer than `most` (bytes of UTF-8, else characters) have
    no text, and are not held.
    """
    encoding = encoding_of(file.peek(4)[:4])
    if encoding in ("utf-16", "utf-32"):
        yield from _wide_lines(file, encoding, most)
        return
    number, line = 0, file.readline(most + 1)
    while line:
        number += 1
        if len(line) > most and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(_AT_ONCE)
            yield number, None, too_large(most)
        else:
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8"), ""
            except UnicodeDecodeError as error:
                yield number, None, f"no UTF-8 at byte {error.start:,}: {error.reason}"
        line = file.readline(most + 1)


def too_large(most: int) -> str:
    """Why a document of more than `most` bytes is left out, and what to do."""
    return (
        f"larger than {most:,} bytes, the most for one document (max_document_bytes, in commands --max-document-bytes)"
    )


def _wide_lines(file: io.BufferedReader, encoding: str, most: int) -> Iterator[tuple[int, str | None, str]]:
    reader = io.TextIOWrapper(file, encoding, errors="knnlm.mark", newline="\n")
    try:
        number, line = 0, reader.readline(most + 1)
        while line:
            number += 1
            if len(line) > most and not line.endswith("\n"):
                while line and not line.endswith("\n"):
                    line = reader.readline(_AT_ONCE)
                yield number, None, too_large(most)
            elif _MARK in line:
                yield number, None, f"no {encoding.upper()}"
            else:
                yield number, line, ""
            line = reader.readline(most + 1)
    finally:
        reader.detach()


def _marked(error: UnicodeError) -> tuple[str, int]:
    return _MARK, cast(UnicodeDecodeError, error).end


codecs.register_error("knnlm.mark", _marked)


def _is_noise(text: str) -> bool:
    """Whether more than one in twenty characters is none: any two bytes are a unit of UTF-16, but seldom text."""
    strange = sum(c == "\ufffd" or "\ue000" <= c <= "\uf8ff" or (c < " " and c not in "\t\n\r\f") for c in text)
    return strange > max(4, len(text) // 20)
