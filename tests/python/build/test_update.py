"""update.py: what counts as new, changed and removed; what was not read is neither, nor what came from elsewhere."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os

import numpy as np
import pytest

from knnlm import Datastore
from knnlm.build.update import READ_AS, plan
from knnlm.text.documents import Document, ReadReport, read_documents
from knnlm.text.sources import LINK, files_of, origin_of
from knnlm.text.standard_input import StandardInput

D = 4


@pytest.fixture
def store(tmp_path):
    with Datastore.create(tmp_path / "store", dim=D, keep_keys="float32") as store:
        yield store


def update(store, *sources, limited=None):
    """What `knnlm add` does, with keys of zero."""
    report = ReadReport()
    documents = list(read_documents(sources, report=report))[:limited]
    work = plan(
        store, documents, [origin_of(s, "train") for s in sources], unread=report.unread(), limited=limited is not None
    )
    if work.to_delete:
        store.supersede(work.to_delete)
    for document in work.to_add:
        store.add(np.zeros((3, D)), np.arange(3), document=document.name, metadata=document.metadata)
    store.commit()
    return work


def counts(work):
    return {
        name: len(getattr(work, name)) if name != "unchanged" else work.unchanged
        for name in ("new", "changed", "unchanged", "removed", "unread")
        if name == "unchanged" or getattr(work, name)
    }


def names(store):
    return sorted(info.name for info in store.documents())


@pytest.fixture
def notes(tmp_path):
    for name in ("a.txt", "b.txt", "sub/a.txt", "sub/deep/c.txt", "subject.txt"):
        (tmp_path / "notes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "notes" / name).write_text(f"text of {name}")
    return tmp_path / "notes"


def test_what_cannot_be_read_is_not_removed(store, notes):
    update(store, notes)
    (notes / "a.txt").unlink()
    (notes / "a.txt").symlink_to("a.txt")  # a loop: there, and no one can open it
    (notes / "b.txt").unlink()
    work = update(store, notes)
    assert (work.removed, work.unread) == (["b.txt"], ["a.txt"])
    assert names(store) == ["a.txt", "sub/a.txt", "sub/deep/c.txt", "subject.txt"]
    (notes / "a.txt").unlink()
    assert update(store, notes).removed == ["a.txt"]


def refuse(monkeypatch, folder, code=errno.EACCES):
    """No one can list the folder."""
    real = os.scandir

    def scandir(path="."):
        if os.path.realpath(path) == os.path.realpath(folder):
            raise OSError(code, os.strerror(code), os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "**"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_folder_that_cannot_be_listed_is_skipped_and_nothing_in_it_removed(store, notes, monkeypatch, code, pattern):
    source = f"{notes}/{pattern}" if pattern else notes
    update(store, source)
    (notes / "subject.txt").unlink()
    report = ReadReport()
    with monkeypatch.context() as patched:
        refuse(patched, notes / "sub", code)
        list(read_documents([source], report=report))
        work = update(store, source)
    assert report.skipped == [("sub/", f"cannot be listed: {os.strerror(code)}")]
    assert (work.removed, sorted(work.unread)) == (["subject.txt"], ["sub/a.txt", "sub/deep/c.txt"])
    assert counts(update(store, source)) == {"unchanged": 4}


def test_a_link_to_a_folder_is_told_and_what_was_there_is_not_removed(store, notes, tmp_path):
    update(store, notes)
    (notes / "sub").rename(tmp_path / "elsewhere")
    (notes / "sub").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (notes / "circle").symlink_to(notes, target_is_directory=True)
    report = ReadReport()
    list(read_documents([notes], report=report))
    work = update(store, notes)
    assert sorted(report.skipped) == [("circle/", LINK), ("sub/", LINK)]
    assert (work.removed, sorted(work.unread)) == ([], ["sub/a.txt", "sub/deep/c.txt"])


@pytest.mark.parametrize("pattern", ["", "*.txt"])
def test_a_source_that_cannot_be_listed_removes_nothing(store, notes, monkeypatch, pattern):
    sources = [f"{notes}/{pattern}", notes / "a.txt"]
    update(store, *sources)
    before = names(store)
    with monkeypatch.context() as patched:
        refuse(patched, notes)
        assert files_of(sources[0]).files == []
        work = update(store, *sources)
    assert not work.removed
    assert names(store) == before


@pytest.mark.parametrize("pattern", ["*/a.txt", "nowhere/*.txt", "a.txt/*.txt"])
def test_a_glob_looks_only_where_something_is(notes, pattern):
    if pattern == "*/a.txt":
        assert [name for _, name in files_of(f"{notes}/{pattern}").files] == ["sub/a.txt"]
        assert files_of(f"{notes}/{pattern}").unlisted == []
    else:
        with pytest.raises(FileNotFoundError, match="found none"):
            files_of(f"{notes}/{pattern}")


def lines(*texts):
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def test_lines_that_are_no_json_are_not_removed(store, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one", "two", "three"))
    update(store, path)
    path.write_bytes(lines("one") + b"{broken\n")
    work = update(store, path)
    assert (work.removed, work.unread) == (["a.jsonl#3"], ["a.jsonl#2"])
    assert names(store) == ["a.jsonl#1", "a.jsonl#2"]


def test_entries_behind_damaged_gzip_data_stay_as_they_are(store, tmp_path):
    path = tmp_path / "a.jsonl.gz"
    text = [" ".join(map(str, np.random.default_rng(i).integers(0, 10**9, 50))) for i in range(600)]
    path.write_bytes(gzip.compress(lines(*text)))
    update(store, path)
    before = names(store)
    path.write_bytes(gzip.compress(lines("changed", *text[1:]))[:-10_000])
    work = update(store, path)
    assert (work.removed, work.changed) == ([], [])
    assert "a.jsonl.gz#1" in work.unread  # it has changed; whether it is whole nobody knows
    assert 0 < work.unchanged < 599
    assert names(store) == before


def test_what_was_not_read_because_of_a_limit_is_not_removed(store, notes):
    update(store, notes)
    (notes / "a.txt").write_text("another")
    (notes / "b.txt").unlink()
    assert counts(update(store, notes, limited=2)) == {"changed": 1, "unchanged": 1, "unread": 3}
    assert counts(update(store, notes)) == {"unchanged": 4, "removed": 1}


@pytest.fixture
def two(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "README.md").write_text(f"about {folder}")
        (tmp_path / folder / "LICENSE").write_text("the same")
    return tmp_path / "a", tmp_path / "b"


def text_of(store, name):
    [info] = [info for info in store.documents() if info.name == name]
    return info.metadata["sha256"], info.metadata.get(READ_AS)


def test_documents_of_one_name_from_two_places_are_both_kept(store, two):
    one, other = two
    update(store, one)
    work = update(store, other)
    assert counts(work) == {"new": 1, "unchanged": 1}
    assert work.renamed == [("README.md", "README.md (2)")]
    assert names(store) == ["LICENSE", "README.md", "README.md (2)"]
    for place in (*two, *two):
        assert counts(update(store, place)) == {"unchanged": 2}
    first = text_of(store, "README.md")
    (other / "README.md").write_text("changed")
    assert counts(update(store, other)) == {"changed": 1, "unchanged": 1}
    assert text_of(store, "README.md") == first
    assert text_of(store, "README.md (2)")[1] == "README.md"
    (one / "README.md").unlink()
    assert update(store, one).removed == ["README.md"]
    assert counts(update(store, other)) == {"unchanged": 2}
    (other / "README.md").unlink()
    assert update(store, other).removed == ["README.md (2)"]
    assert names(store) == ["LICENSE"]


def test_a_text_that_was_moved_is_not_stored_again(store, two, tmp_path):
    for place in two:
        update(store, place)
    two[1].rename(tmp_path / "moved")
    assert counts(update(store, tmp_path / "moved")) == {"unchanged": 2}


def test_a_number_takes_no_name_that_was_read(store, two):
    one, other = two
    update(store, one)
    (other / "README.md (2)").write_text("a file of this very name")
    assert update(store, other).renamed == [("README.md", "README.md (3)")]
    assert names(store) == ["LICENSE", "README.md", "README.md (2)", "README.md (3)"]
    assert counts(update(store, other)) == {"unchanged": 3}


def test_a_document_of_no_known_origin_is_the_one_of_its_name(store, two):
    store.add(np.zeros((2, D)), np.arange(2), document="README.md")
    work = plan(store, [Document("README.md", "text")], "elsewhere")
    assert [document.name for document in work.changed] == ["README.md"]
    assert plan(store, [], "elsewhere").removed == []


def test_each_source_is_followed_by_itself(store, notes, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    (more / "a.txt").write_text("another text")
    (more / "z.txt").write_text("the last")
    update(store, notes, more, notes / "b.txt")
    assert names(store) == [
        "a.txt", "a.txt (2)", "b.txt", "sub/a.txt", "sub/deep/c.txt", "subject.txt", "z.txt"
    ]  # fmt: skip
    (notes / "a.txt").write_text("changed")
    (notes / "subject.txt").unlink()
    work = update(store, notes)
    assert counts(work) == {"changed": 1, "removed": 1, "unchanged": 3}
    (more / "a.txt").unlink()
    work = update(store, more)
    assert (work.removed, counts(work)) == (["a.txt (2)"], {"removed": 1, "unchanged": 1})
    assert counts(update(store, notes, more)) == {"unchanged": 5}
    (notes / "b.txt").write_text("changed, too")
    assert update(store, notes / "b.txt").renamed == [("b.txt", "b.txt (2)")]
    assert update(store, notes).to_delete == ["b.txt"]


def test_a_source_that_is_given_twice_is_read_once(store, notes, monkeypatch):
    monkeypatch.chdir(notes.parent)
    assert counts(update(store, notes, "notes", f"{notes}/")) == {"new": 5, "unchanged": 0}
    assert counts(update(store, notes)) == {"unchanged": 5}


def test_a_document_of_no_known_origin_is_replaced_by_one_only(store, notes, tmp_path):
    store.add(np.zeros((3, D)), np.arange(3), document="a.txt")
    store.commit()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.txt").write_text("another text")
    work = update(store, notes, tmp_path / "more")
    assert (work.to_delete, [d.name for d in work.to_add][:2]) == (["a.txt"], ["a.txt", "b.txt"])
    assert names(store) == ["a.txt", "a.txt (2)", "b.txt", "sub/a.txt", "sub/deep/c.txt", "subject.txt"]


@pytest.mark.parametrize("pattern", ["notes/*.txt", "notes/**", "notes"])
def test_a_relative_source_is_known_by_where_it_is(store, tmp_path, monkeypatch, pattern):
    for place in ("one", "two"):
        (tmp_path / place / "notes").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        (tmp_path / place / "notes" / f"{place}.txt").write_text(f"text of {place}")
        assert counts(update(store, pattern)) == {"new": 1, "unchanged": 0}
    assert names(store) == ["one.txt", "two.txt"]
    assert counts(update(store, tmp_path / "two" / pattern)) == {"unchanged": 1}


def test_a_data_set_is_known_by_its_folder_and_split(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    assert origin_of("hf:set", "train") == origin_of(f"hf:{tmp_path / 'set'}", "train") != origin_of("hf:set", "test")
    assert origin_of("hf:owner/name:config", "train") == "hf:owner/name:config train"


def test_what_is_held_from_elsewhere_is_told(store, notes, tmp_path):
    update(store, notes)
    moved = notes.rename(tmp_path / "moved")
    (moved / "a.txt").unlink()
    work = update(store, moved)
    assert (counts(work), work.elsewhere) == ({"unchanged": 4}, {str(notes): 4})
    assert "a.txt" in names(store)


def test_fields_of_a_row_are_not_taken_for_ours(store, tmp_path):
    rows = tmp_path / "rows.jsonl"
    fields = {"read_as": "audio", "origin": "radio", "sha256": "0", "speaker": "me"}
    rows.write_text("".join(json.dumps({"text": f"row {i}", **fields}) + "\n" for i in range(4)))
    update(store, rows)
    facts = store.documents()[0].metadata
    assert {name: facts[f"{name}_"] for name in ("read_as", "origin", "sha256")} == {
        name: fields[name] for name in ("read_as", "origin", "sha256")
    }
    assert (facts["speaker"], facts["origin"]) == ("me", str(rows))
    assert counts(update(store, rows)) == {"unchanged": 4}


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_emptied_file_is_gone(store, notes, content):
    update(store, notes)
    (notes / "b.txt").write_text(content)
    assert update(store, notes).removed == ["b.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("pattern", ["", "*", "**"])
def test_what_is_no_file_or_has_no_name_in_unicode_is_left_out_and_told(store, notes, pattern):
    os.mkfifo(notes / "pipe.txt")
    try:
        (notes / os.fsdecode(b"\xff\xfe.txt")).write_text("text")
        told = [("\ufffd\ufffd.txt", "has a name that is not UTF-8: rename it")]
    except OSError:  # a file system whose names are Unicode
        told = []
    report = ReadReport()
    list(read_documents([f"{notes}/{pattern}"], report=report))
    assert sorted(report.skipped) == [("pipe.txt", "is no file: a device, a pipe or a socket"), *told]


def test_rows_with_names_are_followed_by_them(store, tmp_path):
    path = tmp_path / "rows.jsonl"

    def write(*rows):
        path.write_text("".join(json.dumps({"name": name, "text": text}) + "\n" for name, text in rows))

    write(("8-104.03", "one"), ("8-104.04", "two"), ("8-104.04", "three"))
    work = update(store, path)
    assert (counts(work), work.renamed) == ({"new": 3, "unchanged": 0}, [])
    assert names(store) == ["8-104.03", "8-104.04", "8-104.04 (2)"]
    write(("new", "first now"), ("8-104.03", "one"), ("8-104.04", "changed"))
    work = update(store, path)
    assert counts(work) == {"new": 1, "changed": 1, "unchanged": 1, "removed": 1}
    assert names(store) == ["8-104.03", "8-104.04", "new"]
    path.write_text('{"name": "8-104.03", "text": "one"}\n{broken\n{"name": "new", "text": "first now"}\n')
    work = update(store, path)  # the broken row may be the one that is missing
    assert (counts(work), work.unread) == ({"unchanged": 2, "unread": 1}, ["8-104.04"])


def test_a_row_with_the_name_of_one_from_elsewhere_gets_another(store, tmp_path):
    for folder, text in (("one", "a"), ("two", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(json.dumps({"name": "x", "text": text}) + "\n")
    update(store, tmp_path / "one")
    work = update(store, tmp_path / "two")
    assert work.renamed == [("x", "x (2)")]
    assert names(store) == ["x", "x (2)"]
    assert counts(update(store, tmp_path / "one")) == counts(update(store, tmp_path / "two")) == {"unchanged": 1}


def test_standard_input_is_never_a_later_state_of_what_it_was(store):
    first, second = StandardInput(io.BytesIO(b"first")), StandardInput(io.BytesIO(b"second"))
    update(store, first)
    assert counts(update(store, StandardInput(io.BytesIO(b"first")))) == {"unchanged": 1}
    assert counts(update(store, second)) == {"new": 1, "unchanged": 0}
    assert names(store) == ["stdin", "stdin (2)"]
