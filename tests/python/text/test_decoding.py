"""decoding.py and unpacking.py: what bytes are text, and packed files of every kind, bombs included."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from knnlm.text.decoding import decode_text
from knnlm.text.documents import ReadReport, read_documents
from knnlm.text.unpacking import FORMATS, DamagedError, Unpacked, suffix_of


def read(*sources, **options):
    report = ReadReport()
    return {d.name: d.text for d in read_documents(sources, report=report, **options)}, report


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_wide_text_is_known_by_its_mark(encoding):
    text = "plain words, ä 漢字 🙂\n"
    data = (text if encoding in ("utf-16", "utf-32") else "\ufeff" + text).encode(encoding)
    assert decode_text(data) == (text, [f"{encoding[:6].upper()} with a byte-order mark, converted"])


def test_what_cannot_be_decoded_is_counted_in_every_encoding():
    assert decode_text(
        b"\xff\xfe" + "eins \ufffd zwei".encode("utf-16-le") + b"\x00\xd8" + "!".encode("utf-16-le")
    ) == (
        "eins \ufffd zwei\ufffd!",
        ["UTF-16 with a byte-order mark, converted", "1 invalid UTF-16 sequence replaced by U+FFFD"],
    )
    text, notes = decode_text("\ufeffeins zwei".encode("utf-32-le") + b"\xff\xff\xff\xff")
    assert (text, notes[1]) == ("eins zwei\ufffd", "1 invalid UTF-32 sequence replaced by U+FFFD")
    text, notes = decode_text("ein langer Text \ufffd".encode() + b"\xff\xfe")
    assert (text, notes) == ("ein langer Text \ufffd\ufffd\ufffd", ["2 invalid UTF-8 sequences replaced by U+FFFD"])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xfe" + "pla\0in".encode("utf-16-le"), "zero character in UTF-16"),
        ("\ufeffpla\0in".encode("utf-32-be"), "zero character in UTF-32"),
        (b"\xff\xfe\0\0" + b"plain text after a mark of UTF-32", "no text in UTF-32"),
        (b"\xef\xbb\xbfpla\0in", "zero byte"),
        ("Plain text, λ".encode("utf-16-le"), "zero byte; if it is UTF-16, put a byte-order mark in front"),
        ("Plain text".encode("utf-16-be"), "zero byte; if it is UTF-16, put a byte-order mark in front"),
        ("кирилица в cp1251".encode("cp1251"), r"no text in UTF-8 \(\d+ of 17 characters are invalid\)"),
        (b"\xff\xfe", "empty"),
        (b"\xff\xfe\0\0", "empty"),
        (b"\xef\xbb\xbf", "empty"),
    ],
)
def test_what_is_no_text_is_not_taken_for_one(data, reason):
    text, reasons = decode_text(data)
    assert text is None
    [found] = reasons
    assert re.search(reason, found)


def test_random_bytes_behind_a_mark_of_utf16_are_no_text():
    rng = random.Random(0)
    assert [decode_text(b"\xff\xfe" + rng.randbytes(300))[0] for _ in range(100)].count(None) > 90
    texts = ("Zażółć gęślą jaźń", "漢字かな交じり文", "Привет, мир", "🙂 emoji 🙂", "שלום עולם", "ไทย")
    assert all(decode_text(b"\xff\xfe" + text.encode("utf-16-le"))[0] == text for text in texts)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("packed", [False, True])
def test_jsonl_of_every_encoding(tmp_path, encoding, packed):
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in ("eins", "漢\u2028字 🙂", "Ċ \u0a0a")]
    content = "\n".join([*rows, "{broken", '{"text": "last"}'])
    marked = encoding in ("utf-8-sig", "utf-16", "utf-32")
    data = (content if marked else "\ufeff" + content).encode(encoding)
    (tmp_path / ("a.jsonl" + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
    found, report = read(tmp_path)
    assert list(found.values()) == ["eins", "漢\u2028字 🙂", "Ċ \u0a0a", "last"]
    assert [name.rpartition("#")[2] for name, _ in report.skipped] == ["4"]


def test_jsonl_lines_that_cannot_be_decoded_are_skipped_alone(tmp_path):
    wide = '{"text": "one"}\n{"text": "?"}\n{"text": "two"}\n'.encode("utf-16-le").replace(b"?\0", b"\0\xd8")
    (tmp_path / "wide.jsonl").write_bytes(b"\xff\xfe" + wide + b"{")  # half a character at the end
    (tmp_path / "narrow.jsonl").write_bytes(b'{"text": "one"}\n{"text": "\xff"}\n{"text": "two"}\n')
    found, report = read(tmp_path)
    assert found == {f"{name}.jsonl#{i}": text for name in ("narrow", "wide") for i, text in ((1, "one"), (3, "two"))}
    assert dict(report.skipped) == {
        "narrow.jsonl#2": "no UTF-8 at byte 10: invalid start byte",
        "wide.jsonl#2": "no UTF-16",
        "wide.jsonl#4": "no UTF-16",
    }


def test_a_file_without_any_row_is_one_line_of_the_report(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(random.Random(0).randbytes(600_000))
    (tmp_path / "b.jsonl").write_text("no row\n" * 900 + '{"text": "row"}\n')
    found, report = read(tmp_path)
    assert found == {"b.jsonl#901": "row"}
    [first, *others] = report.skipped
    assert first[0] == "a.jsonl"
    assert first[1].startswith("no JSON object in its first 1,000 lines; the first: no UTF-8")
    assert len(others) == 900
    assert report.unread()("a.jsonl#7")


def test_suffixes_are_known_in_capitals(tmp_path):
    row = b'{"text": "row"}\n'
    (tmp_path / "a.JSONL").write_bytes(row)
    (tmp_path / "b.NDJSON").write_bytes(row)
    (tmp_path / "c.Jsonl.GZ").write_bytes(gzip.compress(row))
    (tmp_path / "d.txt.GZ").write_bytes(gzip.compress(b"t"))
    assert read(tmp_path)[0] == {"a.JSONL#1": "row", "b.NDJSON#1": "row", "c.Jsonl.GZ#1": "row", "d.txt.GZ": "t"}


PACK = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}
every_format = pytest.mark.parametrize("suffix", PACK)


def unpacked(data, suffix):
    class File(io.BytesIO):
        def fileno(self):
            return os.open(os.devnull, os.O_RDONLY)

    return io.BufferedReader(Unpacked(File(data), FORMATS[suffix])).read()


def test_the_formats_that_are_known():
    assert set(PACK) == set(FORMATS)
    for suffix, pack in PACK.items():
        assert suffix_of(pack(b"x")) == suffix
    assert suffix_of(b"plain text") == suffix_of(b"") == ""


@every_format
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.integers(0, 40))
@settings(deadline=None, max_examples=30)
def test_members_are_joined_and_zeros_behind_them_are_nothing(suffix, parts, zeros):
    assert unpacked(b"".join(map(PACK[suffix], parts)) + b"\0" * zeros, suffix) == b"".join(parts)


def test_a_frame_that_is_to_be_skipped_holds_no_text():
    skipped = b"\x53\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    assert unpacked(skipped + zstd.compress(b"text") + skipped, ".zst") == b"text"


@every_format
@pytest.mark.parametrize("behind", [b"junk after the end", b"x", b"\0\0\0junk", b"\x1f", b"long " * 50_000])
def test_bytes_behind_the_end_are_left_out_and_said(tmp_path, suffix, behind):
    pack = PACK[suffix]
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(b"some text ") + pack(b"and more") + behind)
    (tmp_path / f"b.jsonl{suffix}").write_bytes(pack(b'{"text": "row"}\n') + behind)
    found, report = read(tmp_path)
    assert found == {f"a.txt{suffix}": "some text and more", f"b.jsonl{suffix}#1": "row"}
    left = len(behind.lstrip(b"\0"))
    assert report.notes == [
        (name, f"{left:,} byte{'' if left == 1 else 's'} after the end of the {FORMATS[suffix].name} data left out")
        for name in (f"a.txt{suffix}", f"b.jsonl{suffix}")
    ]


@every_format
@given(st.integers(0, 1 << 30), st.integers(1, 255))
@settings(deadline=None, max_examples=100)
def test_damage_within_packed_data_is_never_text(suffix, at, flipped):
    data = random.Random(0).randbytes(500)
    whole = PACK[suffix](data)
    packed = bytearray(whole)
    packed[at % len(packed)] ^= flipped
    for damaged in (bytes(packed), whole[: at % len(packed)]):
        try:
            found = unpacked(damaged, suffix)
        except DamagedError:
            continue
        # A header may say what it likes, nothing is nothing, and zstandard has no checksum unless asked for one.
        assert found in (data, b"") or (suffix == ".zst" and damaged == packed)


@every_format
def test_a_file_of_another_format_or_cut_short_is_damaged(tmp_path, suffix):
    name = FORMATS[suffix].name
    whole = PACK[suffix](b"some text that is long enough to be cut" * 9)
    (tmp_path / f"cut.txt{suffix}").write_bytes(whole[:-12])
    (tmp_path / f"no.txt{suffix}").write_bytes(b"plain text, whatever its name says")
    found, report = read(tmp_path)
    assert found == {}
    assert report.skipped == [
        (f"cut.txt{suffix}", f"damaged {name} data: it ends before its end mark"),
        (f"no.txt{suffix}", f"damaged {name} data: it does not begin as {name} does"),
    ]


@every_format
def test_damage_is_met_again_by_the_next_reading(suffix):
    reader = Unpacked(io.BytesIO(PACK[suffix](b"text" * 500)[:-9]), FORMATS[suffix])
    for _ in range(2):
        with pytest.raises(DamagedError, match="ends before its end mark"):
            list(iter(lambda: reader.read(4000), b""))


def test_what_would_take_too_much_memory_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 29}]
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"text", filters=filters))
    assert read(tmp_path)[1].skipped == [("a.txt.xz", "damaged xz data: Memory usage limit exceeded")]


def test_a_zst_file_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    import importlib

    def refuse(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name="backports.zstd")

    (tmp_path / "a.txt.zst").write_bytes(zstd.compress(b"text"))
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ImportError, match=r"a .zst file needs backports.zstd.*pip install 'knnlm\[lm\]'"):
        read(tmp_path)


@every_format
def test_a_bomb_is_unpacked_no_further_than_a_document_may_be(tmp_path, suffix):
    (tmp_path / f"a.txt{suffix}").write_bytes(PACK[suffix](b"boom " * 8_000_000))
    found, report = read(tmp_path, max_document_bytes=100_000)
    assert found == {}
    assert report.skipped[0][1].startswith("larger than 100,000 bytes")


def test_rows_in_front_of_a_cut_are_read(tmp_path):
    noise = random.Random(0)
    rows = b"".join(b'{"text": "row %d %s"}\n' % (i, noise.randbytes(40).hex().encode()) for i in range(5000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows)[:-30_000])
    found, report = read(tmp_path)
    assert 4000 < len(found) < 5000
    assert report.skipped[-1] == ("a.jsonl.gz", "damaged gzip data: it ends before its end mark")


@pytest.fixture
def bombs(tmp_path):
    """Some kilobytes that unpack to 40 MB, of text and of a row."""
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        for _ in range(40):
            file.write(b"boom " * 200_000)
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write(b'{"text": "one"}\n{"text": "')
        for _ in range(40):
            file.write(b"boom " * 200_000)
        file.write(b'"}\n{"text": "two"}\n')
    with gzip.open(tmp_path / "c.bin.gz", "wb") as file:
        for _ in range(40):
            file.write(bytes(1_000_000))
    (tmp_path / "d.txt").write_text("plain " * 1_000_000)
    return tmp_path


def test_what_unpacks_to_more_than_a_document_may_have_is_skipped_and_said(bombs, monkeypatch):
    taken = 0
    original = Unpacked.readinto

    def counted(self, buffer):
        nonlocal taken
        found = original(self, buffer)
        taken += found
        return found

    monkeypatch.setattr(Unpacked, "readinto", counted)
    found, report = read(bombs, max_document_bytes=5_000_000)
    assert found == {"b.jsonl.gz#1": "one", "b.jsonl.gz#3": "two"}
    large = (
        "larger than 5,000,000 bytes, the most for one document (max_document_bytes, in commands --max-document-bytes)"
    )
    assert report.skipped == [
        ("a.txt.gz", large),
        ("b.jsonl.gz#2", large),
        ("c.bin.gz", "binary (it has a zero byte)"),
        ("d.txt", large),
    ]
    assert taken < 52_000_000  # 40 of the row are read over, 8 of the text, one of the zeros
    found, report = read(bombs, max_document_bytes=50_000_000)
    assert {name: len(text) for name, text in found.items()} == {
        "a.txt.gz": 40_000_000, "b.jsonl.gz#1": 3, "b.jsonl.gz#2": 40_000_000, "b.jsonl.gz#3": 3, "d.txt": 6_000_000
    }  # fmt: skip


def test_the_largest_document_is_counted_in_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("ä" * 50)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "ä" * 50}, ensure_ascii=False))
    (tmp_path / "c.jsonl").write_bytes(json.dumps({"text": "漢" * 50}, ensure_ascii=False).encode("utf-16"))
    assert read(tmp_path, max_document_bytes=99)[0] == {}
    assert list(read(tmp_path, max_document_bytes=112)[0]) == ["a.txt", "b.jsonl#1"]
    assert len(read(tmp_path, max_document_bytes=150)[0]) == 3
    with pytest.raises(ValueError, match="1 or more, found 0"):
        read(tmp_path, max_document_bytes=0)
