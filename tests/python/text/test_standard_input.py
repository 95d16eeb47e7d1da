"""standard_input.py: what was piped in is read like a file, told by its content, and leaves nothing behind."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from pathlib import Path

import pytest

from knnlm.text.documents import ReadReport, read_documents
from knnlm.text.standard_input import StandardInput

ROWS = b'\n{"text": "one", "name": "first"}\n{"text": "two"}\n'


def read(data: bytes, **options):
    source, report = StandardInput(io.BytesIO(data), options.get("text_field", "text")), ReadReport()
    return {d.name: d.text for d in read_documents([source], report=report, **options)}, report


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"plain text", {"stdin": "plain text"}),
        ("λ\r\n".encode("utf-16"), {"stdin": "λ\n"}),
        (ROWS, {"first": "one", "stdin.jsonl#3": "two"}),
        (ROWS.decode().encode("utf-16"), {"first": "one", "stdin.jsonl#3": "two"}),
        (b'{"other": "no row of ours"}', {"stdin": '{"other": "no row of ours"}'}),
        (b"[1, 2]\n", {"stdin": "[1, 2]\n"}),
        (gzip.compress(b"packed", mtime=0), {"stdin.gz": "packed"}),
        (bz2.compress(ROWS), {"first": "one", "stdin.jsonl.bz2#3": "two"}),
        (lzma.compress(ROWS), {"first": "one", "stdin.jsonl.xz#3": "two"}),
    ],
)
def test_its_content_says_what_it_is(data, found):
    assert read(data)[0] == found


def test_the_text_field_tells_rows():
    assert read(b'{"body": "row"}\n', text_field="body")[0] == {"stdin.jsonl#1": "row"}


@pytest.mark.parametrize("data", [b"", b"\n \n", b"a\0b", gzip.compress(b"cut short", mtime=0)[:-9]])
def test_what_is_no_text_is_skipped_and_said(data):
    found, report = read(data)
    assert found == {}
    assert len(report.skipped) == 1


def test_it_can_be_read_again_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = StandardInput(io.BytesIO(b"text"))
    for _ in range(2):
        assert [d.text for d in read_documents([source])] == ["text"]
    assert Path(source).is_file()
    assert str(source) == "standard input"
    assert os.listdir(tmp_path)
    del source
    assert not os.listdir(tmp_path)
