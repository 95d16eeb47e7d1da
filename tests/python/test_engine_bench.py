"""The search benchmark on a small synthetic set: are its figures right? (Never how fast anything is.)"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHES = Path(__file__).resolve().parents[2] / "benches"
sys.path.insert(0, str(BENCHES))

pytest.importorskip("faiss")

import engine  # noqa: E402
import engine_quality  # noqa: E402
import engine_sets  # noqa: E402


@pytest.fixture(scope="module")
def key_set() -> engine_sets.KeySet:
    return engine_sets.synthetic(3000, 64, 240, seed=3)


@pytest.fixture(scope="module")
def truth(key_set: engine_sets.KeySet, tmp_path_factory: pytest.TempPathFactory) -> engine_quality.Truth:
    work = tmp_path_factory.mktemp("truth")
    rows = np.arange(120, 240)
    tuning = engine.exact(key_set, key_set.queries[:120], 64, work)
    return engine_quality.truth(key_set, engine.exact(key_set, key_set.queries[rows], 64, work), tuning, rows)


def test_exact_neighbours_are_those_of_numpy(key_set: engine_sets.KeySet, truth: engine_quality.Truth) -> None:
    keys = key_set.keys.astype(np.float64)
    for query, ids, distances in zip(truth.queries[:5], truth.ids, truth.distances, strict=False):
        every = np.square(keys - query).sum(1)
        np.testing.assert_array_equal(ids, np.argsort(every, kind="stable")[:64])
        np.testing.assert_allclose(distances, np.sort(every)[:64], rtol=1e-4)


def test_exact_results_are_perfect_and_half_of_them_are_half(
    key_set: engine_sets.KeySet, truth: engine_quality.Truth
) -> None:
    quality = engine_quality.judge(truth, key_set.keys, (truth.distances, truth.ids), 64)
    assert quality["recall"] == 1
    assert quality["mass"] == pytest.approx(1, abs=1e-4)
    assert quality["variation"] == pytest.approx(0, abs=1e-4)
    assert quality["perplexity"] == pytest.approx(truth.perplexity)
    distances, ids = truth.distances.copy(), truth.ids.copy()
    distances[:, ::2], ids[:, ::2] = np.inf, -1
    halved = engine_quality.judge(truth, key_set.keys, (distances, ids), 64)
    assert halved["recall"] == pytest.approx(0.5)
    weights = engine_quality.softmax(truth.distances, truth.temperature)
    # What is missing is 1 - mass of the true weights; the rest is scaled up by as much.
    assert halved["mass"] == pytest.approx(weights[:, 1::2].sum(1).mean(), abs=1e-4)
    assert halved["variation"] == pytest.approx(weights[:, ::2].sum(1).mean(), abs=1e-4)


def test_equal_keys_count_as_each_other() -> None:
    keys = np.repeat(np.eye(4, 8, dtype=np.float16), 4, axis=0)
    queries = np.eye(4, 8, dtype=np.float32)
    distances = np.zeros((4, 2), np.float32)
    truth = engine_quality.Truth(queries, distances, np.arange(4)[:, None] * 4 + [0, 1], 1.0, None, None, None)
    others = np.arange(4)[:, None] * 4 + [2, 3]
    assert engine_quality.judge(truth, keys, (distances, others), 2)["recall"] == 1


def point(recall: float, speed: float, system: str = "a", row: str = "F1") -> engine.Point:
    return engine.Point(system, row, 64, {}, 8.0, {"recall": recall}, {"sweep": speed})


def test_front_and_speed_at_a_recall() -> None:
    points = [point(0.8, 1000), point(0.9, 100), point(0.85, 90), point(0.95, 10)]
    assert [p.speeds["sweep"] for p in engine.front(points, "sweep")] == [1000, 100, 10]
    found = engine.at_recall(points, "sweep", 0.925)
    assert found is not None
    assert found[0] == pytest.approx(np.sqrt(100 * 10))
    assert found[1].speeds["sweep"] == 10
    assert engine.at_recall(points, "sweep", 0.96) is None


def test_ratio_against_the_best_peer() -> None:
    ours = [point(0.99, 1000, "knnlm", "ours")]
    peers = [point(0.99, 100, "slow"), point(0.99, 200, "fast")]
    rows: list[list[Any]] = engine.ratios(ours + peers, 64, ["sweep"])
    assert all(row[2].startswith("5.0×") and "fast" in row[2] for row in rows)


def test_the_whole_comparison(key_set: engine_sets.KeySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key_set.save(tmp_path / "set")
    options = ["--only", "SQ8$", "--nlists", "16", "--k", "8", "64", "--batches", "1", "64", "--threads", "1"]
    common = ["--set", str(tmp_path / "set"), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert engine.main([*common, *options, "--repeats", "1", "--queries", "60"]) == 0
    assert "FAISS IVF16,SQ8" in capsys.readouterr().out
    with (tmp_path / "out" / "engine-set.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["system"] for row in rows} >= {"knnlm", "FAISS IVF16,SQ8"}
    best = max((row for row in rows if row["system"] == "FAISS IVF16,SQ8"), key=lambda row: float(row["recall"]))
    assert float(best["recall"]) > 0.95  # all 16 lists, 8-bit codes
    ours = max((row for row in rows if row["system"] == "knnlm"), key=lambda row: float(row["recall"]))
    assert float(ours["recall"]) > 0.6
    assert list((tmp_path / "out").glob("*.svg"))


def test_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import opening

    options = ["--work", str(tmp_path), "--out", str(tmp_path / "out"), "--entries", "500", "--dim", "16"]
    monkeypatch.setattr(sys, "argv", ["opening.py", *options, "--repeats", "1"])
    opening.main()
    assert "| 500 |" in capsys.readouterr().out
