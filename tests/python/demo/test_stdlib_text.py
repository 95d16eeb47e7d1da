"""The demo's corpus: there on any CPython, split without overlap, the same each time."""

from pathlib import Path

import pytest

from knnlm.demo.stdlib_text import Corpus, docstrings, language_reference


@pytest.fixture(scope="module", params=[docstrings, language_reference])
def corpus(request: pytest.FixtureRequest) -> Corpus:
    return request.param()


def test_splits_have_their_share_and_no_document_twice(corpus: Corpus) -> None:
    characters = corpus.characters()
    total = sum(characters.values())
    assert total > 200_000
    for split in ("valid", "test"):
        assert 0.07 * total < characters[split] <= 0.1 * total
    names = [document.name for split in (corpus.train, corpus.valid, corpus.test) for document in split]
    assert len(names) == len(set(names))


def test_no_long_paragraph_of_a_held_out_document_is_in_the_train_text(corpus: Corpus) -> None:
    def paragraphs(documents: list) -> set[str]:
        found = set()
        for document in documents:
            found |= {"".join(paragraph.split()) for paragraph in document.text.split("\n\n")}
        return {paragraph for paragraph in found if len(paragraph) > 200}

    held_out = paragraphs(corpus.valid + corpus.test)
    assert len(held_out) > 20
    assert len(held_out & paragraphs(corpus.train)) <= 0.01 * len(held_out)


def test_the_text_is_the_same_each_time() -> None:
    assert language_reference() == language_reference()


def test_a_module_gives_its_docstrings_and_no_code(tmp_path: Path) -> None:
    body = "Long enough to be kept. " * 20
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(
        f'"""{body}"""\nimport missing_module\n\n\nclass A:\n    """The class.\n\n      Indented.\n    """\n\n'
        '    def m(self):\n        """The method."""\n        raise RuntimeError\n\n\n'
        'def f():\n    """The method."""\n'
    )
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_it.py").write_text(f'"""{body}"""')
    corpus = docstrings(tmp_path)
    documents = corpus.train + corpus.valid + corpus.test
    assert [document.name for document in documents] == ["docstrings/package"]
    assert documents[0].text == (
        f"package\n{body.strip()}\n\npackage.A\nThe class.\n\nIndented.\n\npackage.A.m\nThe method.\n"
    )


def test_a_library_without_sources_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="sources of the standard library"):
        docstrings(tmp_path)
