"""The overlap check against a set of tuples."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import knnlm.evaluate.overlap as module
from knnlm.evaluate.overlap import overlap, overlap_13gram, overlap_share
from knnlm.store.datastore import Datastore


def slow(documents, store, n):
    """Covered tokens per document, with the n-grams of the store in a set."""
    grams = {tuple(d[i : i + n]) for d in store for i in range(len(d) - n + 1)}
    covered = []
    for d in documents:
        inside = {i + j for i in range(len(d) - n + 1) if tuple(d[i : i + n]) in grams for j in range(n)}
        covered.append(len(inside))
    return covered


texts = st.lists(st.lists(st.integers(0, 3), max_size=25), max_size=6)


@given(documents=texts, store=texts, n=st.integers(1, 5), chunk=st.integers(1, 20))
@settings(max_examples=300, deadline=None)
def test_equals_the_set_of_tuples_for_any_chunk_size(documents, store, n, chunk):
    before = module._CHUNK
    module._CHUNK = chunk
    try:
        found = overlap(documents, iter(store), n)
    finally:
        module._CHUNK = before
    assert found.document_covered.tolist() == slow(documents, store, n)
    assert found.document_tokens.tolist() == [len(d) for d in documents]
    assert found.covered == sum(slow(documents, store, n))
    assert found.tokens == sum(map(len, documents))


def test_known_share():
    rng = np.random.default_rng(0)
    store = [rng.integers(0, 1000, 5000).astype(np.uint32) for _ in range(3)]
    fresh = rng.integers(2000, 3000, 100)
    evaluated = [np.concatenate([fresh, store[1][40:60], fresh]), store[2][:12], store[0][:80]]
    found = overlap(evaluated, store)
    assert found.document_covered.tolist() == [20, 0, 80]
    assert found.fraction == pytest.approx(100 / (220 + 12 + 80))
    assert overlap_13gram(evaluated, store) == found.fraction
    assert overlap_13gram(store, store) == 1.0


def test_ngrams_do_not_cross_document_borders():
    run = np.arange(26)
    assert overlap_13gram([run], [run[:10], run[10:]]) == 16 / 26
    assert overlap_13gram([run[:7], run[7:14]], [run]) == 0.0


def test_equal_hashes_of_different_text_do_not_count(monkeypatch):
    monkeypatch.setattr(module, "_hashes", lambda x, starts, n: np.zeros(len(starts), dtype=np.uint64))
    assert overlap([[1] * 13], [[2] * 13]).covered == 0
    assert overlap([[1] * 13], [[1] * 13]).covered == 13


def test_progress_ends_at_all_entries_after_deletions(tmp_path):
    with Datastore.create(tmp_path / "store", dim=2) as store:
        for name in "abc":
            store.add(np.zeros((5, 2), np.float32), np.arange(5), name)
        store.delete(["a"])
        told = []
        text = SimpleNamespace(tokens=np.arange(20), documents=lambda: [slice(0, 20)])
        overlap_share(text, store, lambda *said: told.append(said))
    assert told == [("overlap", 5, 10), ("overlap", 10, 10)]


def test_large_values_and_empty_sides():
    big = np.full(13, 2**64 - 1, dtype=np.uint64)
    assert overlap_13gram([big], [big]) == 1.0
    assert overlap_13gram([], [big]) == 0.0
    assert overlap_13gram([big], []) == 0.0


@pytest.mark.parametrize("bad", [[[1.5] * 13], [[-1] * 13], [[[1], [2]]]])
def test_errors_say_what_was_expected(bad):
    with pytest.raises(ValueError, match="one-dimensional array of token ids"):
        overlap(bad, [])
    with pytest.raises(ValueError, match="at least 1 token, found 0"):
        overlap([], [], 0)
