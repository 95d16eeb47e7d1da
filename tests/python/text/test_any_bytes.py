"""Bytes of any kind never end a build: they are read as what they are, or skipped and told.

`KNNLM_FUZZ_EXAMPLES=20000 pytest --timeout 0 tests/python/text/test_any_bytes.py` is the long form.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import os
import re
import sys
import tempfile
import zlib
from pathlib import Path

import pytest
from cli_corpus import run, run_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from knnlm.store.datastore import Datastore
from knnlm.system.json_text import to_json
from knnlm.text.documents import ReadReport, read_documents
from knnlm.text.tokenizer import Tokenizer

EXAMPLES = int(os.environ.get("KNNLM_FUZZ_EXAMPLES", "150"))
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.compress}
MEMBER = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": zstd.ZstdDecompressor,
}

# -- files: of every kind that is read, whole and damaged -------------------------------------------------------------

letters = st.text(st.characters(codec="utf-8"), max_size=60) | st.text("ab c\n\r\t.", max_size=80)
encodings = st.sampled_from(
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "latin-1", "cp1251", "utf-7"]
)
marks = st.sampled_from([b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8)
    | st.sampled_from([float("nan"), 10**400, -1e308]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(), max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
names_of_fields = st.sampled_from(["text", "n", "sha256", "origin", "read_as", "", "\ud83d", "\x1b[31m"])
rows = st.dictionaries(names_of_fields, values, max_size=4) | values


PLAIN_ODD = {
    "twice": '{"text": "one", "text": "two", "n": 1, "n": 2}',
    "huge": '{"text": "huge", "n": -1e999}',
    "nan": '{"text": "nan", "n": [NaN, {"n": Infinity}]}',
    "control": '{"text": "\t\x1b raw", "n": 1}',
    "half": '{"text": "half \\ud83d of it", "\\udc00": ["\\ud83d"]}',
    "return": '{"text":\r"return", "n": 1}',
    "zero": '{"text": "zero \\u0000", "n": "\\u0000"}',
    "line": '{"text": "line\u2028\x85\x0b\x1cline"}',
}
ODD = ("deep", "digits", "broken", *PLAIN_ODD)


@st.composite
def row_lines(draw):
    """Lines of JSONL: rows with a text, odd ones, and what is no JSON."""
    lines = []
    for _ in range(draw(st.integers(0, 6))):
        row = draw(rows)
        if isinstance(row, dict) and draw(st.booleans()):
            row["text"] = draw(letters | st.text(st.characters(), max_size=20))
        line = json.dumps(row, ensure_ascii=draw(st.booleans()))
        odd = draw(st.sampled_from(["", "", "", "", *ODD]))
        if odd == "deep":
            levels = draw(st.sampled_from([99, 101, 600, 60_000]))
            line = '{"text": "deep", "m": ' + "[" * levels + "]" * levels + "}"
        elif odd == "digits":
            line = '{"text": "digits", "n": ' + "9" * draw(st.sampled_from([400, 4299, 4301])) + "}"
        elif odd == "broken":
            line = line[: draw(st.integers(0, len(line)))]
        elif odd:
            line = PLAIN_ODD[odd]
        lines.append(line)
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines) + draw(st.sampled_from(["", "\n"]))


def damaged(draw, data: bytes) -> bytes:
    """Some bytes flipped, cut out, doubled or put in."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(["flip", "cut", "end", "double", "insert"]))
        if what == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
        elif what == "cut":
            data = data[:at] + data[at + draw(st.integers(1, 8)) :]
        elif what == "end":
            data = data[:at]
        elif what == "double":
            data = data[:at] + data[max(0, at - 20) : at] + data[at:]
        else:
            data = data[:at] + draw(st.binary(max_size=6)) + data[at:]
    return data


@st.composite
def files(draw):
    """A file's suffix and content."""
    kind = draw(st.sampled_from(["text", "text", "rows", "rows", "rows", "bytes"]))
    if kind == "bytes":
        data = draw(marks) + draw(st.binary(max_size=200))
    else:
        encoding = draw(encodings)
        data = draw(letters if kind == "text" else row_lines()).encode(encoding, "replace")
        if encoding.endswith(("-le", "-be")):
            data = draw(st.sampled_from([b"", "\ufeff".encode(encoding)])) + data
    if draw(st.booleans()):
        data = damaged(draw, data)
    suffix = draw(
        st.sampled_from(["", ".txt", ".TXT", ".md"] if kind == "text" else [".jsonl", ".ndjson", ".JSONL", ".txt"])
    )
    if draw(st.booleans()):
        members = draw(st.integers(1, 3))
        cut = len(data) // members + 1
        packed = draw(st.sampled_from([".gz", ".gz", ".bz2", ".xz", ".zst"]))
        data = b"".join(PACK[packed](data[i * cut : (i + 1) * cut]) for i in range(members))
        data += draw(st.sampled_from([b"", b"", b"\0" * 9, b"junk", b"\x1f\x8b", b"\0\0more"]))
        if draw(st.booleans()):
            data = damaged(draw, data)
        suffix += draw(st.sampled_from([packed, packed.upper(), packed, ""]))
    return suffix, data


folders = st.lists(files(), min_size=1, max_size=5)
patterns = st.sampled_from([None, None, "a", r"^\S", "wikitext", r"\n\n", "markdown"])

# -- what a slow and simple reader says of them -----------------------------------------------------------------------


