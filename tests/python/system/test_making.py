"""Making: where nothing can be made, the error says so and what to do, of the library and of the commands."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from cli_corpus import run

from knnlm import KNNLM, Datastore
from knnlm.system.making import make_with_parents, making

NOWHERE = Path("/proc/self")
needs_proc = pytest.mark.skipif(not NOWHERE.is_dir(), reason="no /proc on this system")


@needs_proc
def test_a_store_where_nothing_can_be_made() -> None:
    for path in (NOWHERE / "store", NOWHERE / "deeper" / "store"):
        with pytest.raises(
            FileNotFoundError, match=r"nothing can be made in /proc/\w+: choose a folder on a disk"
        ) as said:
            Datastore.create(path, dim=8)
        assert said.value.filename == str(path)
        assert "restore" not in str(said.value)


@needs_proc
def test_commands_and_models_where_nothing_can_be_made(store: Path, model: Path, texts: Path) -> None:
    says = r"nothing can be made in /proc"
    with pytest.raises(FileNotFoundError, match=says):
        KNNLM.open(store).save_pretrained(NOWHERE / "both")
    with pytest.raises(FileNotFoundError, match=says):
        KNNLM.build(model, texts / "books", NOWHERE / "store")
    tiny = ("--steps", 1, "--d-model", 32, "--layers", 1, "--heads", 2, "--context", 16, "--vocab-size", 300)
    for command in (
        ("train", texts / "books", "--out", NOWHERE / "model", *tiny),
        ("build", texts / "books", "--model", model, "--out", NOWHERE / "deeper" / "store"),
        ("dump", texts / "books", "--model", model, "--out", NOWHERE / "store"),
    ):
        told = " ".join(run(*command, code=1).stderr.split())
        assert "nothing can be made in /proc" in told
        assert "check the path" not in told


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="choose another path"):
        Datastore.create(tmp_path / "file" / "store", dim=8)
    with pytest.raises(FileExistsError):
        make_with_parents(tmp_path / "file")
    with pytest.raises(PermissionError, match=r"^\[Errno 13\] no$"), making(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    make_with_parents(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
