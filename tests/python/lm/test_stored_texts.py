"""Texts are found in a store by their tokens, whatever their number and length, without a look at every document."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knnlm import Datastore
from knnlm.lm.combiners import ngram_of
from knnlm.lm.stored_texts import COLUMNS, HASHED, StoredTexts, content_hashes
from knnlm.reference import BruteForceStore
from knnlm.store.entries import Documents, values_of_documents
from knnlm.store.union import StoreUnion


def make(path: Path, texts: list[Any], **options: Any) -> Datastore:
    store = Datastore.create(path, dim=2, keep_keys="float16", **options)
    for number, tokens in enumerate(texts):
        store.add(np.ones((len(tokens), 2), np.float16), tokens, document=f"doc {number}")
    store.commit()
    return store


class Watched(StoreUnion):
    """A store that counts the documents whose values are read."""

    read = 0

    def values(self, start: int, stop: int) -> Any:
        self.read += 1
        return super().values(start, stop)


@pytest.mark.parametrize("width", ["uint32", "uint64"])
def test_every_copy_is_found_and_nothing_else(tmp_path: Path, width: str) -> None:
    """Against brute force: few words and lengths, so that texts are there more than once, some deleted."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 2, rng.integers(1, 6)) for _ in range(200)]
    with make(tmp_path / "store", texts, value_dtype=width) as store:
        store.delete([f"doc {number}" for number in range(0, 200, 7)])
        found = StoredTexts(store)
        spans = [(d.start, d.stop) for d in store.documents()]
        for length in range(1, 7):
            for tokens in itertools.product((0, 1), repeat=length):
                text = np.array(tokens, np.uint32)
                expected = [(a, b) for a, b in spans if store.values(a, b).tolist() == list(tokens)]
                assert found.find_all("none of these", text) == expected
        assert found.find_all("doc 1", np.array([], np.uint32)) == []
        for number in (1, 3, 50):
            own = next(d for d in store.documents() if d.name == f"doc {number}")
            assert found.find(f"doc {number}", texts[number].astype(np.uint32)) == (own.start, own.stop)


def test_a_text_among_many_of_its_length_costs_no_look_at_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    texts = rng.integers(0, 50_000, (3000, 16)).astype(np.uint32)
    texts[:, :12] = 7  # they begin alike
    texts[2000] = texts[5]
    with make(tmp_path / "store", list(texts)) as store:
        watched = Watched([store])
        found = StoredTexts(watched)
        assert found.find_all("x", texts[40]) == [(640, 656)]
        assert watched.read == 2  # all of them at once, and the one that is there
        assert found.find_all("x", texts[5]) == [(80, 96), (32_000, 32_016)]
        assert found.find_all("doc 2000", texts[5]) == [(32_000, 32_016), (80, 96)]
        assert found.find_all("x", texts[5] + 1) == []
        assert watched.read == 6


def test_long_documents_are_hashed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    length = 2 * COLUMNS + 5
    texts = [rng.integers(0, 9, length).astype(np.uint32) for _ in range(6)]
    texts[3] = np.concatenate([texts[0][COLUMNS:], texts[0][:COLUMNS]])
    texts[5] = texts[0]
    monkeypatch.setattr("knnlm.lm.stored_texts.HASHED", 3 * length)
    assert HASHED > 1000
    with make(tmp_path / "store", [*texts, texts[0][:-1]]) as store:
        found = StoredTexts(store)
        assert found.find_all("x", texts[0]) == [(0, length), (5 * length, 6 * length)]
        assert found.find_all("x", texts[3]) == [(3 * length, 4 * length)]
        assert found.find_all("x", texts[0][:-1]) == [(6 * length, 7 * length - 1)]


def test_hashes_tell_order_and_place(tmp_path: Path) -> None:
    rows = np.array(list(itertools.permutations(range(7))), np.uint32)
    assert len(np.unique(content_hashes(rows))) == len(rows)
    ones = np.eye(3 * COLUMNS, dtype=np.uint8)[:: COLUMNS // 8]
    assert len(np.unique(content_hashes(ones))) == len(ones)


def test_equal_hashes_of_other_texts_are_no_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [np.array([1, 2, 3], np.uint32), np.array([3, 2, 1], np.uint32)]
    monkeypatch.setattr("knnlm.lm.stored_texts.content_hashes", lambda rows: np.zeros(len(rows), np.uint64))
    with make(tmp_path / "store", texts) as store:
        assert StoredTexts(store).find_all("x", texts[1]) == [(3, 6)]


def test_values_by_document_need_no_look_at_each_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [np.arange(length, dtype=np.uint32) for length in (3, 1, 5, 2)]
    exact = BruteForceStore(2)
    for tokens in texts:
        exact.add(np.ones((len(tokens), 2)), tokens, document=f"{len(tokens)}")
    assert [values.tolist() for values in values_of_documents(exact)] == [list(range(n)) for n in (3, 1, 5, 2)]
    with make(tmp_path / "store", texts) as store:
        store.delete(["doc 2"])
        monkeypatch.setattr(Documents, "__getitem__", lambda *_: pytest.fail("a document by itself"))
        seen: list[int] = []
        assert [values.tolist() for values in values_of_documents(store, seen.append)] == [[0, 1, 2], [0], [0, 1]]
        assert seen == [3, 4, 6]  # entries, not ids
        assert ngram_of(store, 2, 5).log_probs(np.array([0, 1])).shape == (2,)
