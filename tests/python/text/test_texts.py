"""Texts: paths and texts at hand are told apart and read as often as needed; what is neither is an error that helps."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cli_corpus import sentence

from knnlm.text.documents import Document
from knnlm.text.stamp import HASH, ORIGIN, content_hash
from knnlm.text.standard_input import StandardInput
from knnlm.text.texts import GIVEN, GivenTexts, Reading, Texts, texts_of


def named(texts: Texts) -> list[tuple[str, str]]:
    return [(document.name, document.text) for document in texts]


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "books").mkdir()
    for number in range(3):
        (tmp_path / "books" / f"{number}.txt").write_text(f"text {number}")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "books"


def test_a_path_is_a_file_a_folder_or_a_glob(books: Path) -> None:
    whole = [(f"{number}.txt", f"text {number}") for number in range(3)]
    for given in (str(books), books, [books], "books", "books/*.txt", Path("books/*.txt"), [books, books]):
        assert named(texts_of(given)) == whole
    assert named(texts_of("books/1.txt")) == whole[1:2]
    assert named(texts_of([books / "2.txt", books / "0.txt"])) == [whole[2], whole[0]]
    assert named(texts_of((books / "2.txt",))) == [whole[2]]
    assert named(texts_of(path for path in [books / "2.txt"])) == [whole[2]]
    assert named(texts_of({books / "2.txt"})) == [whole[2]]
    piped = texts_of(StandardInput(io.BytesIO(b"a text")))  # the only reference to its temporary file
    assert [document.text for document in piped] == ["a text"]
    assert piped.origins[0].startswith("standard input ")
    limited = texts_of("books", Reading(max_documents=2))
    assert (named(limited), limited.limited) == (whole[:2], True)


def test_strings_in_a_list_are_texts_whatever_they_say(books: Path) -> None:
    given = ["one text", ("b", "another"), Document("c", "a third", {"year": 3}), SimpleNamespace(text="no name")]
    texts = texts_of(given)
    expected = [("document 1", "one text"), ("b", "another"), ("c", "a third"), ("document 4", "no name")]
    assert named(texts) == expected == named(texts)
    assert [document.metadata for document in texts][2] == {"year": 3}
    assert texts.report.documents == 4
    assert texts.report.bytes == sum(len(text) for _, text in expected)
    assert named(texts_of(["/etc and the rest"])) == [("document 1", "/etc and the rest")]
    assert named(texts_of([("books", "books")])) == [("books", "books")]


def test_what_can_be_read_once_is_kept_and_what_can_be_read_again_is_not() -> None:
    class Again:
        read = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            self.read += 1
            return iter(["a text", "b text"])

    once = texts_of(text for text in ("a text", "b text"))
    assert named(once) == named(once) == [("document 1", "a text"), ("document 2", "b text")]
    again = Again()
    texts = texts_of(again)
    assert named(texts) == named(texts)
    assert again.read == 2


def test_names_are_unique_and_empty_texts_are_left_out() -> None:
    texts = GivenTexts([("a", "1 text"), ("a", "2"), "", ("b", ""), ("a", "3")], first=7)
    assert named(texts) == [("a", "1 text"), ("a (2)", "2"), ("a (3)", "3")]
    assert [name for name, _ in texts.report.skipped] == ["document 9", "b"]
    with pytest.raises(ValueError, match="expected text in what was given, found no document to read"):
        named(texts_of([""]))


def test_stamped_texts_are_known_again() -> None:
    [document] = texts_of([Document("a", "text", {"year": 3})], stamped=True)
    assert document.metadata == {"year": 3, HASH: content_hash("text"), ORIGIN: GIVEN}
    assert texts_of(["text"]).origins == [GIVEN]


def test_tokens_are_counted_while_they_are_read(books: Path) -> None:
    tokenizer = SimpleNamespace(encode=lambda text: np.arange(len(text)))
    texts = texts_of("books")
    seen = []
    report = texts.counting(lambda *told: seen.append(told), "score")
    for document in texts.tokenised(tokenizer):
        assert len(document.tokens) == 6
        assert report is not None
        report("", texts.tokens, 0)
    assert texts.tokens == 18
    assert [(stage, done) for stage, done, _ in seen] == [("score", 6), ("score", 12), ("score", 18)]
    assert seen[-1][2] == 18
    assert texts.counting(None, "score") is None


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ("It was a bright day.", FileNotFoundError, r"found nothing at 'It was a bright day.'; .* write \[text\]"),
        (
            ["books", "other words"],
            ValueError,
            r"found 'books', which is a path: in a list, give paths as Path",
        ),
        (["no-such-file.txt"], ValueError, "found 'no-such-file.txt', which is a path"),
        (["hf:wikitext"], ValueError, "found 'hf:wikitext', which is a path"),
        ([Path("books"), "text"], TypeError, "expected paths or texts, found both: books and a str"),
        (None, TypeError, "found NoneType"),
        (b"text", TypeError, "found bytes"),
        (7, TypeError, "found int"),
        ({"text": "x"}, TypeError, "found dict"),
        (Document("a", "text"), TypeError, r"found Document; write \[document\] for one"),
        (
            [{"text": "x"}],
            TypeError,
            r"found a dict with 'text' as number 1; of a row of a data set give",
        ),
        (("name", "text"), TypeError, r"expected an iterable of \(name, text\), found one of them, 'name'"),
        (["a text", 7], TypeError, "found a int as number 2"),
        ([("name", None)], TypeError, "found a tuple as number 1"),
        (["\ud800"], ValueError, "texts: number 1: .* the lone surrogate"),
    ],
)
def test_what_is_neither_is_an_error_that_helps(books: Path, given: object, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        list(texts_of(given))


def test_a_folder_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="found nothing at 'no-such-folder/'"):
        list(texts_of("no-such-folder/"))


def test_what_was_left_out_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text(sentence(0, 10))
    (tmp_path / "b.bin").write_bytes(bytes(range(256)) * 50)
    texts = texts_of(tmp_path)
    assert len(list(texts)) == 1
    texts.log()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.records[0].name == "knnlm"
    assert "skipped: b.bin" in caplog.text
