"""`knnlm build STORE --retrain` by running the model again, advice that leads there, and `build TEXT --keep-keys`."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_corpus import run, run_json, sentence

from knnlm.build.retrain import RETRAINING
from knnlm.store.datastore import Datastore
from knnlm.store.new_index import advice


def hashes(path: Path) -> dict[str, str]:
    files = (p for p in path.iterdir() if p.is_file() and p.name != "lock")
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def codes(texts: Path, model: Path) -> Path:
    """A store of codes beside the model, as `built` is."""
    path = texts.parent / "codes" / "store"
    if not path.exists():
        run_json("build", texts / "books", "--model", model, "--out", path, "--threads", 1)
    return path


@pytest.fixture
def changed(codes: Path, texts: Path, tmp_path: Path) -> Path:
    """The same after an addition and a deletion."""
    path = Path(shutil.copytree(codes, texts.parent / "changed" / tmp_path.name))
    (tmp_path / "later.txt").write_text(sentence(20, 120))
    run("add", path, tmp_path / "later.txt", "--threads", 1)
    run("delete", path, "0.txt")
    return path


def test_a_store_of_codes_is_trained_again_by_its_model(changed: Path) -> None:
    before = run_json("info", changed)
    planned = run_json("build", changed, "--retrain", "--dry-run", "--threads", 1)
    assert planned["tokens"] == before["n"]
    assert planned["peak_disk_bytes"] > planned["disk_bytes"] > 0
    assert planned["seconds"] > planned["dump_seconds"] > 0
    assert run_json("info", changed)["generation"] == before["generation"]
    found = run_json("build", changed, "--retrain", "--nlist", 3, "--code", "small", "--threads", 1)
    assert (found["entries"], found["nlist"], found["parts"], found["resumed_parts"]) == (before["n"], 3, 1, 0)
    assert found["generation"] == before["generation"] + 1
    info = run_json("info", changed)
    assert (info["drift"], info["next_id"], info["documents"]) == (None, before["next_id"], before["documents"])
    assert run_json("verify", changed)["sound"]
    assert not (changed / RETRAINING).exists()


def test_workers_and_a_given_model_make_the_same_store(changed: Path, model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(changed, changed.with_name("other" + tmp_path.name)))
    run("build", changed, "--retrain", "--threads", 1)
    run("build", other, "--retrain", "--model", model, "--workers", 1, "--threads", 1)
    assert hashes(other) == hashes(changed)


def test_an_interrupted_training_goes_on(changed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes(changed)

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("knnlm.store.builder._core.reindex", interrupted)
        run("build", changed, "--retrain", "--threads", 1, code=130)
    assert hashes(changed) == before
    result = run("build", changed, "--retrain", "--threads", 1)
    assert "going on with an interrupted re-training" in result.stderr


def test_another_model_is_refused(changed: Path, model: Path, texts: Path, tmp_path: Path) -> None:
    other = tmp_path / "model"
    run(
        "train", texts / "books", "--out", other, "--steps", 1, "--vocab-size", 300, "--d-model", 16, "--layers", 2,
        "--heads", 2, "--context", 32, "--batch-tokens", 256, "--threads", 1, "--seed", 5,
    )  # fmt: skip
    before = hashes(changed)
    for more in ((), ("--dry-run",)):
        assert "model weights" in run("build", changed, "--retrain", "--model", other, *more, code=1).stderr
    assert hashes(changed) == before
    found = run("build", changed, "--retrain", "--nlist", 10**6, code=2).stderr
    assert "fewer than the 1,000,000 lists" in found


def test_advice_is_what_works(codes: Path, built: Path, tmp_path: Path) -> None:
    with Datastore.create(tmp_path / "vectors", dim=16) as vectors:
        vectors.add(np.random.default_rng(0).standard_normal((300, 16)), np.arange(300))
        vectors.build()
        assert "needs raw keys" in advice(vectors.info())
    assert "from the raw keys" in advice(run_json("info", built))
    assert f"knnlm build {codes} --retrain" in advice(run_json("info", codes))
    assert "running the model" in advice(run_json("info", codes))


def test_kept_keys_train_a_store_without_the_model(store: Path, model: Path) -> None:
    result = run("build", store, "--retrain", "--model", model, "--nlist", 2)
    assert "the model is not run" in result.stderr
    assert run_json("info", store)["nlist"] == 2


def test_a_build_that_keeps_keys_goes_on_and_takes_workers(
    texts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = ("build", texts / "books", "--model", model, "--keep-keys", "--threads", 1)
    run(*build, "--out", tmp_path / "one")

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Datastore, "compact", interrupted)
        run(*build, "--out", tmp_path / "two", code=130)
    assert not (tmp_path / "two").exists()
    found = run_json(*build, "--out", tmp_path / "two")
    assert found["resumed_parts"] == found["parts"] == 1
    run(*build, "--workers", 1, "--out", tmp_path / "three")
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two") == hashes(tmp_path / "three")
    info = run_json("info", tmp_path / "one")
    assert (info["keep_keys"], info["entries_with_keys"]) == ("float16", info["n"])
    assert run_json("verify", tmp_path / "one")["sound"]
