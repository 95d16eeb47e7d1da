"""Asked recall, second-level codes, and the measurement of both."""

import numpy as np
import pytest

from knnlm import Datastore, StoreError

DIM = 100


def clustered(n, seed):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((200, DIM))
    return (centres[rng.integers(0, 200, n)] + 0.5 * rng.standard_normal((n, DIM))).astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("recall") / "store"
    with Datastore.create(path, dim=DIM, keep_keys="float32") as store:
        store.add(clustered(21_000, 0), np.arange(21_000))
        store.build()
    return path


def test_asked_recall_is_had(path):
    queries = clustered(100, 1)
    with Datastore.open(path) as store:
        lines: list[str] = []
        for asked in (0.8, 0.9):
            measured = store.calibrate(queries, ks=(8, 64, 1024), recall=asked, show=lines.append)
            assert [m["k"] for m in measured] == [8, 64, 1024]
            assert all(m["recall"] >= asked - 0.03 and m["asked"] == asked and m["queries"] == 100 for m in measured)
        assert len(lines) == 6
        assert "k = 1024: recall" in lines[-1]
        own = store.calibrate(ks=(8,), count=50, show=None)
        assert own[0]["recall"] > 0.9
        assert own[0]["queries"] == 50


def test_a_store_with_deletions_is_measured_too(tmp_path):
    keys = clustered(3000, 0)
    with Datastore.create(tmp_path / "store", dim=DIM, keep_keys="float16") as store:
        for start in range(0, 3000, 300):
            store.add(keys[start : start + 300], np.arange(300), document=str(start))
        store.build()
        store.delete(["0", "900", "2700"])
        assert store.info()["entries_with_keys"] == len(store) == 2100
        measured = store.calibrate(ks=(8,), count=64, show=None)
        assert measured[0]["queries"] == 64
        assert measured[0]["recall"] > 0.9


def errors(store, queries, rerank):
    """Mean squared error of distances, against keys that are kept."""
    found = store.search(queries, 50, nprobe=10_000, rerank=rerank)
    true = ((queries[:, None] - store.reconstruct(found.ids)) ** 2).sum(-1)  # (q, k)
    return float(np.mean((found.distances - true) ** 2))


def test_codes_come_close_to_the_distance(path, tmp_path):
    queries = clustered(20, 2)
    with Datastore.open(path) as two, Datastore.create(tmp_path / "flat", dim=DIM, keep_keys="float32") as flat:
        flat.add(clustered(21_000, 0), np.arange(21_000))
        flat.build(code="flat")
        exact = two.search(queries, 50, exact=True)
        assert errors(two, queries, "code") < 0.2 * errors(two, queries, "none")
        assert errors(flat, queries, "none") < 0.2 * errors(two, queries, "none")
        again, default = (two.search(queries, 50, rerank=r) for r in ("code", None))
        np.testing.assert_array_equal(again.ids, default.ids)
        for deep in (
            two.search(queries, 50, nprobe=10_000, depth=5000),
            flat.search(queries, 50, nprobe=10_000, depth=500, rerank="keys"),
        ):
            assert np.mean([np.isin(a, b).mean() for a, b in zip(deep.ids, exact.ids, strict=True)]) > 0.95


def test_arguments_that_do_not_fit(path, tmp_path):
    query = np.zeros(DIM, np.float32)
    with Datastore.open(path) as store:
        with pytest.raises(ValueError, match="recall must be above 0"):
            store.search(query, 1, recall=1.5)
        with pytest.raises(ValueError, match="one of them"):
            store.search(query, 1, recall=0.9, nprobe=3)
        with pytest.raises(ValueError, match="depth"):
            store.search(query, 1, depth=0)
        with pytest.raises(ValueError, match="or retrain, found nlist None"):
            store.build(seed=7)
    with Datastore.create(tmp_path / "s", dim=DIM) as store:
        store.add(clustered(300, 3), np.arange(300))
        store.build(code="small")
        with pytest.raises(StoreError, match="codes of a second level"):
            store.search(query, 1, rerank="code")
        with pytest.raises(ValueError, match=r"expected at most 0\.6\d\d, what this store.s codes reach"):
            store.search(query, 1, recall=0.9)  # all lists are scanned, and the codes find no more
