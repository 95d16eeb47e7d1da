"""What commands refuse or do not finish: one clear line, the exit code, nothing half-written and nothing lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_corpus import run, run_json

from knnlm.store.datastore import Datastore


def test_wrong_usage_is_json_too(texts: Path, store: Path) -> None:
    assert "STORE" in run_json("info", code=2)["error"]
    assert "1.5" in run_json("eval", store, "text", "--lambda", "1.5", code=2)["error"]
    assert "--nonsense" in run_json("verify", store, "--nonsense", code=2)["error"]
    assert run("info", code=2).stdout == ""


def test_another_model_is_refused(texts: Path, store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run(
        "train", texts / "books", "--out", other, "--steps", 1, "--vocab-size", 300, "--d-model", 16, "--layers", 2,
        "--heads", 2, "--context", 32, "--batch-tokens", 256, "--seed", 1,
    )  # fmt: skip
    for command in ("eval", "tune"):
        result = run(command, store, texts / "test.txt", "--model", other, code=1)
        assert "does not belong to this model" in result.stderr
        assert "Traceback" not in result.stderr
    error = run_json("eval", store, texts / "test.txt", "--model", other, code=1)
    assert "does not belong" in error["error"]


def test_existing_output_is_refused_without_overwrite(texts: Path, model: Path, store: Path) -> None:
    before = {file.name: file.read_bytes() for file in store.iterdir()}
    for command in ("dump", "build"):
        assert "--overwrite" in run(command, texts / "books", "--model", model, "--out", store, code=2).stderr
    assert "--overwrite" in run("train", texts / "books", "--out", model, code=2).stderr
    assert "--overwrite" in run("demo", "--out", store, code=2).stderr
    assert {file.name: file.read_bytes() for file in store.iterdir()} == before
    run("dump", texts / "books" / "0.txt", "--model", model, "--out", store, "--overwrite")
    assert run_json("info", store)["documents"] == 1
    assert [file.name for file in store.parent.iterdir()] == ["store"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["info", "nowhere"], 1, "nothing there"),
        (["verify", "nowhere"], 1, "nothing there"),
        (["eval", "nowhere", "text"], 1, "nothing there"),
        (["build", "nowhere"], 2, "found nothing"),
        (["build", "."], 2, "--model"),
        (["build", "text", "--model", "nowhere"], 2, "--out"),
        (["build", "nowhere", "--code", "64"], 2, "two numbers"),
        (["dump", "text", "--model", "nowhere"], 2, "--out"),
        (["train", "nowhere", "--out", "model"], 1, "nowhere"),
        (["dump", "text", "--model", "./nowhere", "--out", "store"], 1, "model folder"),
        (["info"], 2, "STORE"),
        (["eval", "store", "text", "--lambda", "1.5"], 2, "1.5"),
    ],
)
def test_errors_are_one_clear_line(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, code=code)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in run("info", "nowhere", "--debug", code=1).stderr


def test_a_model_that_is_gone_is_a_usage_error(texts: Path, store: Path) -> None:
    with Datastore.open(store) as opened:
        attributes = opened.attributes
        attributes["model"]["source"] = "../gone"
        opened.set_attributes(attributes)
    said = run("eval", store, texts / "test.txt", code=2).stderr
    assert "--model" in said
    assert str(store.resolve().parent / "gone") in said


def test_refusals_of_the_system_are_told_plainly(texts: Path, model: Path, tmp_path: Path) -> None:
    said = [run("info", tmp_path / "nowhere", code=1).stderr]
    (tmp_path / "file").write_text("")
    said.append(run("dump", texts / "books", "--model", model, "--out", tmp_path / "file" / "store", code=1).stderr)
    assert f"{tmp_path / 'file'}" in said[1]
    for message in said:
        assert "expected" in message
        assert "Errno" not in message
        assert "PosixPath" not in message


@pytest.mark.parametrize("command", ["dump", "build"])
def test_overwrite_never_removes_what_is_not_ours(texts: Path, model: Path, tmp_path: Path, command: str) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    result = run(command, texts / "books", "--model", model, "--out", precious, "--overwrite", code=2)
    assert "thesis.txt" in result.stderr
    assert (precious / "thesis.txt").read_text() == "years of work"
    result = run("train", texts / "books", "--out", precious, "--steps", 1, "--overwrite", code=2)
    assert (precious / "thesis.txt").read_text() == "years of work"
    result = run(command, texts / "books", "--model", model, "--out", model, "--overwrite", code=2)
    assert "input" in result.stderr
    assert (model / "model.safetensors").is_file()


def test_more_lists_than_tokens_is_known_before_the_dump(texts: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    result = run("build", texts / "books", "--model", model, "--out", out, "--preset", "paper", code=2)
    assert "4,096 lists" in result.stderr
    assert not out.exists()


def test_ctrl_c_leaves_nothing_half_written(
    texts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., range] = Datastore.add
    calls = []

    def interrupted(self: Datastore, *arguments: Any, **options: Any) -> range:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(Datastore, "add", interrupted)
    result = run("dump", texts / "books", "--model", model, "--out", tmp_path / "store", code=130)
    assert len(calls) == 2
    assert "interrupted" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_the_old_store(
    texts: Path, model: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in store.iterdir()}

    def full(self: Datastore, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Datastore, "compact", full)
    result = run("build", texts / "books", "--model", model, "--out", store, "--keep-keys", "--overwrite", code=1)
    assert "No space left" in result.stderr
    assert {file.name: file.read_bytes() for file in store.iterdir()} == before
    # What was encoded waits beside it for the same command.
    assert {file.name for file in store.parent.iterdir()} == {"store", ".store.building"}
