"""documents.py: every kind of source, and every way a file can be wrong."""

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm.text.decoding import decode_text
from knnlm.text.documents import SPLIT_PATTERNS, ReadReport, read_documents, split_text
from knnlm.text.sources import NOWHERE


def read(*sources, **options):
    report = ReadReport()
    return list(read_documents(sources, report=report, **options)), report


def test_a_file_is_one_document_named_after_the_file(tmp_path):
    (tmp_path / "a.txt").write_text("hello\nworld\n")
    documents, report = read(tmp_path / "a.txt")
    assert [(d.name, d.text, d.metadata) for d in documents] == [("a.txt", "hello\nworld\n", None)]
    assert (report.documents, report.bytes, report.skipped, report.notes) == (1, 12, [], [])


def test_a_folder_is_read_in_order_of_path_without_hidden_files(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/b.md", ".git/config", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    documents, _ = read(tmp_path)
    assert [d.name for d in documents] == ["a/b.md", "a/z.txt", "b.txt"]


def test_a_glob_names_files_from_its_fixed_part_and_never_absolutely(tmp_path):
    for name in ("x/1/a.txt", "x/2/a.txt", "x/2/a.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    assert [d.name for d in read(f"{tmp_path}/x/*/a.txt")[0]] == ["1/a.txt", "2/a.txt"]
    assert [d.name for d in read(f"{tmp_path}/**/*.md")[0]] == ["x/2/a.md"]
    with pytest.raises(FileNotFoundError, match="match"):
        read(f"{tmp_path}/*.rst")


def test_a_file_whose_name_looks_like_a_glob_is_read(tmp_path):
    (tmp_path / "a[1].txt").write_text("text")
    assert [d.name for d in read(tmp_path / "a[1].txt")[0]] == ["a[1].txt"]


def test_names_stay_unique_over_several_sources_and_parts(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("# x\ntext\n# y\ntext\n")
        (tmp_path / folder / "a.txt#1").write_text("text")
    documents, _ = read(tmp_path / "one", tmp_path / "two", split_pattern="markdown")
    assert len({d.name for d in documents}) == len(documents) == 6


def test_a_source_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="found nothing at"):
        read(tmp_path / "missing.txt")


def test_one_string_instead_of_a_list_is_an_error():
    with pytest.raises(TypeError, match="list of sources"):
        list(read_documents("abc"))


def test_gzip_is_unpacked_and_damage_is_reported(tmp_path):
    whole = gzip.compress(b"some text that is long enough to be cut" * 9)
    (tmp_path / "a.txt.gz").write_bytes(whole)
    (tmp_path / "cut.txt.gz").write_bytes(whole[:30])
    (tmp_path / "flip.txt.gz").write_bytes(whole[:12] + b"\xff\xff\xff" + whole[15:])
    (tmp_path / "no.txt.gz").write_bytes(b"no gzip at all")
    documents, report = read(tmp_path)
    assert [d.name for d in documents] == ["a.txt.gz"]
    assert [name for name, _ in report.skipped] == ["cut.txt.gz", "flip.txt.gz", "no.txt.gz"]
    assert all("gzip" in reason for _, reason in report.skipped)


def test_empty_and_binary_files_are_skipped_and_reported(tmp_path):
    (tmp_path / "binary").write_bytes(b"\x7fELF\x00\x01")
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    (tmp_path / "empty.txt").write_text("")
    documents, report = read(tmp_path)
    assert documents == []
    assert report.skipped == [
        ("binary", "binary (it has a zero byte)"),
        ("blank.txt", "empty"),
        ("empty.txt", "empty"),
    ]


@pytest.mark.parametrize(
    ("data", "text", "note"),
    [
        (b"caf\xe9 \xef\xbf\xbd \xff!", "caf\ufffd \ufffd \ufffd!", "2 invalid UTF-8"),
        (b"\xef\xbb\xbfx", "x", "byte-order mark"),
        ("ä\n".encode("utf-16"), "ä\n", "UTF-16"),
        (b"a\r\nb\r\n", "a\nb\n", "2 CRLF"),
        (b"a\rb", "a\rb", None),
    ],
)
def test_text_is_repaired_and_the_repair_is_noted(data, text, note):
    found, notes = decode_text(data)
    assert found == text
    assert [note in n for n in notes] == ([True] if note else [])


def test_unreadable_file_is_reported(tmp_path):
    (tmp_path / "loop.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "ok.txt").write_text("text")
    documents, report = read(tmp_path)
    assert [d.name for d in documents] == ["ok.txt"]
    assert report.skipped == [("loop.txt", NOWHERE)]


def test_jsonl_takes_the_field_keeps_the_rest_and_reports_bad_lines(tmp_path):
    lines = [
        json.dumps({"body": "one", "id": 7, "tags": ["a", None]}),
        "",
        "{broken",
        json.dumps(["no object"]),
        json.dumps({"other": "x"}),
        json.dumps({"body": 3}),
        json.dumps({"body": "  "}),
        json.dumps({"body": "lone \ud800 surrogate"}),
        "[" * 100_000,
    ]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (tmp_path / "empty.jsonl").write_text("\n\n")
    documents, report = read(tmp_path, text_field="body")
    assert [(d.name, d.text) for d in documents] == [("7", "one"), ("a.jsonl.gz#8", "lone \ufffd surrogate")]
    assert documents[0].metadata == {"id": 7, "tags": ["a", None]}
    names = [name for name, _ in report.skipped]
    assert names == [*(f"a.jsonl.gz#{i}" for i in (3, 4, 5, 6, 7, 9)), "empty.jsonl"]
    assert "found only other" in report.skipped[2][1]


def named(folder, rows, **options):
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": "t", **row}) + "\n" for row in rows))
    documents, report = read(folder / "rows.jsonl", **options)
    return [d.name for d in documents], report


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"title": "A title", "id": 7, "name": "8-104.03"}, "8-104.03"),
        ({"title": "A title", "id": 7}, "7"),
        ({"title": "A title", "id": None}, "A title"),
        ({"name": "  two\n lines\t"}, "two lines"),
        ({"name": "", "id": "x"}, "x"),
        ({"name": "half \ud83d", "n": 1}, "half \ufffd"),
        ({"name": "a\0b"}, "a\ufffdb"),
        ({"name": True, "id": 1.5, "title": ["x"]}, "rows.jsonl#1"),
        ({"name": "long " * 100, "id": 10**50}, "rows.jsonl#1"),
        ({}, "rows.jsonl#1"),
    ],
)
def test_a_row_is_named_by_the_first_field_that_has_a_name(tmp_path, row, name):
    assert named(tmp_path, [row])[0] == [name]


