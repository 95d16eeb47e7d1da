"""Evaluating a store: as the command does it, with the interval that the paired bootstrap gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_corpus import run, run_json, sentence

from knnlm import KNNLM
from knnlm.evaluate.bootstrap import paired_bootstrap
from knnlm.evaluate.evaluate_store import change_interval


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    (tmp_path / "held").mkdir()
    for number in range(5):
        (tmp_path / "held" / f"{number}.txt").write_text(sentence(60 + number, 60))
    return tmp_path / "held"


def test_command_and_library_find_the_same(store: Path, held_out: Path) -> None:
    told = run_json("eval", store, held_out, "--threads", 1)
    found = KNNLM.open(store, threads=1).evaluate(held_out, overlap=True).to_dict()
    for name in ("tokens", "words", "perplexity", "lm_perplexity", "word_perplexity", "overlap_13gram"):
        assert told[name] == pytest.approx(found[name], rel=1e-9), name
    assert told["interval"] == pytest.approx(found["interval"], rel=1e-9)
    assert told["settings"] == found["settings"]


def test_the_interval_is_that_of_a_paired_bootstrap_by_document(store: Path, held_out: Path) -> None:
    found = KNNLM.open(store).evaluate(held_out)
    expected = paired_bootstrap(found.lm_document_nll, found.document_nll, found.document_tokens)
    assert found.interval == expected
    assert found.interval is not None
    assert found.interval.perplexity_a == pytest.approx(found.lm_perplexity)
    assert found.interval.perplexity_b == pytest.approx(found.perplexity)
    assert found.change == pytest.approx(found.interval.ratio - 1)
    assert found.interval.ratio_low <= found.interval.ratio <= found.interval.ratio_high
    assert found.overlap_13gram is None


def test_the_command_prints_the_interval_and_can_leave_the_overlap_out(store: Path, held_out: Path) -> None:
    interval = run_json("eval", store, held_out)["interval"]
    shown = run("eval", store, held_out).stdout
    low, high = (f"{100 * (interval[name] - 1):+.1f}" for name in ("ratio_low", "ratio_high"))
    assert f"({low} to {high})" in shown
    assert "change (95 % interval)" in shown
    assert "13-gram" in shown
    without = run("eval", store, held_out, "--no-overlap").stdout
    assert "13-gram" not in without
    assert run_json("eval", store, held_out, "--no-overlap")["overlap_13gram"] is None


def test_where_there_is_no_interval_none_is_shown(store: Path, held_out: Path) -> None:
    lm = KNNLM.open(store)
    assert lm.evaluate([sentence(60, 60)]).interval is None
    assert lm.evaluate([sentence(60, 60), ""]).interval is None
    assert "interval" not in run("eval", store, held_out / "0.txt").stdout
    endless = KNNLM.open(store, lambda_=1.0, k=1).evaluate(held_out)
    assert np.isinf(endless.perplexity)
    assert endless.interval is None
    assert run_json("eval", store, held_out, "--lambda", 1, "--k", 1)["interval"] is None


def test_an_interval_of_many_documents_takes_fewer_draws() -> None:
    from types import SimpleNamespace

    rng = np.random.default_rng(0)
    count = 20_000
    nll = rng.normal(100, 10, count)
    found = SimpleNamespace(document_nll=nll - 1, lm_document_nll=nll, document_tokens=np.full(count, 25))
    interval = change_interval(found)  # type: ignore[arg-type]
    assert interval is not None
    assert interval.samples == 2500
    assert interval.significant


def test_a_text_of_the_store_is_left_out_unless_it_is_asked_for(store: Path, texts: Path) -> None:
    lm = KNNLM.open(store)
    text = (texts / "books" / "0.txt").read_text()
    without, with_it = lm.evaluate([text]), lm.evaluate([text], exclude="none", overlap=True)
    assert without.excluded_documents == 1
    assert with_it.perplexity < without.perplexity
    assert with_it.overlap_13gram == 1.0


def test_token_ids_are_texts_too(store: Path) -> None:
    lm = KNNLM.open(store)
    text = sentence(60, 60)
    ids = lm.loaded.tokenizer.encode(text)
    assert lm.evaluate([ids, ids.tolist()]).perplexity == pytest.approx(lm.evaluate([text]).perplexity)
