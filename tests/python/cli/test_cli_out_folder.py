"""--out: a link stays a link, and a folder without a name of its own gets one or is refused before any work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cli_corpus import run, run_json

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need rights there, and a current folder is not replaced")


def making(command: str, texts: Path, model: Path) -> tuple[Any, ...]:
    """A command that makes a folder, up to `--out`."""
    sizes = ("--vocab-size", 300, "--d-model", 16, "--layers", 1, "--heads", 2, "--context", 32, "--batch-tokens", 256)
    if command == "train":
        return ("train", texts / "books", "--steps", 1, *sizes, "--threads", 1, "--out")
    return (command, texts / "books", "--model", model, "--threads", 1, "--out")


@pytest.mark.parametrize("command", ["build", "dump", "train"])
def test_a_link_stays_and_its_target_is_made_and_replaced(
    command: str, texts: Path, model: Path, tmp_path: Path
) -> None:
    link, disk = tmp_path / "link", tmp_path / "disk"
    disk.mkdir()
    link.symlink_to(disk / "out")  # dangles
    make = making(command, texts, model)
    run(*make, link)
    made = (disk / "out").stat().st_ino
    run(*make, link, "--overwrite")
    assert link.is_symlink()
    assert (disk / "out").stat().st_ino != made
    assert sorted(tmp_path.rglob("*.tmp")) == []
    assert [path.name for path in disk.iterdir()] == ["out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


@pytest.mark.parametrize("command", ["build", "dump", "train", "demo"])
@pytest.mark.parametrize("target", ["gone/out", "link"])
def test_a_link_to_nowhere_is_refused_at_the_start(command: str, target: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / target)
    make = ("demo", "--out") if command == "demo" else making(command, tmp_path, tmp_path / "model")
    said = run(*make, link, "--overwrite", code=2).stderr
    assert f"found that {link} leads to {tmp_path / target}" in said
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("command", ["build", "dump", "train"])
def test_the_current_folder_is_not_replaced(
    command: str, texts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    make = making(command, texts, model)
    run(*make, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    monkeypatch.chdir(out)
    assert "--overwrite" in run(*make, ".", code=2).stderr
    for name in (".", "../out"):
        said = run(*make, name, "--overwrite", code=2).stderr
        assert "is the folder that this command runs in" in said
        assert f"go up (cd {tmp_path}) and give out there" in said
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert "expected a folder with a name, found /" in run(*make, "/", "--overwrite", code=2).stderr


def test_a_model_is_trained_in_an_empty_current_folder(
    texts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_json(*making("train", texts, model), ".")["model"] == str(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