def plain(name: str, data: bytes) -> bytes | None:
    """The unpacked bytes, None where they are damaged or something else is behind them."""
    suffix = Path(name.lower()).suffix
    if suffix not in PACK:
        return data
    out = b""
    while data or not out:
        member = MEMBER[suffix]()
        try:
            out += member.decompress(data)
        except Exception:  # each library has its own
            return None
        if not member.eof:
            return None
        data = member.unused_data.lstrip(b"\0")
        if not data:
            break
    return out


def is_rows(name: str) -> bool:
    path = Path(name.lower())
    return (path.with_suffix("") if path.suffix in PACK else path).suffix in (".jsonl", ".ndjson")


def text_of_file(data: bytes) -> str | None:
    """Text in UTF-8, or behind a mark of UTF-16 or UTF-32, that is valid; None for all else."""
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"), (b"", "utf-8-sig"),
    ):  # fmt: skip
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError:
                return None
    return None


def rows_of_file(data: bytes) -> dict[int, str]:
    """Texts by the number of their line, of valid files with what JSON has; a superset of what may be read."""
    found = {}
    for number, line in enumerate((text_of_file(data) or "").split("\n"), 1):
        try:
            row = json.loads(line, parse_int=lambda digits: 0)  # of any length
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("text"), str) and row["text"].strip():
            found[number] = re.sub("[\0\ud800-\udfff]", "\ufffd", row["text"])
    return found


def must_be_read(text: str) -> bool:
    """Whether a valid text is one beyond doubt; many characters of private use are none in UTF-16."""
    return bool(text.strip()) and "\0" not in text and sum(not c.isprintable() and c not in "\n\r\t" for c in text) < 5


def depth_of(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


def written(folder: Path, content: list[tuple[str, bytes]]) -> dict[str, bytes]:
    """The files, written to a folder, by name."""
    for path in folder.iterdir():
        if not path.name.startswith("sane"):
            path.unlink()
    named = {f"{number}{suffix}": data for number, (suffix, data) in enumerate(content)}
    for name, data in named.items():
        (folder / name).write_bytes(data)
    return named


@given(folders, patterns)
@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_any_bytes_are_read_as_what_they_are_or_skipped(content, pattern):
    with tempfile.TemporaryDirectory() as place:
        named = written(Path(place), content)
        report = ReadReport()
        documents = list(read_documents([place], split_pattern=pattern, report=report))
    assert report.documents == len(documents) == len({d.name for d in documents})
    of_file: dict[str, list] = {name: [] for name in named}
    for document in documents:
        document.text.encode()
        assert document.text.strip()
        if document.metadata is not None:
            assert json.loads(to_json(document.metadata, "metadata")) == document.metadata
            assert depth_of(document.metadata) <= 101  # that of the row, and its fields
            json.dumps(document.metadata, ensure_ascii=False, allow_nan=False).encode()
        of_file[document.name.partition("#")[0]].append(document)
    skipped = {name for name, _ in report.skipped}
    told = {name.partition("#")[0] for name in skipped}
    assert not any(STEERS.search(line) for line in report.lines())
    for name, data in named.items():
        found, bytes_ = of_file[name], plain(name, data)
        assert found or name in told, name
        if bytes_ is None:
            continue
        text = text_of_file(bytes_)
        if is_rows(name):
            if text is not None:
                expected = rows_of_file(bytes_)
                assert all(expected[int(d.name.rpartition("#")[2])] == d.text for d in found)
                lines = {f"{name}#{i}" for i, line in enumerate(text.split("\n"), 1) if line.strip()}
                assert lines <= skipped | {d.name for d in found}
                read = (line for i, line in enumerate(text.split("\n"), 1) if f"{name}#{i}" not in skipped)
                assert len(found) == sum(bool(line.strip()) for line in read)
        elif text is not None and (found or must_be_read(text)):
            assert "\0" not in text
            assert "".join(d.text for d in found) == text.replace("\r\n", "\n")


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.load(model)


@given(folders, folders)
@settings(deadline=None, max_examples=max(8, EXAMPLES // 20), suppress_health_check=list(HealthCheck))
def test_no_build_and_no_add_ends_for_any_bytes(model, tokenizer, content, later):
    with tempfile.TemporaryDirectory() as place:
        folder, store = Path(place, "text"), Path(place, "store")
        folder.mkdir()
        (folder / "sane.txt").write_text("the store keeps a key for every token and the value that follows\n" * 3)
        for number, files_ in enumerate((content, later)):
            written(folder, files_)
            given_ = ("build", folder, "--model", model, "--out", store) if number == 0 else ("add", store, folder)
            result = run(*given_, "--threads", 1)
            assert not STEERS.search(result.stdout + result.stderr)
            report = ReadReport()
            read = {d.name: d for d in read_documents([folder], report=report)}
            skipped = report.unread()
            with Datastore.open(store) as opened:
                held = {str(d.name): opened.values(d.start, d.stop) for d in opened.documents()}
                facts = {str(d.name): d.metadata or {} for d in opened.documents()}
            for name, document in read.items():
                if not (number and skipped(name)):  # what was not read whole stays as it was
                    assert tokenizer.decode(held[name]) == document.text
                    own = {
                        f"{n}_" if n in ("sha256", "origin", "read_as") else n: v
                        for n, v in (document.metadata or {}).items()
                    }
                    assert {n: v for n, v in facts[name].items() if n in own} == own
            assert all(name in read or skipped(name) for name in held)
        assert run_json("verify", store)["sound"]
