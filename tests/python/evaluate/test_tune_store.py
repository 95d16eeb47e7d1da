"""Tuning a store: what the command chooses and saves, the library chooses, saves and uses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_corpus import run_json, sentence

from knnlm import KNNLM, Datastore
from knnlm.store import datastore


def test_command_and_library_choose_the_same(store: Path, texts: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(store, tmp_path / "other"))
    told = run_json("tune", other, texts / "valid.txt", "--k", 64, "--no-plots", "--threads", 1)
    lm = KNNLM.open(store, threads=1)
    tuned = lm.tune(texts / "valid.txt", k=64)
    assert tuned.to_dict() == pytest.approx({name: told[name] for name in tuned.to_dict()})
    used = lm.settings
    assert (used.lambda_, used.temperature, used.k) == (tuned.lambda_, tuned.temperature, tuned.k)
    assert used.threads == 1
    with Datastore.open(store) as mine, Datastore.open(other) as commands:
        assert mine.attributes["tuned"] == pytest.approx(commands.attributes["tuned"])
    found = run_json("eval", store, texts / "test.txt")
    assert found["settings"]["lambda_"] == tuned.lambda_
    assert found["perplexity"] == pytest.approx(lm.evaluate(texts / "test.txt").perplexity)


def test_weights_of_what_is_mixed_in_are_saved_for_the_next(store: Path, texts: Path) -> None:
    lm = KNNLM.open(store)
    lm.tune([sentence(7)], k=32, cache=True, ngram=True)
    assert set(lm.datastore.attributes["tuned"]["blends"]) == {"cache", "ngram", "cache+ngram"}
    both = KNNLM.open(store, cache=True, ngram=True).evaluate(texts / "test.txt")
    told = run_json("eval", store, texts / "test.txt", "--cache", "--ngram")["blended"]
    assert both.perplexity == pytest.approx(told["perplexity"])
    assert both.settings["blend"]["weights"] == pytest.approx(told["settings"]["blend"]["weights"])


def test_how_a_store_is_searched_is_saved_too(store: Path) -> None:
    lm = KNNLM.open(store)
    lm.tune([sentence(7, 100)], k=16, temperature=3.0, exact=True)
    assert (lm.settings.temperature, lm.settings.exact) == (3.0, True)
    assert KNNLM.open(store).settings == lm.settings
    assert KNNLM.open(store, exact=False).settings.exact is False


def test_what_cannot_be_saved_is_an_error(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = KNNLM.open(store)
    before = lm.settings

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device", "store")

    monkeypatch.setattr(datastore.Datastore, "set_attributes", full)
    with pytest.raises(OSError, match="No space left"):
        lm.tune([sentence(7, 100)], k=16)
    assert lm.settings == before


def test_what_cannot_be_tuned_is_an_error(store: Path) -> None:
    lm = KNNLM.open(store)
    with pytest.raises(ValueError, match="found no document to read"):
        lm.tune([])
    with pytest.raises(TypeError, match="tune: expected a KNNLM with a Datastore"):
        KNNLM(lm.loaded, None).tune([sentence(7, 100)])
