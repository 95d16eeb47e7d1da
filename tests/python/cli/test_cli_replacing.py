"""A finished output takes its place: on disk before the old one goes, never beside a writer, never over a surprise."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_corpus import run, run_json, sentence

from knnlm.build import from_text
from knnlm.store import output_folder as folders
from knnlm.store.datastore import Datastore, StoreError
from knnlm.store.output_folder import take_place, whole_folder
from knnlm.system import own_files, rename
from knnlm.system.usage import UsageError
from knnlm.train import place


class KilledError(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(params=["swapped", "renamed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How names change places: in one step, or in two as on a system that has no such step."""
    if request.param == "renamed":
        monkeypatch.setattr(rename, "_rename_by", lambda *names: False)
    return str(request.param)


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text(path.name)
    return path


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("free", [True, False])
def test_a_new_folder_takes_the_place(way: str, free: bool, tmp_path: Path) -> None:
    new = folder(tmp_path / "new")
    if not free:
        folder(tmp_path / "out")
    take_place(new, tmp_path / "out", overwrite=not free)
    assert names(tmp_path) == ["out"]
    assert contents(tmp_path / "out") == {"config.json": b"new"}


@pytest.mark.skipif(os.name != "posix", reason="folders are not forced to disk there")
def test_the_new_folder_is_on_disk_in_its_place_before_the_old_one_goes(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, out = folder(tmp_path / "new"), folder(tmp_path / "out")
    named = {path.stat().st_ino: path.name for path in (tmp_path, new, out)}
    named[(new / "config.json").stat().st_ino] = "file of new"
    happened: list[str] = []

    def fsync(file: int) -> None:
        at = "out" if (tmp_path / "out" / "config.json").read_text() == "out" else "new"
        happened.append(f"{named[os.fstat(file).st_ino]} forced, {at} there")

    def rmtree(path: Path) -> None:
        happened.append("old removed")
        assert (path / "config.json").read_text() == "out"

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    take_place(new, out, overwrite=True)
    assert happened == [
        "file of new forced, out there",
        "new forced, out there",
        "out forced, out there",  # the mark
        f"{tmp_path.name} forced, new there",
        "old removed",
    ]
    happened.clear()
    (tmp_path / "out").rename(tmp_path / "new")
    monkeypatch.setattr(os, "fsync", lambda file: happened.append(named[os.fstat(file).st_ino]))
    take_place(tmp_path / "new", tmp_path / "out", overwrite=False)
    assert happened[-1] == tmp_path.name


def test_a_rename_that_fails_leaves_the_old_folder(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folder(tmp_path / "out")
    monkeypatch.setattr(folders, "force", lambda path: None)
    with pytest.raises(FileNotFoundError):
        take_place(tmp_path / "gone", out, overwrite=True)
    assert names(tmp_path) == ["out"]
    assert contents(out) == {"config.json": b"out"}


def test_what_appears_meanwhile_is_not_replaced(way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = whole_folder(tmp_path / "out", overwrite=False)
    partial = folder(whole.__enter__())
    folder(tmp_path / "out")
    with pytest.raises(UsageError, match=r"exists already.*another command made meanwhile"):
        whole.__exit__(None, None, None)
    assert contents(tmp_path / "out") == {"config.json": b"out"}
    kept = tmp_path / "out.whole"
    said = caplog.text
    assert f"what was made is whole, in {kept}; {tmp_path / 'out'} is as it was" in said
    assert said.endswith(f"move {tmp_path / 'out'} away, then: mv {kept} {tmp_path / 'out'}\n")
    with whole_folder(tmp_path / "out", overwrite=True) as again:
        folder(again)
    assert contents(kept) == {"config.json": partial.name.encode()}
    assert names(tmp_path) == ["out", "out.whole"]


def test_what_is_kept_takes_no_name_that_is_there_and_is_no_leftover(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "out")
    for _ in range(2):
        with pytest.raises(UsageError, match="move that away"):
            take_place(folder(tmp_path / "new"), tmp_path / "out", overwrite=False)
    assert names(tmp_path) == ["out", "out.whole", "out.whole-2"]
    monkeypatch.setattr(own_files, "_runs", lambda process: False)
    assert folders.leftovers(tmp_path / "out") == []


@pytest.mark.skipif(os.name == "nt", reason="a store is not locked while it is replaced there")
def test_what_the_system_refuses_keeps_what_was_made(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = folder(tmp_path / "out")
    (out / "manifest-00000001.json").touch()
    (out / "lock").mkdir()  # cannot be opened, whoever runs this
    with pytest.raises(IsADirectoryError):
        take_place(folder(tmp_path / "new"), out, overwrite=True)
    assert f"what was made is whole, in {out}.whole" in caplog.text
    assert names(out) == ["config.json", "lock", "manifest-00000001.json"]
    assert contents(tmp_path / "out.whole") == {"config.json": b"new"}


def test_the_old_folder_is_not_taken_for_what_was_made(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = folder(tmp_path / "out")

    def fails(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    new = folder(tmp_path / "new")
    monkeypatch.setattr(folders, "sync", fails)
    with pytest.raises(OSError, match="Input/output"):
        take_place(new, out, overwrite=True)
    assert contents(out) == {"config.json": b"new"}
    assert caplog.text == ""


def test_a_training_that_may_not_replace_its_model_is_kept(tmp_path: Path) -> None:
    out = folder(tmp_path / "out")
    for again in range(2):
        replacing = place.training_place(out, True, False)
        (folder(replacing.__enter__()) / place.STATE_FILE).touch()
        (out / "notes.txt").write_text("mine")
        with pytest.raises(UsageError, match=r"holds notes\.txt"):
            replacing.__exit__(None, None, None)
        (out / "notes.txt").unlink()
        assert names(tmp_path) == ["out", "out.whole", "out.whole-2"][: again + 2]


def test_files_of_others_that_appear_meanwhile_are_not_removed(way: str, tmp_path: Path) -> None:
    out = folder(tmp_path / "out")
    whole = whole_folder(out, overwrite=True)
    partial = folder(whole.__enter__())
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds notes\.txt, which is not of a store"):
        whole.__exit__(None, None, None)
    assert names(out) == ["config.json", "notes.txt"]
    assert contents(tmp_path / "out.whole") == {"config.json": partial.name.encode()}


@pytest.mark.skipif(os.name == "nt", reason="a folder with open files is not renamed there")
def test_a_store_is_not_replaced_under_a_writer_nor_written_to_while_it_is(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, out = folder(tmp_path / "new"), tmp_path / "out"
    keys = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    with Datastore.create(out, dim=8, keep_keys="float32") as writer:
        writer.add(keys, np.arange(100))
        with pytest.raises(StoreError, match="another writer holds this store, expected none while it is replaced"):
            take_place(new, out, overwrite=True, found_again=True)
        assert names(new) == ["config.json"]
        writer.commit()
    with Datastore.open(out) as store:
        assert len(store) == 100

    def swap(*given: Path) -> Path:
        with Datastore.open(out) as second, pytest.raises(StoreError, match="another writer"):
            second.add(keys, np.arange(100))
        return original(*given)

    original = folders.swap
    monkeypatch.setattr(folders, "swap", swap)
    take_place(new, out, overwrite=True)
    assert names(tmp_path) == ["out"]
    assert names(out) == ["config.json"]


@pytest.mark.skipif(os.name == "nt", reason="a folder with open files is not renamed there")
def test_a_build_that_may_not_replace_a_store_is_whole_and_takes_its_place_later(
    texts: Path, model: Path, store: Path
) -> None:
    build = ("build", texts / "test.txt", "--model", model, "--out", store, "--threads", 1, "--overwrite")
    with Datastore.open(store) as writer:
        writer.add(np.zeros((1, writer.dim), np.float32), np.zeros(1, np.uint32))
        before = names(store)
        said = run(*build, code=1).stderr
        assert names(store) == before
    building = store.with_name(f".{store.name}.building")
    assert f"what was made is whole, in {building}; {store} is as it was; the same command" in said
    assert "another writer holds this store" in said
    found = run_json(*build)
    assert found["resumed_parts"] == found["parts"] == 1
    assert not building.exists()
    assert documents(store) == ["test.txt"]


def documents(path: Path) -> list[str | None]:
    with Datastore.open(path) as store:
        return [info.name for info in store.documents()]


def test_a_store_that_appears_while_text_is_built_stays(
    texts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = from_text.build_in_one_pass

    def slow(*given: Any, **options: Any) -> Any:
        folder(tmp_path / "out")
        return original(*given, **options)

    monkeypatch.setattr(from_text, "build_in_one_pass", slow)
    said = run("build", texts / "test.txt", "--model", model, "--out", tmp_path / "out", code=2).stderr
    assert "another command made meanwhile" in said
    assert contents(tmp_path / "out") == {"config.json": b"out"}
    assert (tmp_path / ".out.building" / "lock").exists()


@pytest.mark.parametrize("moment", ["swap", "sync", "_remove"])
def test_a_build_that_is_killed_while_it_replaces_ends_with_the_new_store(
    way: str, texts: Path, model: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The former store has the same text and has grown since: nothing but its mark tells it from the new one."""
    build = ("build", texts / "books", "--model", model, "--out", store, "--keep-keys", "--overwrite", "--threads", 1)
    run(*build)
    expected = contents(store)
    (tmp_path / "later.txt").write_text(sentence(20, 120))
    run("add", store, tmp_path / "later.txt", "--threads", 1)
    kill_in(monkeypatch, moment, *build)
    assert contents(store) == expected or "later.txt" in documents(store)
    run(*build)
    assert contents(store) == expected
    assert [name for name in names(store.parent) if "store" in name] == ["store"]


@pytest.mark.parametrize("moment", ["swap", "sync", "_remove"])
def test_a_training_that_is_killed_while_it_replaces_ends_with_the_new_model(
    way: str, texts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    old = Path(shutil.copytree(model, tmp_path / "old"))
    before = (old / "model.safetensors").read_bytes()
    sizes = ("--vocab-size", 300, "--d-model", 16, "--layers", 1, "--heads", 2, "--context", 32, "--batch-tokens", 256)
    train = ("train", texts / "books", "--out", old, "--steps", 2, *sizes, "--threads", 1, "--overwrite", "--resume")
    (tmp_path / "old.new").mkdir()
    kill_in(monkeypatch, moment, *train[:-1])
    assert run_json(*train)["steps"] == 2
    assert names(tmp_path) == ["old"]
    assert (old / "model.safetensors").read_bytes() != before


def kill_in(monkeypatch: pytest.MonkeyPatch, moment: str, *command: Any) -> None:
    """Ends a command at a step of `take_place` as a kill does: nothing is cleaned up, and its process is gone."""

    def killed(*given: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(folders, moment, killed)
        patched.setattr(own_files.os, "getpid", lambda: 2**22 + 1)  # more than Linux gives
        with pytest.raises(KilledError):
            run(*command)
