"""A store on a file system that is mounted read-only: everything that reads works, nothing that writes changes it."""

import errno
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cli_corpus import run, run_json

from knnlm import Datastore


@pytest.fixture
def disk(store, model, texts):
    """The folder of a store, a model and texts, mounted read-only; some entries are deleted, some in no list."""
    folder = store.parent
    shutil.copytree(model, folder / "model")
    shutil.copytree(texts, folder / "texts")
    with Datastore.open(store) as opened:
        opened.delete(0)
        keys = np.zeros((3, opened.dim), np.float32)
        opened.add(keys, np.ones(3, np.uint32), "late")
        opened.commit()
    mount = shutil.which("mount")
    steps = [["--bind", folder, folder], ["-o", "remount,bind,ro", folder]]
    mounted = mount is not None and subprocess.run([mount, *steps[0]], capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("no permission to mount a folder read-only")
    try:
        subprocess.run([mount, *steps[1]], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


def test_python(disk):
    path = disk / "store"
    before = files(path)
    with Datastore.open(path, verify=True) as store:
        n, queries = len(store), np.zeros((2, store.dim), np.float32)
        late = store.documents()[-1]
        assert store.search(queries, 3).ids.tolist() == [[late.start, late.start + 1, late.start + 2]] * 2
        assert store.search(queries, 1, exact=True).found.all()
        assert (store.verify(), store.info()["n"]) == ([], n)
        key, value = queries[:1], [1]
        for change in (
            lambda: store.add(key, value, "new"),
            lambda: store.delete("late"),
            lambda: store.supersede("late"),
            lambda: store.replace(key, value, "late"),
            store.compact,
            store.build,
            lambda: store.build(retrain=True),
            lambda: store.set_attributes({}),
            lambda: Datastore.create(disk / "new", dim=4),
            lambda: Datastore.create(path, dim=4, overwrite=True),
        ):
            with pytest.raises(OSError, match="expected a disk that can be written: mount it") as caught:
                change()
            assert caught.value.errno == errno.EROFS
            assert caught.value.filename.startswith(str(disk))
        store.commit()  # nothing waits
        assert len(store) == n
    assert files(path) == before


def test_commands(disk, tmp_path_factory):
    store, model, text = disk / "store", disk / "model", disk / "texts" / "test.txt"
    before = files(store)
    out = tmp_path_factory.mktemp("elsewhere")
    assert run_json("info", store)["deleted_documents"] == 1
    assert run_json("verify", store)["problems"] == []
    assert run_json("eval", store, text, "--model", model)["perplexity"] > 1
    run("generate", store, "--prompt", "the store", "--max-new-tokens", 2, "--model", model)
    run("inspect", store, "--string", "the store keeps", "--model", model)
    run("export", store, text, "--model", model, "--out", out / "exported.safetensors")
    for change in (
        ("add", store, text, "--model", model),
        ("delete", store, "late"),
        ("replace", store, "late", text, "--model", model),
        ("compact", store),
        ("build", store, "--retrain"),
        ("dump", text, "--model", model, "--out", disk / "dumped"),
        ("build", text, "--model", model, "--out", disk / "built"),
        ("build", text, "--model", model, "--out", store, "--overwrite"),
        ("train", text, "--out", disk / "trained", "--steps", 1),
    ):
        said = run(*change, code=1).stderr
        assert "Read-only file system; expected a disk that can be written" in said, (change, said)
    tuned = run("tune", store, text, "--model", model, "--k", 8, "--no-plots", code=1)
    assert "λ" in tuned.stdout
    assert "not saved" in tuned.stderr
    assert run_json("tune", store, text, "--model", model, "--k", 8, "--no-plots", code=1)["saved"] is False
    assert files(store) == before