def test_a_row_is_named_by_the_field_that_is_asked_for(tmp_path):
    names, report = named(tmp_path, [{"key": "one", "name": "no"}, {"name": "no"}, {"key": 2}], name_field="key")
    assert names == ["one", "rows.jsonl#2", "2"]
    assert report.notes == [("rows.jsonl#2", "no name in the field 'key': named by its line")]
    assert named(tmp_path, [{"id": 1}], name_field="text")[0] == ["rows.jsonl#1"]  # the text itself is no name


def test_names_of_rows_that_come_again_are_numbered(tmp_path):
    names, _ = named(tmp_path, [{"name": "x"}, {"name": "x"}, {"name": "x (2)"}, {"name": "C#7"}, {"name": "x"}])
    assert names == ["x", "x (2)", "x (2) (2)", "C# 7", "x (3)"]
    (tmp_path / "z.jsonl").write_text('{"text": "t", "name": "x"}\n')
    documents, _ = read(tmp_path)
    assert documents[-1].name == "x (4)"
    assert documents[-1].place[1] == "z.jsonl#name:x"


def test_thousands_of_one_name_are_numbered_at_once(tmp_path):
    names, _ = named(tmp_path, [{"title": "Untitled"}] * 20_000)
    assert names[-1] == "Untitled (20000)"


def test_a_skipped_row_may_have_been_any_that_has_a_name(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "t", "name": "x"}\n{"name": "y"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "t", "name": "z"}\n')
    _, report = read(tmp_path)
    unread = report.unread()
    assert unread("a.jsonl#name:y")
    assert not unread("a.jsonl#7")
    assert not unread("b.jsonl#name:gone")


