"""`knnlm build`: a dry run keeps to its time and refuses what the build refuses, and nothing is no store."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_corpus import run, run_json

from knnlm.build import estimate
from knnlm.store.datastore import Datastore


def test_a_dry_run_refuses_what_the_build_refuses(texts: Path, model: Path, store: Path) -> None:
    before = sorted(store.parent.rglob("*"))
    text = ("build", texts / "books", "--model", model, "--out")
    foreign = store.parent / "books"
    for given, code in (
        ((*text, store), 2),
        ((*text, texts / "books", "--overwrite"), 2),
        ((*text, foreign, "--nlist", 4096), 2),
        (("build", store), 2),
        (("build", store, "--retrain", "--nlist", 4096), 2),
    ):
        real, dry = run(*given, code=code).stderr, run(*given, "--dry-run", code=code).stderr
        assert dry.strip().splitlines()[-1] == real.strip().splitlines()[-1]
    assert sorted(store.parent.rglob("*")) == before


def test_a_store_without_keys_says_why_it_cannot_be_indexed_again(tmp_path: Path) -> None:
    path = tmp_path / "store"
    keys = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
    with Datastore.create(path, dim=16) as store:
        store.add(keys, np.arange(300))
    run("build", path)
    for more in ((), ("--dry-run",)):
        assert "--retrain" in run("build", path, *more, code=2).stderr
        said = run("build", path, "--retrain", *more, code=1).stderr
        assert "without keeping them" in said
        assert "--keys float16" in said


def test_an_empty_store_is_an_error(tmp_path: Path) -> None:
    Datastore.create(tmp_path / "store", dim=16, keep_keys="float32").close()
    for more in ((), ("--dry-run",)):
        assert "expected entries to index" in run("build", tmp_path / "store", *more, code=1).stderr
    assert run_json("info", tmp_path / "store")["nlist"] is None


def test_a_dry_run_stops_sampling_in_time(
    texts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(texts / "books" / "0.txt", tmp_path / "one.txt")
    given = ("build", tmp_path / "one.txt", "--model", model, "--dry-run", "--batch-tokens", 64)
    whole = run_json(*given)
    assert whole["sample_tokens"] == whole["tokens"] > 200
    monkeypatch.setattr(estimate, "SAMPLE_SECONDS", 0.0)
    assert 1 <= run_json(*given)["sample_tokens"] <= 64
