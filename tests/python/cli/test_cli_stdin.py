"""`-`: every command that takes a text takes it from standard input."""

from __future__ import annotations

import json
from pathlib import Path

from cli_corpus import run, sentence
from click.testing import CliRunner

from knnlm.cli import main
from knnlm.store.datastore import Datastore


def piped(data: bytes | str, *arguments: object, code: int = 0) -> dict[str, object]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"], input=data)
    assert result.exit_code == code, f"{result.output}\n{result.stderr}"
    return dict(json.loads(result.stdout))


def documents(store: Path) -> list[str]:
    with Datastore.open(store) as opened:
        return sorted(str(info.name) for info in opened.documents())


def test_a_text_that_is_piped_in_scores_as_its_file(texts: Path, store: Path) -> None:
    data = (texts / "test.txt").read_bytes()
    given = piped("", "eval", store, texts / "test.txt", "--threads", 1)
    found = piped(data, "eval", store, "-", "--threads", 1)
    assert found["perplexity"] == given["perplexity"]
    wide = piped(data.decode().encode("utf-16"), "eval", store, "-", "--threads", 1)
    assert wide["perplexity"] == given["perplexity"]


def test_the_other_commands_take_it_too(texts: Path, model: Path, store: Path) -> None:
    data = (texts / "test.txt").read_bytes()
    assert piped(data, "tune", store, "-", "--no-plots", "--threads", 1)["tokens"]
    assert piped(data, "inspect", store, "-", "--tokens", 3, "--threads", 1)["documents"] == ["stdin"]
    continued = piped("the store keeps", "generate", store, "--prompt", "-", "--max-new-tokens", 2)
    assert continued["prompt"] == "the store keeps"
    wide = "the store".encode("utf-16")
    assert piped(wide, "generate", store, "--max-new-tokens", 1)["prompt"] == "the store"


def test_build_and_add_take_rows_with_names(model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    rows = [json.dumps({"text": sentence(number), "id": f"8-{number}"}) for number in range(3)]
    built = piped("\n".join(rows), "build", "-", "--model", model, "--out", store, "--threads", 1)
    assert documents(store) == ["8-0", "8-1", "8-2"]
    assert built["entries"] == built["tokens"]
    added = piped(sentence(9), "add", store, "-", "--threads", 1)
    assert (added["added"], added["removed"], added["unchanged"]) == (1, 0, 0)
    again = piped(sentence(9), "add", store, "-", "--threads", 1)
    assert (again["added"], again["unchanged"]) == (0, 1)
    assert documents(store) == ["8-0", "8-1", "8-2", "stdin"]
    piped(sentence(10), "replace", store, "8-1", "-", "--threads", 1)
    assert documents(store) == ["8-0", "8-1", "8-2", "stdin"]


def test_train_takes_it(texts: Path, tmp_path: Path) -> None:
    shape = ("--steps", 1, "--d-model", 16, "--layers", 1, "--heads", 2, "--context", 32, "--vocab-size", 300)
    trained = piped((texts / "books" / "0.txt").read_bytes(), "train", "-", "--out", tmp_path / "model", *shape)
    assert trained["steps"] == 1


def test_nothing_on_standard_input_is_said(store: Path) -> None:
    said = run("eval", store, "-", code=1, stdin="").stderr
    assert "expected text in standard input, found no document to read" in said
    assert "add --model" in run("build", "-", code=2, stdin="text").stderr
