"""Parallel text: two files, TSV or JSONL, packed or not; what does not correspond is refused."""

from __future__ import annotations

import gzip
import json

import pytest

from knnlm.mt.pairs import Pair, PairReport, as_pairs, read_pairs


def test_two_files_correspond_line_by_line(tmp_path):
    with gzip.open(tmp_path / "a.de.gz", "wt", encoding="utf-8") as file:
        file.write("ein Hund\r\n\nzwei\u2028Katzen\n  \nrest\n")
    (tmp_path / "a.en").write_text("a dog\n\ntwo cats\nmissing\nrest", encoding="utf-8")
    report = PairReport()
    found = read_pairs(tmp_path / "a.de.gz", tmp_path / "a.en", report=report)
    assert found == [
        Pair("ein Hund", "a dog", "a.de.gz#1"),
        Pair("zwei\u2028Katzen", "two cats", "a.de.gz#3"),
        Pair("rest", "rest", "a.de.gz#5"),
    ]
    assert report.skipped == [("a.de.gz#4", "one side is empty")]


def test_one_file_of_pairs(tmp_path):
    (tmp_path / "a.tsv").write_text("ein Hund\ta dog\tmore\n\nKatze\tcat\n", encoding="utf-8")
    rows = [{"de": "ein Hund", "en": "a dog"}, {"de": "Katze", "en": "cat"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sides = [("ein Hund", "a dog"), ("Katze", "cat")]
    assert [(p.source, p.target) for p in read_pairs(tmp_path / "a.tsv")] == sides
    found = read_pairs(tmp_path / "a.jsonl", source_field="de", target_field="en")
    assert [(p.source, p.target) for p in found] == sides
    assert found[1].name == "a.jsonl#2"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.de": "x\ny\n", "a.en": "x\n"}, r"as many lines in .*a\.en as in .*a\.de, 2, found 1"),
        ({"a.de": "x\n"}, r"expected two files, or one \.tsv or \.jsonl file"),
        ({"a.tsv": "x y\n"}, r"line 1: expected source and target with a tab"),
        ({"a.jsonl": "nothing\n"}, r"line 1: expected a JSON object"),
        ({"a.jsonl": '{"source": 1, "target": "x"}\n'}, r"line 1: expected text in the fields 'source' and 'target'"),
        ({"a.de": b"\x00\x01\x02" * 99, "a.en": "x\n"}, r"a\.de: expected text, found"),
    ],
)
def test_what_is_no_parallel_text_is_refused(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_pairs(*(tmp_path / name for name in files))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_pairs(tmp_path / "nowhere.de", tmp_path / "nowhere.en")


def test_pairs_at_hand():
    assert as_pairs([("a", "b"), Pair("c", "d", "mine")]) == [Pair("a", "b", "pair 1"), Pair("c", "d", "mine")]
    with pytest.raises(TypeError, match=r"expected \(source, target\), found a str at 2"):
        as_pairs([("a", "b"), "ab"])
    with pytest.raises(ValueError, match="pair 1 with an empty one"):
        as_pairs([("a", " ")])
