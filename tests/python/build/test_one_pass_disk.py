"""What the one pass writes beside codes: raw keys if asked, the truth, and errors of a full disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from one_pass_corpus import DIM, KilledError, build, documents, hashes
from tiny_lm import tiny

from knnlm import Datastore
from knnlm.build.dump import dump
from knnlm.model.key_spec import KeySpec
from knnlm.store.recall_sample import Truth
from knnlm.system.own_files import create
from knnlm.text.inputs import TokenDocument


@pytest.fixture(scope="module")
def loaded():
    return tiny(d=DIM)


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_raw_keys_are_kept_if_asked(loaded, tmp_path, kind):
    keys = KeySpec(window=24, key_dtype=kind).resolved(loaded.context)
    kept = {"keys": keys, "keep_keys": True}

    def kill(stage, done, total):
        if stage == "encode" and done > 900:
            raise KilledError

    build(tmp_path / "one", loaded, **kept)
    with pytest.raises(KilledError):
        build(tmp_path / "two", loaded, progress=kill, **kept)
    (tmp_path / "two" / "parts" / "keys-00000099.npy").write_bytes(b"left by a worker")
    assert build(tmp_path / "two", loaded, **kept).resumed_parts > 1
    assert hashes(tmp_path / "two") == hashes(tmp_path / "one")
    with Datastore.open(tmp_path / "one") as store, Datastore.create(tmp_path / "raw", dim=DIM, keep_keys=kind) as raw:
        dump(loaded, documents(), raw, keys=keys)
        info = store.info()
        assert (info["keep_keys"], info["entries_with_keys"], info["indexed"]) == (kind, len(raw), len(raw))
        np.testing.assert_allclose(
            store.keys(0, len(raw)), raw.keys(0, len(raw)), atol=1e-2 if kind == "float16" else 1e-4
        )
        assert store.verify() == []
        ids = dump(loaded, [TokenDocument("later", documents()[0].tokens)], store, keys=keys)
        assert ids.tokens == store.info()["indexed"] - len(raw)
        queries = store.keys(0, 50)
        assert (store.search(queries, 1, exact=True).ids[:, 0] < len(raw)).all()
        store.build(retrain=True, nlist=4)
        assert store.info()["nlist"] == 4
    with pytest.raises(ValueError, match="found a finished store of this text with another"):
        build(tmp_path / "one", loaded, keys=keys)


class Full:
    """A file on a disk without room."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["keys-00000002.npy", "truth-2.tmp"])
def test_a_full_disk_is_an_error_that_names_the_file_and_the_build_goes_on_later(loaded, tmp_path, monkeypatch, name):
    kept = {"keys": KeySpec(window=24, key_dtype="float16").resolved(loaded.context), "keep_keys": True}

    def full(path):
        file = create(path)
        return Full(file) if path.name == name else file

    with monkeypatch.context() as patched:
        patched.setattr("knnlm.system.own_files.create", full)
        with pytest.raises(OSError, match="No space left") as caught:
            build(tmp_path / "store", loaded, **kept)
    assert (caught.value.errno, Path(caught.value.filename).name) == (errno.ENOSPC, name)
    assert build(tmp_path / "store", loaded, **kept).resumed_parts == (2 if name.startswith("keys") else 1)
    with Datastore.open(tmp_path / "store") as store:
        assert store.verify() == []


@pytest.mark.skipif(os.name == "nt", reason="no limit of file size there")
def test_a_file_too_large_is_an_error_and_no_signal(tmp_path):
    program = (
        "import resource, signal, sys; import one_pass_corpus as t\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "loaded = t.load_tiny()\n"
        "keys = t.KeySpec(window=24, key_dtype='float32').resolved(loaded.context)\n"
        "limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
        "size = lambda stage, done, total: stage != 'encode' or limit()\n"
        "t.build(sys.argv[1], loaded, keys=keys, keep_keys=True, progress=size)\n"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "store"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "OSError: [Errno 27] File too large" in done.stderr
    assert "keys-00000001.npy" in done.stderr.splitlines()[-1]


def test_the_state_of_the_truth_is_on_disk_for_good(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def watched(file):
        synced.append(os.fstat(file).st_ino)
        real(file)

    monkeypatch.setattr("os.fsync", watched)
    keys = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    truth = Truth.choose(keys, np.arange(50), 50, "l2")
    truth.save(tmp_path, 3)
    assert synced[0] == (tmp_path / "truth-3.npz").stat().st_ino
    assert os.name != "posix" or synced[1:] == [tmp_path.stat().st_ino]
    np.testing.assert_array_equal(Truth.load(tmp_path, 3).queries, truth.queries)
