"""sources.py: which files are read: none twice, none that a link smuggles in, nothing that is no file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from knnlm.text.documents import ReadReport, read_documents
from knnlm.text.sources import KERNEL, LINK, LINK_OUT, NO_FILE, NOWHERE, files_of, opened, origin_of


def read(*sources, **options):
    report = ReadReport()
    return {d.name: d.text for d in read_documents(sources, report=report, **options)}, report


@pytest.fixture
def books(tmp_path):
    """Two files in a folder, one in a folder below, and a secret beside it."""
    for name in ("books/0.txt", "books/1.txt", "books/in/2.txt", "secret/key.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    return tmp_path / "books"


ALL = ["0.txt", "1.txt", "in/2.txt"]


@pytest.mark.parametrize("pattern", ["", "/**", "/**/*.txt"])
def test_links_out_of_a_folder_are_left_out_and_said(books, pattern):
    (books / "key.txt").symlink_to(books.parent / "secret" / "key.txt")
    (books / "all.txt").symlink_to(books.parent / "secret")
    (books / "gone.txt").symlink_to("nowhere")
    found, report = read(f"{books}{pattern}")
    assert sorted(found) == ALL
    assert sorted(report.skipped) == [("all.txt/", LINK), ("gone.txt", NOWHERE), ("key.txt", LINK_OUT)]
    found, report = read(f"{books}{pattern}", follow_links=True)
    assert sorted(found) == sorted([*ALL, "all.txt/key.txt"])  # by the folder that holds it; the link to it is noted
    assert report.skipped == [("gone.txt", NOWHERE)]


def test_a_link_to_a_file_that_is_read_anyway_is_noted(books):
    (books / "a.txt").symlink_to("in/2.txt")
    (books / ".hidden").write_text("hidden")
    (books / "b.txt").symlink_to(".hidden")
    found, report = read(books)
    assert sorted(found) == ["0.txt", "1.txt", "b.txt", "in/2.txt"]
    assert report.notes == [("a.txt", "is a link to in/2.txt, which is read once")]


def test_a_source_that_is_a_link_is_followed_and_named_as_it_was_given(books):
    (books.parent / "rows.jsonl").symlink_to(books.parent / "secret" / "key.txt")
    (books.parent / "secret" / "key.txt").write_text('{"text": "one"}\n')
    (books.parent / "shelf").symlink_to(books)
    assert read(books.parent / "rows.jsonl")[0] == {"rows.jsonl#1": "one"}
    assert sorted(read(books.parent / "shelf")[0]) == ALL
    assert sorted(read(f"{books.parent}/shelf/*.txt")[0]) == ["0.txt", "1.txt"]


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("pattern", ["", "/**", "/**/*.txt", "/**/**", "/*/../**/0.txt"])
def test_a_circle_of_links_is_read_once(books, pattern, follow):
    (books / "in" / "up").symlink_to("..")
    (books / "in" / "self").symlink_to(".")
    found, report = read(f"{books}{pattern}", follow_links=follow)
    assert len(found) == len(set(found.values())) == (1 if "0.txt" in pattern else 3)
    said = {name.rstrip("/") for name, _ in (report.notes if follow else report.skipped)}
    assert {name.rpartition("/")[2] for name in said} == {"up", "self"}


def test_links_to_folders_within_a_source_are_read_by_their_own_names(books):
    (books / "again").symlink_to("in")
    found, report = read(books, follow_links=True)
    assert sorted(found) == ALL
    assert report.notes == [("again", "is a link to the folder in, which is read once")]


def test_a_file_of_several_sources_is_read_once_and_that_is_said(books, monkeypatch):
    monkeypatch.chdir(books.parent)
    found, report = read("books", "books/0.txt", "books/*.txt", "secret")
    assert found == {name: f"text of books/{name}" for name in ALL} | {"key.txt": "text of secret/key.txt"}
    assert report.notes == [
        ("books/0.txt", "of its files 1, such as 0.txt, are also part of books: each is read once"),
        ("books/*.txt", "of its files 2, such as 0.txt, are also part of books: each is read once"),
    ]
    assert report.size == sum(len(text) for text in found.values())


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="no /proc here")
def test_files_of_the_kernel_are_never_read(books):
    (books / "environ.txt").symlink_to("/proc/self/environ")
    (books / "proc").symlink_to("/proc/self")
    for follow in (False, True):
        found, report = read(books, follow_links=follow)
        assert sorted(found) == ALL
        assert sorted(name.rstrip("/") for name, _ in report.skipped) == ["environ.txt", "proc"]
    assert {reason for _, reason in report.skipped} == {KERNEL}
    for source in ("/proc/self/environ", "/proc/self", "/sys"):
        with pytest.raises(ValueError, match=r"belongs to the kernel's /proc or /sys"):
            files_of(source)


def test_devices_and_pipes_are_never_read(books):
    os.mkfifo(books / "pipe.txt")
    (books / "zero.txt").symlink_to("/dev/zero")
    found, report = read(books, follow_links=True)
    assert sorted(found) == ALL
    assert sorted(report.skipped) == [("pipe.txt", NO_FILE), ("zero.txt", NO_FILE)]
    for source in (books / "pipe.txt", "/dev/zero"):
        with pytest.raises(ValueError, match="found a pipe or a device"):
            files_of(source)


@pytest.mark.parametrize("other", ["pipe", "link", "folder"])
def test_a_file_that_becomes_something_else_after_it_was_listed_is_not_read(books, other):
    (path, _), *_ = files_of(books).files
    path.unlink()
    if other == "pipe":
        os.mkfifo(path)
    elif other == "link":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(OSError, match=r"found something else|symbolic link"):
        opened(path)


def test_names_of_a_glob_and_what_it_leaves_out(books):
    (books / ".hidden").mkdir()
    (books / ".hidden" / "3.txt").write_text("hidden")
    cases = {
        "*.txt": ["0.txt", "1.txt"],
        "**": ALL,
        "**/*.txt": ALL,
        "*/*.txt": ["in/2.txt"],
        "[01].txt": ["0.txt", "1.txt"],
        "*/2.txt": ["in/2.txt"],
        ".h*/*.txt": [".hidden/3.txt"],
        "?n/**": ["in/2.txt"],
        "in/*": ["2.txt"],
    }
    for pattern, names in cases.items():
        assert [name for _, name in files_of(f"{books}/{pattern}").files] == names, pattern
    with pytest.raises(FileNotFoundError, match="found none"):
        files_of(f"{books}/i*")  # a folder, which is no file


def test_paths_that_are_no_text_have_an_origin_in_json(tmp_path):
    try:
        folder = tmp_path / os.fsdecode(b"\xff")
        folder.mkdir()
    except OSError:
        pytest.skip("a file system whose names are Unicode")
    (folder / "a.txt").write_text("text")
    [document] = read_documents([folder])
    assert document.name == "a.txt"
    assert document.place == (f"{tmp_path}/\\xff", "a.txt") == (origin_of(folder, "train"), "a.txt")


def test_a_name_in_utf8_is_read_in_a_locale_of_ascii(books, monkeypatch):
    (books / "é.txt").write_text("text")
    raw = "é.txt".encode().decode("ascii", "surrogateescape")
    monkeypatch.setattr(os, "scandir", _in_ascii(os.scandir))
    monkeypatch.setattr(Path, "lstat", lambda path: os.lstat(str(path).replace(raw, "é.txt")))
    assert "é.txt" in [name for _, name in files_of(books).files]


def _in_ascii(scandir):
    class Entries:
        def __init__(self, path):
            self.entries = scandir(path)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.entries.close()

        def __iter__(self):
            for entry in self.entries:
                yield type("Entry", (), {"name": entry.name.encode().decode("ascii", "surrogateescape")})

    return Entries


def test_an_empty_name_is_not_the_current_folder(books, monkeypatch):
    monkeypatch.chdir(books)
    assert sorted(read(".")[0]) == ALL
    with pytest.raises(ValueError, match="found an empty name"):
        read("")
