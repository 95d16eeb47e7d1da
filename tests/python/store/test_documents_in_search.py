"""Searching by document: where neighbors come from, and which documents a query may or may not see."""

from __future__ import annotations

import numpy as np
import pytest

import knnlm
from knnlm import Datastore

N, D, DOCUMENTS = 3000, 16, 30


@pytest.fixture(scope="module", params=[True, False], ids=["built", "raw"])
def store(request, tmp_path_factory):
    """3,000 entries in 30 documents around a few centres, with or without an index."""
    rng = np.random.default_rng(0)
    keys = (rng.standard_normal((12, D))[rng.integers(0, 12, N)] + 0.2 * rng.standard_normal((N, D))).astype(np.float32)
    store = Datastore.create(tmp_path_factory.mktemp("s") / "store", dim=D, keep_keys="float32")
    for i in range(DOCUMENTS):
        store.add(keys[100 * i : 100 * i + 100], np.arange(100 * i, 100 * i + 100), document=f"doc {i}")
    if request.param:
        store.build(nlist=64)
    yield store, keys
    store.close()


def nearest(keys, query, allowed, k):
    distance = ((keys - query) ** 2).sum(-1)
    distance[~allowed] = np.inf
    return np.argsort(distance, kind="stable")[:k]


def test_search_tells_document_and_position(store):
    opened, keys = store
    found = opened.search(keys[[5, 250]], 40, return_documents=True)
    np.testing.assert_array_equal(found.documents, found.ids // 100)
    np.testing.assert_array_equal(found.positions, found.ids % 100)
    assert found[0].documents.shape == (40,)
    assert opened.search(keys[:1], 3).documents is None
    missing = opened.search(keys[:1], 7, allow=["doc 3"], exclude=[[300, 396]], return_documents=True)
    assert missing.documents[0].tolist() == [3, 3, 3, 3, -1, -1, -1]
    assert missing.positions[0, 4:].tolist() == [-1, -1, -1]


@pytest.mark.parametrize("options", [{"exact": True}, {"rerank": "keys", "nprobe": 1}, {"rerank": "keys"}])
def test_k_come_back_from_the_documents_allowed(store, options):
    opened, keys = store
    document = np.arange(N) // 100
    allowed = np.isin(document, [3, 17])
    found = opened.search(keys[:9], 60, allow=["doc 3", 17], **options)
    assert found.found.all()
    assert np.isin(found.ids, np.nonzero(allowed)[0]).all()
    if options.get("exact"):
        expected = [nearest(keys, query, allowed, 60) for query in keys[:9]]
        np.testing.assert_array_equal(found.ids, expected)
    denied = opened.search(keys[:9], 60, deny=["doc 0", 1, 2], **options)
    assert denied.found.all()
    assert (denied.ids >= 300).all()


def test_a_query_leaves_out_its_own_document(store):
    opened, keys = store
    queries = keys[np.arange(0, N, 250)]  # (12, d)
    own = np.arange(0, N, 250) // 100
    found = opened.search(queries, 50, exact=True, deny=[[int(i)] for i in own])
    for row, query, mine in zip(found.ids, queries, own, strict=True):
        np.testing.assert_array_equal(row, nearest(keys, query, np.arange(N) // 100 != mine, 50))


def test_filters_that_nothing_passes_give_nothing(store):
    opened, keys = store
    nothing = opened.search(keys[:2], 5, allow=[])
    assert (nothing.ids == -1).all()
    both = opened.search(keys[:2], 5, allow=["doc 1"], deny=["doc 1"])
    assert not both.found.any()


def test_documents_that_are_not_there_are_errors(store):
    opened, keys = store
    for wrong in (["doc 99"], [30], [-1], [1.5], "doc 1", [["doc 1"]], [["doc 1"], 2]):
        with pytest.raises(ValueError, match=r"document|allow"):
            opened.search(keys[:2], 5, allow=wrong)


def test_slices_of_neighbors_keep_documents(store):
    opened, keys = store
    found = opened.search(keys[:6], 4, return_documents=True).reshape(2, 3)
    assert found.documents.shape == (2, 3, 4)
    assert isinstance(found.first(2), knnlm.Neighbors)
    assert found.first(2).positions.shape == (2, 3, 2)
