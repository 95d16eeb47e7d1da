"""Adding: a store follows its paths, takes texts at hand beside them, and changes whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_corpus import run, run_json, sentence

from knnlm import KNNLM, Datastore
from knnlm.build.add import AddResult


def names(lm: KNNLM) -> list[str | None]:
    assert isinstance(lm.datastore, Datastore)
    return [info.name for info in lm.datastore.documents()]


def counts(done: AddResult) -> tuple[int, int, int, int]:
    return done.added, done.changed, done.removed, done.unchanged


@pytest.fixture
def books(texts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(texts / "books", tmp_path / "books"))


@pytest.fixture
def lm(model: Path, books: Path, tmp_path: Path) -> KNNLM:
    return KNNLM.build(model, books, tmp_path / "made")


def test_a_folder_is_followed_as_by_the_command(lm: KNNLM, books: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tmp_path / "made", tmp_path / "copied"))
    assert counts(lm.add(books)) == (0, 0, 0, 2)
    (books / "0.txt").unlink()
    (books / "1.txt").write_text(sentence(30, 80))
    (books / "2.txt").write_text(sentence(31, 80))
    expected = lm.add(books, dry_run=True)
    assert counts(expected) == (1, 1, 1, 0)
    assert names(lm) == ["0.txt", "1.txt"]
    told = run_json("add", copy, books, "--threads", 1)
    done = lm.add(str(books))
    assert (
        counts(done) == counts(expected) == tuple(told[name] for name in ("added", "changed", "removed", "unchanged"))
    )
    assert (done.tokens, done.entries) == (told["tokens"], told["entries"])
    assert names(lm) == ["1.txt", "2.txt"]
    assert isinstance(lm.datastore, Datastore)
    assert lm.datastore.info()["indexed"] == len(lm.datastore) == done.entries
    with Datastore.open(copy) as opened:
        expected_documents = [(d.name, d.start, d.stop, d.metadata) for d in opened.documents()]
    assert [(d.name, d.start, d.stop, d.metadata) for d in lm.datastore.documents()] == expected_documents
    (books / "1.txt").unlink()
    assert counts(lm.add(books, keep_removed=True)) == (0, 0, 0, 1)


def test_texts_at_hand_are_known_by_their_names_and_others_are_always_new(lm: KNNLM) -> None:
    given = [("a", sentence(40, 50)), sentence(41, 50), ("0.txt", sentence(42, 50))]
    done = lm.add(given)
    assert counts(done) == (3, 0, 0, 0)
    assert done.renamed == [("0.txt", "0.txt (2)")]
    assert names(lm) == ["0.txt", "1.txt", "a", "document 4", "0.txt (2)"]
    done = lm.add([("a", sentence(40, 50)), sentence(41, 50), ("0.txt", sentence(43, 50))])
    assert counts(done) == (1, 1, 0, 1)
    assert done.unread == []
    assert names(lm) == ["0.txt", "1.txt", "a", "document 4", "document 6", "0.txt (2)"]
    assert isinstance(lm.datastore, Datastore)
    [changed] = [info for info in lm.datastore.documents() if info.name == "0.txt (2)"]
    stored = lm.datastore.values(changed.start, changed.stop)
    assert stored.tolist() == lm.loaded.tokenizer.encode(sentence(43, 50)).tolist()
    lm.datastore.delete(["document 4", "a"])
    lm.add([sentence(44, 50)])
    assert names(lm)[-1] == "document 7"  # no number is given twice while another document has it


def test_a_folder_and_texts_at_hand_leave_each_other_alone(lm: KNNLM, books: Path) -> None:
    lm.add([("own", sentence(40, 50))])
    (books / "own").write_text(sentence(41, 50))
    done = lm.add(books)
    assert counts(done) == (1, 0, 0, 2)
    assert names(lm) == ["0.txt", "1.txt", "own", "own (2)"]
    same = lm.add([("0.txt", (books / "0.txt").read_text())])
    assert counts(same) == (0, 0, 0, 1)
    assert same.elsewhere == {str(books): 1}


def test_a_failed_add_leaves_the_store_as_it_was(lm: KNNLM) -> None:
    assert isinstance(lm.datastore, Datastore)
    generation, before = lm.datastore.generation, names(lm)
    with pytest.raises(ValueError, match=r"texts: number 2, 'b'"):
        lm.add([("a", sentence(40, 50)), ("b", "\ud800")])
    with pytest.raises(ValueError, match="found no document to read"):
        lm.add([])
    assert (lm.datastore.generation, names(lm)) == (generation, before)


def test_what_was_added_is_found_at_once_and_by_commands(lm: KNNLM, tmp_path: Path) -> None:
    text = "value follows key and is a text that token keeps for the store\n" * 12
    without = lm.perplexity(text)
    lm.add([("twin", text + "key")])
    assert lm.perplexity(text) < without
    assert "twin\t" in run("info", tmp_path / "made", "--documents").stdout
    assert run_json("verify", tmp_path / "made")["sound"]


def test_only_a_store_on_disk_can_be_added_to(lm: KNNLM) -> None:
    with pytest.raises(TypeError, match="add: expected a KNNLM with a Datastore, which can be changed"):
        KNNLM(lm.loaded, None).add(["a text"])
