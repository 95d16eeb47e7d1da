"""The benchmarks of large stores in a small form: are their results right? (Never how fast anything is.)"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knnlm import Datastore

BENCHES = Path(__file__).resolve().parents[3] / "benches"
sys.path.insert(0, str(BENCHES))

faiss = pytest.importorskip("faiss")

import engine_sets  # noqa: E402
import fifty_million  # noqa: E402
import growing_faiss  # noqa: E402
import growing_keys  # noqa: E402
import growth  # noqa: E402
import larger_than_memory  # noqa: E402

DIM, K, ENTRIES, QUERIES = 24, 20, 5000, 15


def nearest(keys: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    every = np.square(keys[None].astype(np.float64) - queries[:, None]).sum(2)
    return np.argsort(every, axis=1, kind="stable")[:, :k]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key set and what growth.py leaves of it."""
    folder = tmp_path_factory.mktemp("grown")
    engine_sets.synthetic(3000, DIM, 60, seed=5).save(folder / "toy")
    given = ["--set", folder / "toy", "--work", folder / "work", "--out", folder / "record", "--sizes", 2500, ENTRIES]
    given += ["--queries", QUERIES, "--k", K, "--keep"]
    assert growth.main([str(x) for x in given]) == 0
    return folder


@pytest.fixture(scope="module")
def keys(grown: Path) -> np.ndarray:
    """The entries of the largest store, made again."""
    source = growing_keys.Source(engine_sets.load(grown / "toy").keys, DIM)
    return np.concatenate([batch for _, batch in source.batches(ENTRIES)])


def test_growth(grown: Path, keys: np.ndarray) -> None:
    record = json.loads((grown / "record" / f"growth-toy-{DIM}.json").read_text())
    assert [row["entries"] for row in record["rows"]] == [2500, ENTRIES]
    assert all(growth.GOAL <= row["recall"] <= 1 for row in record["rows"])
    answers = np.load(grown / "work" / f"growth-toy-{DIM}" / "answers.npz")
    np.testing.assert_array_equal(answers["ids"], nearest(keys, answers["queries"], K))
    with Datastore.open(grown / "work" / f"growth-toy-{DIM}") as store:
        assert len(store) == ENTRIES
        own = store.search(keys[::500], 1).ids[:, 0]
        assert np.mean(own == np.arange(0, ENTRIES, 500)) >= 0.9  # of codes
        np.testing.assert_array_equal(store.values(0, ENTRIES), np.arange(ENTRIES) % 50_000)
    assert (grown / "record" / f"growth-toy-{DIM}.svg").is_file()


def test_faiss_beside_a_store_larger_than_memory(grown: Path, keys: np.ndarray) -> None:
    index = faiss.index_factory(DIM, "IVF64,Flat")
    index.train(keys)
    faiss.write_index(index, str(grown / "IVF64"))
    given = ["--set", grown / "toy", "--trained", grown / "IVF64", "--work", grown / "work", "--entries", ENTRIES]
    assert growing_faiss.main([str(x) for x in given]) == 0
    filled = grown / "work" / f"IVF64-{ENTRIES}"
    assert faiss.read_index(str(filled)).ntotal == ENTRIES

    store = grown / "work" / f"growth-toy-{DIM}"
    given = ["--store", store, "--answers", store / "answers.npz", "--faiss", filled, "--nprobe", 1, 64]
    given += ["--recall", 0.85, "--queries", QUERIES, "--k", K, "--out", grown / "record"]
    size = sum(file.stat().st_size for file in larger_than_memory.files(store))
    given += ["--share", 1.5 * 2**30 / size]  # a limit that Python and the libraries fit in
    assert larger_than_memory.main([str(x) for x in given]) == 0
    rows: list[dict[str, Any]] = json.loads((grown / "record" / "larger-than-memory.json").read_text())["rows"]
    assert [row["system"] for row in rows] == ["knnlm"] * 2 + ["faiss"] * 4
    assert not any("failed" in row for row in rows), rows
    recalls = [row["recall"] for row in rows]
    assert recalls[::2] == recalls[1::2]  # with a limit and without
    assert recalls[0] > 0.8
    assert recalls[2] < recalls[4] == 1  # all lists of what is not coded


def test_a_store_too_small_to_be_larger_than_memory_is_refused(grown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = grown / "work" / f"growth-toy-{DIM}"
    with pytest.raises(SystemExit):
        larger_than_memory.main(["--store", str(store), "--answers", str(store / "answers.npz")])
    assert "expected 1.7 GB or more" in capsys.readouterr().err


def test_many_entries(tmp_path: Path) -> None:
    given = ["--folder", tmp_path, "--entries", 12_000, "--dim", 16, "--queries", 12, "--out", tmp_path, "--compact"]
    assert fifty_million.main([str(x) for x in given]) == 0
    found = json.loads((tmp_path / "fifty-million.json").read_text())
    assert (found["entries"], found["problems"]) == (12_000, [])
    assert list(found["phases"])[:4] == ["learn", "build", "append 2 %", "verify"]
    recalls = [search["recall@100"] for search in found["search"].values()]
    assert len(set(recalls)) == 1  # from disk, from memory, compacted
    source = fifty_million.Source(16)
    keys = np.concatenate([source.batch(0, 11_760), source.batch(11_760, 240)])
    queries = source.batch(10**9, 12)
    with Datastore.open(tmp_path / "fifty-million-store") as store:
        truth = nearest(keys, queries, fifty_million.K)
        ids = store.search(queries, fifty_million.K).ids
        hits = [len(np.intersect1d(a, b)) for a, b in zip(ids, truth, strict=True)]
        assert np.sum(hits) / truth.size == pytest.approx(recalls[0])
        assert recalls[0] > 0.7
