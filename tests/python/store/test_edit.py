"""Deleting, replacing and compacting from Python, readers beside a writer, and stores as parts of a union."""

from __future__ import annotations

import numpy as np
import pytest

from knnlm import Datastore
from knnlm.store.union import StoreUnion

D = 8


def keys_of(seed, n):
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


@pytest.fixture
def store(tmp_path):
    """Ten documents of 50 entries, indexed."""
    store = Datastore.create(tmp_path / "store", dim=D, keep_keys="float32")
    for i in range(10):
        store.add(keys_of(i, 50), np.full(50, i), document=f"doc {i}", metadata={"i": i})
    store.build(nlist=5)
    with store:
        yield store


def test_delete_hides_at_once_and_compact_removes(store):
    query = keys_of(3, 50)[7]
    assert store.search(query, 1).values.tolist() == [3]
    reader = Datastore.open(store.path)
    assert store.delete("doc 3") == 50
    for options in ({}, {"exact": True}, {"rerank": "keys"}):
        assert 3 not in store.search(query, 450, **options).values
    assert len(store) == 450
    assert store.next_id == 500
    assert [d.name for d in store.documents()][2:4] == ["doc 2", "doc 4"]
    assert store.search(query, 1000, exact=True).found.sum() == 450
    assert reader.search(query, 1).values.tolist() == [3]  # its generation stays until it refreshes
    reader.refresh()
    assert len(reader) == 450
    before = store.search(keys_of(4, 5), 20)
    info = store.info()
    assert (info["deleted_documents"], info["deleted_entries"], info["n"]) == (1, 50, 450)
    store.compact()
    assert store.info()["deleted_documents"] == 0
    after = store.search(keys_of(4, 5), 20)
    np.testing.assert_array_equal(before.ids, after.ids)
    np.testing.assert_array_equal(before.distances, after.distances)
    assert store.verify() == []
    np.testing.assert_array_equal(store.values(140, 210), [2] * 10 + [2**32 - 1] * 50 + [4] * 10)
    with pytest.raises(ValueError, match="deleted"):
        store.keys(140, 160)
    assert store.get([149, 150, 200]).documents.tolist() == [2, -1, 3]


def test_delete_takes_indices_and_lists(store):
    assert store.delete([0, "doc 9"]) == 100
    assert store.delete(np.int64(0)) == 50  # doc 1 is the first now
    assert store.documents()[0].name == "doc 2"
    for wrong in ("doc 0", 7, -1, ["doc 2", "nowhere"], 1.5):
        with pytest.raises((ValueError, TypeError)):
            store.delete(wrong)
    assert len(store.documents()) == 7


def test_replace_gives_new_entries_new_ids(store):
    ids = store.replace(keys_of(99, 20), np.full(20, 77), "doc 5", {"new": True})
    assert ids == range(500, 520)
    found = store.documents()[store.find_document("doc 5")]
    assert (found.start, found.stop, found.metadata) == (500, 520, {"new": True})
    assert store.search(keys_of(99, 20)[3], 1).values.tolist() == [77]
    assert 5 not in store.search(keys_of(5, 50), 500).values
    with pytest.raises(ValueError, match="none of that name"):
        store.replace(keys_of(0, 1), [1], "nowhere")


def contents(store):
    return [(d.name, d.metadata, store.values(d.start, d.stop).tolist()) for d in store.documents()]


@pytest.mark.parametrize("document", ["doc 0", "doc 9"])
def test_replace_is_one_generation(store, document):
    reader, generation = Datastore.open(store.path), store.generation
    before = contents(reader)
    store.replace(keys_of(99, 20), np.full(20, 77), document, {"new": True})
    assert store.generation == generation + 1
    assert contents(reader) == before
    reader.refresh()
    assert contents(reader) == contents(store)
    assert contents(store)[-1] == (document, {"new": True}, [77] * 20)
    assert len(store) == 470
    assert store.verify() == []


