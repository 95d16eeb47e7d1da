"""What tests of the commands share: running one, a text with a little structure, a model and a store made of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from knnlm.cli import main

WORDS = ["the", "store", "keeps", "a", "key", "for", "every", "token", "and", "value", "is", "that", "follows", "text"]


def sentence(seed: int, length: int = 300) -> str:
    """A text with a little structure: words by a linear congruence, a new line now and then."""
    state, out = seed, []
    for i in range(length):
        state = (state * 1103515245 + 12345) % 2**31
        out.append(WORDS[(state >> 16) % len(WORDS)] + ("\n" if i % 12 == 11 else ""))
    return " ".join(out)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """books/ (3 files, one empty), valid.txt, test.txt."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "books").mkdir()
    for number in range(2):
        (folder / "books" / f"{number}.txt").write_text(sentence(number))
    (folder / "books" / "empty.txt").write_text("")
    (folder / "valid.txt").write_text(sentence(7))
    (folder / "test.txt").write_text(sentence(8))
    return folder


def run(*arguments: Any, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == code, f"{result.output}\n{result.stderr}\n{result.exception!r}"
    return result


def run_json(*arguments: Any, code: int = 0) -> dict[str, Any]:
    """The result of a command with --json: standard output is one JSON object and nothing else."""
    found = json.loads(run(*arguments, "--json", code=code).stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="session")
def model(texts: Path) -> Path:
    path = texts.parent / "model"
    trained = run_json(
        "train", texts / "books", "--out", path, "--valid", texts / "valid.txt", "--steps", 4, "--vocab-size", 300,
        "--d-model", 16, "--layers", 2, "--heads", 2, "--context", 32, "--batch-tokens", 256, "--optimizer", "muon",
        "--learning-rate", 0.003, "--threads", 1,
    )  # fmt: skip
    assert trained["steps"] == 4
    assert trained["valid_perplexity"] < 300
    assert [Path(name).name for name, _ in trained["read"]["skipped"]] == ["empty.txt"]
    return path


@pytest.fixture(scope="session")
def built(texts: Path, model: Path) -> Path:
    path = texts.parent / "built" / "store"
    found = run_json("build", texts / "books", "--model", model, "--out", path, "--keep-keys")
    assert found["entries"] == found["tokens"] > 600
    assert found["bytes_per_entry"] > found["search_bytes_per_entry"] > 0
    return path


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    """A copy to change; it is as far from the model as the first one, whose path to the model is relative."""
    return Path(shutil.copytree(built, tmp_path / "store"))
