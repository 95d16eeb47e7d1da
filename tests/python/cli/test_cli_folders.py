"""Output folders of the commands: the old one stays until the new one is whole, and a kill leaves nothing unknown."""

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_corpus import run, run_json

from knnlm.store.opening import missing
from knnlm.store.output_folder import whole_folder
from knnlm.system import own_files
from knnlm.system.own_files import leftovers

TRAIN = ("--vocab-size", 300, "--d-model", 16, "--layers", 1, "--heads", 2, "--context", 32, "--batch-tokens", 256,
         "--threads", 1)  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def old(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "old"))


def dead_process() -> int:
    """The number of a process that has ended."""
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    assert process.pid is not None
    return process.pid


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("bad")])
def test_a_failed_training_keeps_the_old_model(
    texts: Path, old: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from knnlm.train import loop

    def fails(self: Any, *arguments: Any) -> None:
        raise error

    before = contents(old)
    monkeypatch.setattr(loop._Run, "step", fails)
    result = run("train", texts / "books", "--out", old, "--steps", 2, *TRAIN, "--overwrite", code=1)
    assert str(error.args[-1]) in result.stderr
    assert contents(old) == before
    assert [path.name for path in old.parent.iterdir()] == ["old"]


def test_an_interrupted_overwrite_is_resumed_and_then_replaces(
    texts: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from knnlm.train import loop

    original = loop._Run.step

    def interrupted(self: Any, *arguments: Any) -> None:
        if self.result.steps == 1:
            raise KeyboardInterrupt
        original(self, *arguments)

    before = contents(old)
    options = ("train", texts / "books", "--out", old, "--steps", 2, *TRAIN, "--overwrite")
    monkeypatch.setattr(loop._Run, "step", interrupted)
    said = run(*options, code=130).stderr
    assert f"{old} is as it was" in said
    assert contents(old) == before
    assert (old.parent / "old.new" / "training.safetensors").is_file()
    monkeypatch.setattr(loop._Run, "step", original)
    assert "--overwrite --resume" in run(*options[:-1], "--resume", code=2).stderr  # the old one has other sizes
    assert run_json(*options, "--resume")["steps"] == 2
    assert [path.name for path in old.parent.iterdir()] == ["old"]
    assert contents(old)["model.safetensors"] != before["model.safetensors"]


def test_leftovers_of_a_kill_are_removed_and_a_moved_store_is_named_and_put_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "knnlm")
    out = tmp_path / "out"
    process = dead_process()
    kept = [tmp_path / ".out.elsewhere.1.partial", tmp_path / ".output.partial"]
    partial, moved = (tmp_path / f".out.{own_files._host()}.{process}.{kind}" for kind in ("partial", "old"))
    for folder in (*kept, partial, moved):
        folder.mkdir()
    (moved / "manifest-1.json").write_text("former")
    assert leftovers(out) == [moved, partial]
    assert str(moved) in missing(out)
    assert str(moved) in run("info", out, code=1).stderr
    with whole_folder(out, overwrite=True) as new:
        assert leftovers(out) == []
        assert (out / "manifest-1.json").read_text() == "former"
        new.mkdir()
    said = caplog.text
    assert "is back" in said
    assert partial.name in said
    assert sorted(tmp_path.iterdir()) == sorted([*kept, out])


def test_a_folder_of_a_running_process_is_no_leftover(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out", overwrite=False) as partial:
        partial.mkdir()
        assert leftovers(tmp_path / "out") == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
