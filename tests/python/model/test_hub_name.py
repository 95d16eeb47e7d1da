"""Hub name: a name that is no folder here is said before the hub is asked, and what no model is called is not asked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from cli_corpus import run

from knnlm import load_model
from knnlm.model import load
from knnlm.model.hub_name import did_you_mean


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that the hub would have been asked for; beside a folder "model" and one "models" with "gpt" in it."""
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("models/gpt").mkdir(parents=True)
    names: list[str] = []

    def ask(name: str, *_: Any, **__: Any) -> Any:
        names.append(name)
        raise OSError("no network")

    monkeypatch.setattr(load, "_load_hugging_face", ask)
    return names


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("modle/", r"found nothing at modle/: did you mean models? or models?\?"),
        ("models/gtp/final", "nothing at models/gtp/final, and no model on the Hugging Face hub is called so"),
        ("./models/gtp", r"nothing at \./models/gtp: did you mean models/gpt\?"),
        ("models/gtp/", r"did you mean models/gpt\?"),
        ("a/b/c", "no model on the Hugging Face hub is called so: check the path"),
        ("/nowhere/at all", "found nothing at /nowhere/at all"),
        ("a\0b", "found nothing at"),
    ],
)
def test_what_the_hub_cannot_have_is_not_asked_of_it(asked: list[str], name: str, says: str) -> None:
    with pytest.raises(FileNotFoundError, match=says):
        load_model(name, "cpu")
    assert asked == []


@pytest.mark.parametrize(
    ("name", "level", "says"),
    [
        ("modle", "WARNING", "hub is asked for it; did you mean model"),
        ("models/gtp", "WARNING", "hub is asked for it; did you mean models/gpt?"),
        ("gpt2", "INFO", "gpt2: there is no such folder here, the Hugging Face hub is asked for it"),
        ("openai-community/gpt2", "INFO", "no such folder here"),
    ],
)
def test_it_is_said_before_the_hub_is_asked(
    asked: list[str], caplog: pytest.LogCaptureFixture, name: str, level: str, says: str
) -> None:
    with caplog.at_level(logging.INFO, logger="knnlm"), pytest.raises(OSError, match="no network"):
        load_model(name, "cpu")
    assert asked == [name]
    assert [record.levelname for record in caplog.records] == [level]
    assert says in caplog.text


def test_commands_say_it_too(asked: list[str]) -> None:
    Path("text.txt").write_text("some words")
    for name, says in (("modle", "did you mean model"), ("gpt2", "gpt2: there is no such folder here")):
        told = run("build", "text.txt", "--model", name, "--out", "store", code=1).stderr
        assert says in " ".join(told.split())


def test_the_error_names_what_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    says = r"tokenizer at modle \(did you mean model\?\), found: there is no such folder, and as a name on the hub: "
    with pytest.raises(OSError, match=says):
        load_model("modle", "cpu", local_files_only=True)
    assert did_you_mean("nothing like it") == did_you_mean("no-such-folder/model") == ""