@pytest.mark.parametrize("document", ["doc 4", "doc 9"])
@pytest.mark.parametrize(
    ("keys", "values", "metadata"),
    [
        (np.full((3, D), np.nan, np.float32), [1, 2, 3], None),
        (keys_of(1, 3), [1, 2], None),
        (keys_of(1, 3), [1, 2, 2**32 - 1], None),
        (np.zeros((3, D + 1), np.float32), [1, 2, 3], None),
        (keys_of(1, 3), [1, 2, 3], {"not": {"JSON"}}),
    ],
)
def test_a_replacement_that_is_wrong_leaves_the_old_document(store, document, keys, values, metadata):
    before, generation = contents(store), store.generation
    with pytest.raises((ValueError, TypeError)):
        store.replace(keys, values, document, metadata)
    assert contents(store) == before
    assert (store.generation, Datastore.open(store.path).generation) == (generation, generation)
    store.add(keys_of(5, 2), [5, 5], "doc 10")  # the lock is free and nothing waits
    store.commit()
    assert contents(store)[:-1] == before


def test_supersede_waits_for_the_commit(store):
    reader, before = Datastore.open(store.path), contents(store)
    assert store.supersede(["doc 1", 2]) == 100
    store.add(keys_of(50, 30), np.full(30, 11), "doc 1")
    reader.refresh()
    assert contents(reader) == before
    store.discard()
    assert contents(store) == before
    with pytest.raises(ValueError, match="nowhere"):
        store.supersede(["doc 1", "nowhere"])
    assert contents(store) == before
    store.supersede("doc 1")
    store.add(keys_of(50, 30), np.full(30, 11), "doc 1")
    store.commit()
    assert contents(store) == [*before[:1], *before[2:], ("doc 1", None, [11] * 30)]
    store.supersede(0)
    assert len(store.documents()) == 9  # without an addition it is a deletion


def test_union_counts_ids_not_entries(store, tmp_path):
    store.delete("doc 9")
    store.compact()
    with Datastore.create(tmp_path / "other", dim=D, keep_keys="float32") as other:
        other.add(keys_of(50, 10), np.full(10, 50))
        union = StoreUnion([store, other])
        assert (len(union), union.next_id) == (460, 510)
        assert union.search(keys_of(50, 10)[4], 1).ids.tolist() == [504]
        assert union.search(keys_of(50, 10)[4][None], 1, exclude=[[504, 505]]).ids[0, 0] != 504
        found = union.reconstruct([[504, 3], [500, 509]])
        more = keys_of(50, 10)
        expected = np.stack([more[4], store.reconstruct([3])[0], more[0], more[9]]).reshape(2, 2, D)
        np.testing.assert_array_equal(found, expected.astype(np.float32))
        for wrong in (-1, 510):
            with pytest.raises(ValueError, match=r"ids in 0\.\.510"):
                union.reconstruct([0, wrong])


def test_union_grows_with_its_stores(store, tmp_path):
    with Datastore.create(tmp_path / "other", dim=D, keep_keys="float32") as other:
        other.add(keys_of(50, 10), np.full(10, 50))
        union = StoreUnion([store, other])
        query = keys_of(50, 10)[4][None]
        before = union.next_id
        assert union.search(query, 1).ids.tolist() == [[before - 6]]
        with Datastore.open(store.path) as writer:
            writer.add(keys_of(60, 20), np.full(20, 60), "more")
        assert union.search(query, 1).ids.tolist() == [[before - 6]]  # not seen yet
        store.refresh()
        assert union.next_id == before + 20
        assert union.search(query, 1).ids.tolist() == [[before + 14]]
        assert union.search(keys_of(60, 20)[-1][None], 1).ids.tolist() == [[before + 9]]
        excluded = union.search(query, union.next_id, exclude=[[before + 10, before + 20]])
        assert set(excluded.ids[excluded.found].tolist()).isdisjoint(range(before + 10, before + 20))
        assert excluded.found.sum() == len(union) - 10