def test_jsonl_with_byte_order_mark_and_invalid_bytes(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\n{"text": "\xff"}\r\n{"text": "y"}\r\n')
    documents, report = read(tmp_path / "a.jsonl")
    assert [d.text for d in documents] == ["x", "y"]
    assert [name for name, _ in report.skipped] == ["a.jsonl#2"]


def test_split_keeps_every_character_and_gives_titles(tmp_path):
    text = "\n\nPEP: 1\nTitle: one\n\nPEP: 2\nsee PEP: 3 inside\n"
    (tmp_path / "peps.txt").write_text(text)
    documents, _ = read(tmp_path / "peps.txt", split_pattern="pep")
    assert [d.name for d in documents] == ["peps.txt#1", "peps.txt#2"]
    assert "".join(d.text for d in documents) == text
    assert [d.metadata for d in documents] == [{"title": "PEP: 1"}, {"title": "PEP: 2"}]


def test_split_keeps_text_before_the_first_match_as_a_document():
    assert split_text("preface\n# a\nx\n# b\n", r"^# ") == ["preface\n", "# a\nx\n", "# b\n"]
    assert split_text("no match", r"^# ") == ["no match"]


@pytest.mark.parametrize(
    ("text", "pattern", "parts"),
    [
        (
            "Intro\nSee Chapter 2 here\nChapter 1\nbody\n",
            "Chapter",
            ["Intro\n", "See Chapter 2 here\n", "Chapter 1\nbody\n"],
        ),
        ("one\ntwo\n\nthree", ".+", ["one\n", "two\n\n", "three"]),
        ("a b\nc\nd b b\n", r"\bb", ["a b\nc\n", "d b b\n"]),
        ("one\n\ntwo\n\n\n\nthree\n", r"\n\n", ["one\n\n", "two\n\n\n\n", "three\n"]),
        ("pre\n\nChapter 1\nx\n\nChapter 2\n", r"\n\nChapter", ["pre\n\n", "Chapter 1\nx\n\n", "Chapter 2\n"]),
        ("x\nhead\nof two lines\ny\n", r"head\nof", ["x\n", "head\nof two lines\ny\n"]),
        (" \n \nhead\nx\n", "^head", [" \n \nhead\nx\n"]),
        ("head\n \nhead\n\n", "^head|^ $", ["head\n \n", "head\n\n"]),
        ("x\nhead", "(?=head)", ["x\n", "head"]),
        ("nothing\nhere", "head", ["nothing\nhere"]),
        ("\n\n", r"\n", ["\n\n"]),
    ],
)
def test_a_document_begins_with_a_whole_line(text, pattern, parts):
    assert split_text(text, pattern) == parts


@given(st.text("ab \n", max_size=40), st.sampled_from(["a", "b$", "^a", "a\n", "\n", r"\s", "a.*b", "(?=b)", "[^a]"]))
@settings(deadline=None)
def test_parts_joined_are_the_text_and_begin_at_lines(text, pattern):
    parts = split_text(text, pattern)
    assert "".join(parts) == text
    assert all(part.endswith("\n") for part in parts[:-1])
    assert len(parts) < 2 or all(part.strip() for part in parts)


@pytest.mark.parametrize("pattern", ["x*", ".*", "", "^", "$", "a?", r"\s*", "(x|)"])
def test_a_pattern_that_matches_nothing_at_all_is_refused(tmp_path, pattern):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="matches where there is nothing"):
        read(tmp_path, split_pattern=pattern)


def test_a_file_without_a_matching_line_is_one_document_and_that_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("# one\ntext\n")
    (tmp_path / "b.txt").write_text("text\n")
    documents, report = read(tmp_path, split_pattern="markdown")
    assert [d.name for d in documents] == ["a.txt#1", "b.txt#1"]
    assert report.notes == [
        ("b.txt", "no line matches split_documents (in commands --split-documents): read as one document")
    ]


