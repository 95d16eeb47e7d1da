"""`why` of a retriever leaves out what its `find` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knnlm.lm.retriever import Retriever, Settings
from knnlm.store.datastore import Datastore


@pytest.mark.parametrize("exclude", ["document", "none"])
def test_why_tells_of_the_neighbors_that_find_shows(tmp_path: Path, exclude: str) -> None:
    rng = np.random.default_rng(0)
    text, others = rng.standard_normal((20, 16), np.float32), rng.standard_normal((300, 16), np.float32)
    store = Datastore.create(tmp_path / "store", dim=16, keep_keys="float32")
    for name, keys in (("a", text), ("b", text), ("others", others)):
        store.add(keys, np.zeros(len(keys), np.int64), document=name)
    store.build(seed=0)
    retriever = Retriever(store, Settings(k=8, lambda_=0.5, temperature=1.0), exclude)
    copies = [(0, 20), (20, 40)]
    found = retriever.find(text[3:4], copies=copies, start=3)
    assert (found.ids[0] < 40).any() == (exclude == "none")
    for rank, id in enumerate(found.ids[0].tolist()):
        told = retriever.why(text[3:4], id, copies=copies, start=3)
        assert (told.reason, told.rank) == ("returned", rank)
        assert told.kth_distance == found.distances[0, -1]
    if exclude == "document":
        for id in (5, 25):
            assert retriever.why(text[3:4], id, copies=copies, start=3).reason == "excluded"


@pytest.mark.parametrize("rerank", [None, "keys"])
def test_why_of_an_entry_that_several_copies_have_knows_the_larger_k_of_find(tmp_path: Path, rerank: Any) -> None:
    rng = np.random.default_rng(0)
    text, others = rng.standard_normal((20, 16), np.float32), rng.standard_normal((600, 16), np.float32)
    store = Datastore.create(tmp_path / "store", dim=16, keep_keys="float32")
    for name, keys in (("a", text), ("b", text), ("far", -text), ("others", others)):
        store.add(keys, np.zeros(len(keys), np.int64), document=name)
    store.build(seed=0, nlist=24)
    retriever = Retriever(store, Settings(k=8, lambda_=0.5, temperature=1.0, nprobe=6, rerank=rerank), "entry")
    copies = [(0, 20), (20, 40), (40, 60)]
    found = retriever.find(text[3:4], copies=copies, start=3)
    own = [3, 23, 43]
    assert not set(own) & set(found.ids[0].tolist())
    near = store.search(text[3:4], 20, nprobe=6, rerank=rerank).ids[0].tolist()
    assert {3, 23} == set(near[:2])
    reasons = set()
    for id in (*near, 43):
        told = retriever.why(text[3:4], id, copies=copies, start=3)
        reasons.add(told.reason)
        place = np.flatnonzero(found.ids[0] == id)
        assert told.rank == (int(place[0]) if len(place) else None)
        assert told.distance == (found.distances[0, place[0]] if len(place) else None)
        assert (told.reason == "returned") == bool(len(place))
        assert (told.reason == "excluded") == (id in own)
        assert (told.k, told.kth_distance) == (8, found.distances[0, -1])
        assert "None" not in str(told)
    assert "beyond_k" in reasons  # one more is found than is left out


def test_why_has_no_distance_of_a_neighbor_that_is_not_there(tmp_path: Path) -> None:
    store = Datastore.create(tmp_path / "store", dim=16, keep_keys="float32")
    store.add(np.eye(16, dtype=np.float32), np.arange(16))
    store.build(seed=0)
    query = np.ones((1, 16), np.float32)
    assert store.why(query, 10**9, exact=True).kth_distance is None
    told = store.why(query, 10**9, k=4, exact=True)
    assert told.kth_distance is not None
    assert (told.reason, told.scanned_exactly) == ("unknown_id", False)
