"""The oracle itself: against values worked out by hand, and short enough to read."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from knnlm import reference


def test_p_knn_by_hand():
    p = reference.p_knn([0.0, math.log(2), np.inf], [1, 2, 7], 4, 1.0)
    np.testing.assert_allclose(p, [0, 2 / 3, 1 / 3, 0])
    p = reference.p_knn([math.log(2), 0.0], [1, 1], 4, 1.0, "ip")
    np.testing.assert_allclose(p, [0, 1, 0, 0])
    assert not reference.p_knn([np.inf], [0], 4, 1.0).any()


def test_mixture_falls_back_to_the_lm():
    np.testing.assert_array_equal(reference.mixture([0.5, 0.5], [0, 0], 0.9), [0.5, 0.5])
    np.testing.assert_allclose(reference.mixture([0.5, 0.5], [1, 0], 0.2), [0.6, 0.4])


def test_continuous_cache_by_hand():
    keys = np.array([[1.0, 0], [0, 1], [1, 0]])
    p = reference.continuous_cache(keys, [2, 0, 1], 3, theta=math.log(3), size=2)
    assert not p[0].any()
    np.testing.assert_allclose(p[1], [0, 0, 1])
    np.testing.assert_allclose(p[2], [1 / 4, 0, 3 / 4])  # exp(theta) = 3 for the first key, 1 for the second
    np.testing.assert_allclose(reference.continuous_cache(keys, [2, 0, 1], 3, 1.0, size=1)[2], [1, 0, 0])


def test_store_documents_and_ids():
    store = reference.BruteForceStore(2)
    assert store.add([[0, 0], [1, 1]], [3, 4], document="a") == range(0, 2)
    assert store.add([[2, 2]], [5], document="a") == range(2, 3)
    assert store.add([[3, 3]], [6], document="b", metadata={"year": 1}) == range(3, 4)
    assert [(d.name, d.start, d.stop) for d in store.documents()] == [("a", 0, 3), ("b", 3, 4)]
    assert store.document_of([-1, 0, 2, 3]).tolist() == [-1, 0, 0, 1]
    with pytest.raises(ValueError, match="finite"):
        store.add([[np.nan, 0]], [1])
    with pytest.raises(ValueError, match="at least 1"):
        store.search([[0, 0]], 0)
    with pytest.raises(ValueError, match=r"\(q, 2\)"):
        store.search([[0, 0, 0]], 1)
    empty = reference.BruteForceStore(2).search([[0, 0]], 3)
    assert (empty.ids == -1).all()


def test_it_can_be_read_in_five_minutes():
    lines = Path(reference.__file__).read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 150