def test_wikitext_pattern_takes_titles_and_leaves_formulas():
    text = (
        " \n = First = \n \n text \n = = Section = = \n \n k \n = 1 / s = \n more \n \n = Second title = \n \n text \n"
    )
    parts = split_text(text, "wikitext")
    assert "".join(parts) == text
    assert [re.search(r"= (\w+)", p)[1] for p in parts] == ["First", "Second"]


def test_chapter_pattern_on_the_three_styles():
    text = "CHAPTER IV\nx\nChapter 12\ny\nVII. THE ADVENTURE\nz\nI. am not alone.\n"
    assert [p.split("\n")[0] for p in split_text(text, SPLIT_PATTERNS["chapter"])] == [
        "CHAPTER IV",
        "Chapter 12",
        "VII. THE ADVENTURE",
    ]


def test_bad_pattern_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="regular expression or one of wikitext, pep"):
        read(tmp_path, split_pattern="(")


def test_a_long_line_is_read_whole(tmp_path):
    (tmp_path / "long.txt").write_bytes(b"word " * 2_000_000)
    documents, _ = read(tmp_path / "long.txt", split_pattern="wikitext")
    assert len(documents) == 1
    assert len(documents[0].text) == 10_000_000


def test_report_lines_are_readable_and_bounded():
    report = ReadReport(2, 3000, [(f"f{i}", "empty") for i in range(30)], [("a", "byte-order mark removed")])
    lines = report.lines()
    assert lines[0] == "read 2 documents, 3,000 bytes of text"
    assert lines[1] == "skipped: f0: empty"
    assert lines[21] == "skipped: and 10 more"
    assert lines[22] == "note: a: byte-order mark removed"


def test_saved_data_set_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"text": ["one", "", "three"], "label": [0, 1, 2]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(str(tmp_path / "saved"))
    documents, report = read(f"hf:{tmp_path}/saved")
    assert [(d.name, d.text, d.metadata) for d in documents] == [
        ("saved/train#1", "one", {"label": 0}),
        ("saved/train#3", "three", {"label": 2}),
    ]
    assert report.skipped == [("saved/train#2", "empty")]
    with pytest.raises(ValueError, match=r"column 'body'.*found text, label"):
        read(f"hf:{tmp_path}/saved", text_field="body")
    with pytest.raises(ValueError, match=r"split 'dev'.*found train"):
        read(f"hf:{tmp_path}/saved", split="dev")


def test_folder_of_jsonl_is_read_as_a_data_set(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert [(d.name, d.text) for d in read(f"hf:{folder}")[0]] == [("rows/train#1", "a"), ("rows/train#2", "b")]


def test_missing_datasets_package_says_what_to_install(monkeypatch):
    import importlib

    def refuse(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ImportError, match=r"pip install 'knnlm\[hf\]'"):
        read("hf:anything")


def test_reading_is_lazy(tmp_path):
    for i in range(3):
        Path(tmp_path / f"{i}.txt").write_text("text")
    report = ReadReport()
    first = next(iter(read_documents([tmp_path], report=report)))
    assert (first.name, report.documents) == ("0.txt", 1)


def test_how_far_reading_has_come(tmp_path):
    (tmp_path / "a.txt").write_text("# one\ntext\n# two\nmore text\n")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(2000)))
    with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
        file.write("packed " * 50)
    report = ReadReport()
    shares = [report.share for _ in read_documents([tmp_path], split_pattern="markdown", report=report)]
    assert report.size == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[1] < 0.01 < shares[1500] < 1
    assert report.share == 1.0


def test_the_share_that_is_read_of_a_packed_text(tmp_path):
    with gzip.open(tmp_path / "a.md.gz", "wt") as file:  # of far fewer bytes on disk than characters
        file.write("# a\n\nthe same again and again\n" * 1000)
    report = ReadReport()
    shares = [report.share for _ in read_documents([tmp_path], split_pattern="markdown", report=report)]
    assert shares == pytest.approx([i / 1000 for i in range(1, 1001)])


def test_a_source_that_is_not_there_is_known_before_anything_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        next(read_documents([tmp_path / "a.txt", tmp_path / "nowhere"]))
