"""A store is copied while writers are kept out, as docs/durability.md says, and served from a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from knnlm import Datastore, FormatError, StoreError

fcntl = pytest.importorskip("fcntl")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with an index and a deleted document."""
    keys = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    with Datastore.create(tmp_path / "store", dim=8, keep_keys="float32") as store:
        for i in range(3):
            store.add(keys[100 * i : 100 * i + 100], np.arange(100), document=f"doc {i}")
        store.build(nlist=4)
        store.delete("doc 1")
    return tmp_path / "store"


def test_a_shared_lock_keeps_writers_out_and_the_copy_is_whole(path: Path, tmp_path: Path) -> None:
    with (path / "lock").open("rb") as lock, Datastore.open(path) as store:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(StoreError, match="another writer"):
            store.delete("doc 0")
        with Datastore.open(path) as other, pytest.raises(StoreError, match="another writer"):
            other.compact()
        shutil.copytree(path, tmp_path / "copy")
        fcntl.flock(lock, fcntl.LOCK_UN)
        store.delete("doc 0")
    assert Datastore.verify_path(tmp_path / "copy") == []
    with Datastore.open(tmp_path / "copy") as copy:
        assert [info.name for info in copy.documents()] == ["doc 0", "doc 2"]


@pytest.mark.parametrize("kind", ["data", "codebook", "lists", "deleted"])
def test_a_copy_that_misses_a_file_says_so(path: Path, kind: str) -> None:
    [missing] = path.glob(f"{kind}-*")
    missing.unlink()
    assert any(kind in problem for problem in Datastore.verify_path(path))
    with pytest.raises(FormatError, match=kind):
        Datastore.open(path)


def test_a_copy_without_a_manifest_says_so(path: Path) -> None:
    [missing] = path.glob("manifest-*")
    missing.unlink()
    for look in (Datastore.verify_path, Datastore.open):
        with pytest.raises(FormatError, match=r"expected a knnlm store .*manifest"):
            look(path)


def test_a_reader_keeps_the_files_that_a_writer_removes(path: Path) -> None:
    with Datastore.open(path) as reader, Datastore.open(path) as writer:
        before = reader.values(0, 300)
        writer.delete("doc 0")
        writer.compact()
        np.testing.assert_array_equal(reader.values(0, 300), before)
        assert reader.verify() == []
        reader.refresh()
        assert len(reader) == 100
