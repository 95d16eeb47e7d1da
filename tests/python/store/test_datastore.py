"""Datastore against NumPy brute force: what goes in comes out, and the nearest are the nearest."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import knnlm
from knnlm import Datastore, Neighbors

METRICS = ("l2", "ip")


def brute_force(keys, values, queries, k, metric, exclude=None):
    """The answer by definition, in float64; ties by id; missing ones filled in."""
    q, n = len(queries), len(keys)
    if metric == "l2":
        cost = ((queries[:, None, :].astype(np.float64) - keys[None].astype(np.float64)) ** 2).sum(-1)  # (q, n)
    else:
        cost = -(queries.astype(np.float64) @ keys.astype(np.float64).T)  # (q, n)
    ids = np.full((q, k), -1, np.int64)
    distances = np.full((q, k), np.inf if metric == "l2" else -np.inf, np.float32)
    out = np.full((q, k), np.iinfo(values.dtype).max, values.dtype)
    for i in range(q):
        allowed = np.ones(n, bool)
        if exclude is not None:
            allowed[exclude[i][0] : exclude[i][1]] = False
        order = np.argsort(cost[i], kind="stable")
        order = order[allowed[order]][:k]
        ids[i, : len(order)] = order
        distances[i, : len(order)] = cost[i, order] if metric == "l2" else -cost[i, order]
        out[i, : len(order)] = values[order]
    return Neighbors(distances, out, ids, metric)


def assert_same(found, expected):
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-5, atol=1e-5)
    assert found.metric == expected.metric
    assert (found.distances.dtype, found.ids.dtype) == (np.float32, np.int64)


def clustered(n, d, seed=0, spread=0.3, clusters=40):
    """Keys around `clusters` centres, as hidden states of a language model lie."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, d))
    return (centres[rng.integers(0, clusters, n)] + spread * rng.standard_normal((n, d))).astype(np.float32)


@pytest.fixture(scope="module", params=METRICS)
def built(request, tmp_path_factory):
    """A store of 3,000 keys in 30 documents, indexed, with raw keys kept."""
    keys = clustered(3000, 32)
    values = np.arange(3000, dtype=np.uint32)[::-1].copy()
    store = Datastore.create(
        tmp_path_factory.mktemp("built") / "store", dim=32, metric=request.param, keep_keys="float32"
    )
    for i in range(30):
        span = slice(100 * i, 100 * i + 100)
        store.add(keys[span], values[span], document=f"doc {i}", metadata={"number": i})
    store.build(seed=1)
    yield store, keys, values
    store.close()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kept", [None, "float16", "float32"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_store_that_is_not_built_answers_as_brute_force_does(metric, kept, data):
    d = data.draw(st.integers(8, 24), "d")
    n = data.draw(st.integers(0, 60), "n")
    q = data.draw(st.integers(0, 5), "q")
    k = data.draw(st.integers(1, 70), "k")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    keys = rng.integers(-4, 5, (n, d)).astype(np.float32)  # small integers: sums are exact and ties occur
    values = rng.integers(0, 2**32 - 1, n, dtype=np.uint32)
    queries = rng.integers(-4, 5, (q, d)).astype(np.float32)
    exclude = np.sort(rng.integers(0, n + 1, (q, 2)), axis=1)
    borders = sorted(data.draw(st.lists(st.integers(0, n), max_size=4), "borders"))
    with (
        tempfile.TemporaryDirectory() as folder,
        Datastore.create(f"{folder}/s", dim=d, metric=metric, keep_keys=kept) as store,
    ):
        for i, (start, stop) in enumerate(zip([0, *borders], [*borders, n], strict=True)):
            store.add(keys[start:stop], values[start:stop], document=str(i))
        assert_same(store.search(queries, k), brute_force(keys, values, queries, k, metric))
        found = store.search(queries, k, exclude=exclude)
        assert_same(found, brute_force(keys, values, queries, k, metric, exclude))
        np.testing.assert_array_equal(store.values(0, n), values)


def test_exact_search_of_a_built_store_is_brute_force(built):
    store, keys, values = built
    queries = clustered(50, 32, seed=5)
    exclude = np.stack([np.arange(50) * 10, np.arange(50) * 10 + 500], axis=1)
    for ranges in (None, exclude):
        found = store.search(queries, 20, exact=True, exclude=ranges)
        expected = brute_force(keys, values, queries, 20, store.metric, ranges)
        np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-4, atol=1e-3)
        assert (found.ids == expected.ids).mean() > 0.99  # float32 sums may swap near ties
        np.testing.assert_array_equal(found.values, values[found.ids])


def test_approximate_search_finds_most_of_the_exact_neighbors(built):
    store, keys, values = built
    queries = clustered(50, 32, seed=5)
    truth = brute_force(keys, values, queries, 20, store.metric).ids
    for rerank, least in (("none", 0.6), ("keys", 0.8)):
        found = store.search(queries, 20, nprobe=10_000, rerank=rerank)
        recall = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(found.ids, truth, strict=True)])
        assert recall > least, rerank
        np.testing.assert_array_equal(found.values, values[found.ids])
        ordered = np.diff(found.distances, axis=1)
        assert (ordered >= 0).all() if store.metric == "l2" else (ordered <= 0).all()


def test_reranked_distances_are_those_of_the_raw_keys(built):
    store, keys, _ = built
    queries = clustered(5, 32, seed=6)
    found = store.search(queries, 7, rerank="keys")
    near = keys[found.ids]  # (q, k, d)
    expected = (
        ((near - queries[:, None]) ** 2).sum(-1) if store.metric == "l2" else np.einsum("qd,qkd->qk", queries, near)
    )
    np.testing.assert_allclose(found.distances, expected, rtol=1e-4, atol=1e-3)


def test_answer_does_not_depend_on_threads_or_batch(built):
    store, _, _ = built
    queries = clustered(33, 32, seed=7)
    whole = store.search(queries, 15, threads=1)
    for threads in (2, 3, None):
        other = store.search(queries, 15, threads=threads)
        np.testing.assert_array_equal(other.ids, whole.ids)
        np.testing.assert_array_equal(other.distances, whole.distances)
    for i in (0, 16, 32):
        one = store.search(queries[i], 15)
        np.testing.assert_array_equal(one.ids, whole.ids[i])
        np.testing.assert_array_equal(one.distances, whole.distances[i])


def test_exclude_leaves_k_others(built):
    store, keys, _ = built
    ids = np.arange(0, 3000, 100)
    documents = np.stack([ids // 100 * 100, ids // 100 * 100 + 100], axis=1)
    found = store.search(keys[ids], 10, exclude=documents)
    assert (found.ids >= 0).all()
    assert (found.ids // 100 != (ids // 100)[:, None]).all()


def test_queries_take_any_leading_shape(built):
    store, keys, _ = built
    flat = store.search(keys[:6], 4)
    block = store.search(keys[:6].reshape(2, 3, 32), 4, exclude=np.zeros((2, 3, 2), int))
    assert block.ids.shape == block.values.shape == block.distances.shape == (2, 3, 4)
    np.testing.assert_array_equal(block.ids.reshape(6, 4), flat.ids)
    assert store.search(keys[0], 4).ids.shape == (4,)
    assert store.search(np.empty((0, 32), np.float32), 4).ids.shape == (0, 4)
    assert store.search([], 4).ids.shape == (0, 4)


def test_k_far_beyond_n_costs_no_more_than_the_answer(tmp_path):
    with Datastore.create(tmp_path / "s", dim=64) as store:
        store.add(np.eye(64), np.arange(64))
        found = store.search(np.ones((2, 64)), 10**6)
        assert found.ids.shape == (2, 10**6)
        assert ((found.ids >= 0).sum(1) == 64).all()
        with pytest.raises((MemoryError, ValueError)):
            store.search(np.ones((2**13, 64)), 2**32)  # half a petabyte


def test_documents_and_places(built):
    store, _, values = built
    documents = store.documents()
    assert len(documents) == 30
    assert [d.name for d in documents] == [f"doc {i}" for i in range(30)]
    assert [(d.start, d.stop, len(d)) for d in documents[3:5]] == [(300, 400, 100), (400, 500, 100)]
    assert documents[-1].metadata == {"number": 29}
    with pytest.raises(IndexError, match="30 documents"):
        documents[30]
    ids = np.array([[0, 99], [100, 2999]])
    entries = store.get(ids)
    np.testing.assert_array_equal(entries.values, values[ids])
    np.testing.assert_array_equal(entries.documents, [[0, 0], [1, 29]])
    np.testing.assert_array_equal(entries.positions, [[0, 99], [0, 99]])
    np.testing.assert_array_equal(entries.names, [["doc 0", "doc 0"], ["doc 1", "doc 29"]])
    np.testing.assert_array_equal(store.document_of([-1, 250]), [-1, 2])


def test_missing_ids_stay_missing(built):
    store, _, values = built
    entries = store.get([-1, 5])
    np.testing.assert_array_equal(entries.values, [2**32 - 1, values[5]])
    assert (entries.documents[0], entries.positions[0], entries.names[0]) == (-1, -1, None)


def test_empty_store_answers_all_missing(tmp_path):
    with Datastore.create(tmp_path / "s", dim=8, metric="ip") as store:
        found = store.search(np.ones((2, 8)), 3)
        assert (found.ids == -1).all()
        assert (found.values == 2**32 - 1).all()
        assert (found.distances == -np.inf).all()
        assert len(store) == 0
        assert not store.is_built
        assert len(store.documents()) == 0
        assert store.get([]).values.shape == (0,)


@pytest.mark.parametrize("n", [1, 2, 17, 100])
def test_tiny_stores_build(tmp_path, n):
    keys = clustered(n, 16)
    with Datastore.create(tmp_path / "s", dim=16, keep_keys="float32") as store:
        store.add(keys, np.arange(n))
        store.build(seed=0)
        assert store.is_built
        found = store.search(keys, n + 5, nprobe=1000, rerank="keys")
        np.testing.assert_array_equal(found.ids[:, 0], np.arange(n))
        assert (found.ids[:, n:] == -1).all()
        assert sorted(found.ids[0, :n]) == list(range(n))


def test_entries_added_after_a_build_are_found(tmp_path):
    keys = clustered(1200, 16)
    with Datastore.create(tmp_path / "s", dim=16, keep_keys="float32") as store:
        store.add(keys[:1000], np.arange(1000), document="old")
        store.build(seed=0)
        assert store.add(keys[1000:], np.arange(1000, 1200), document="new") == range(1000, 1200)
        assert len(store) == 1200
        found = store.search(keys[1000:], 1)
        np.testing.assert_array_equal(found.ids[:, 0], np.arange(1000, 1200))
        np.testing.assert_allclose(found.distances, 0, atol=1e-4)
        store.build(seed=0)
        assert store.search(keys[1000:], 5, rerank="keys").ids[:, 0].tolist() == list(range(1000, 1200))
        assert [(d.name, d.start, d.stop) for d in store.documents()] == [("old", 0, 1000), ("new", 1000, 1200)]


def test_raw_keys_come_back_in_the_precision_that_was_asked_for(tmp_path):
    keys = clustered(50, 8)
    for kept, expected in (("float32", keys), ("float16", keys.astype(np.float16))):
        with Datastore.create(tmp_path / kept, dim=8, keep_keys=kept) as store:
            store.add(keys, np.arange(50))
            store.build()
            np.testing.assert_array_equal(store.keys(10, 20), expected[10:20].astype(np.float32))
            assert store.keys(10, 20).dtype == np.float32
            np.testing.assert_array_equal(store.reconstruct([[3], [49]]), expected[[[3], [49]]].astype(np.float32))


def test_codes_decode_to_something_near(tmp_path):
    keys = clustered(2000, 16)
    with Datastore.create(tmp_path / "s", dim=16) as store:
        store.add(keys, np.arange(2000))
        store.build(seed=0, code=(16, 8))
        decoded = store.reconstruct(np.arange(2000))
    error = ((decoded - keys) ** 2).sum() / ((keys - keys.mean(0)) ** 2).sum()
    assert error < 0.1


def test_a_document_grows_while_its_name_is_repeated(tmp_path):
    with Datastore.create(tmp_path / "s", dim=8) as store:
        one = np.ones((2, 8))
        store.add(one, [1, 2], document="a", metadata={"n": 1})
        store.add(one, [3, 4], document="a")
        store.add(one, [5, 6], document="b")
        store.add(one, [7, 8])
        found = [(d.name, d.start, d.stop, d.metadata) for d in store.documents()]
    assert found[:2] == [("a", 0, 4, {"n": 1}), ("b", 4, 6, None)]
    assert found[2][1:] == (6, 8, None)


def test_u64_values_and_attributes(tmp_path):
    path = tmp_path / "s"
    big = np.array([0, 2**40, 2**64 - 2], np.uint64)
    with Datastore.create(path, dim=8, value_dtype="uint64", attributes={"model": "x", "λ": 0.25}) as store:
        store.add(np.eye(3, 8), big)
        assert store.attributes == {"model": "x", "λ": 0.25}
        before = store.generation
        store.set_attributes({"T": 10.0})
        assert store.generation > before
        found = store.search(np.eye(3, 8), 4)
        assert found.values.dtype == np.uint64
        np.testing.assert_array_equal(found.values[:, 0], big)
        assert (found.values[:, 3] == 2**64 - 1).all()
    with Datastore.open(path) as store:
        assert store.attributes == {"T": 10.0}
        np.testing.assert_array_equal(store.values(0, 3), big)


def test_reopened_store_is_the_same(tmp_path, built):
    store, _, _ = built
    queries = clustered(9, 32, seed=9)
    with Datastore.open(store.path, verify=True) as other:
        assert (len(other), other.dim, other.metric, other.generation) == (
            len(store),
            store.dim,
            store.metric,
            store.generation,
        )
        np.testing.assert_array_equal(other.search(queries, 12).ids, store.search(queries, 12).ids)
        assert other.verify() == []


def test_info_names_what_the_interface_promises(built):
    store, _, _ = built
    info = store.info()
    assert (info["n"], info["dim"], info["metric"], info["generation"]) == (3000, 32, store.metric, store.generation)
    assert info["documents"] == 30
    assert info["nlist"] >= 1
    assert info["default_temperature"] > 0
    assert json.loads(json.dumps(info)) == info


def test_same_seed_same_bytes_for_any_number_of_threads(tmp_path):
    keys = clustered(4000, 16)
    folders = []
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        with Datastore.create(folder, dim=16) as store:
            store.add(keys, np.arange(4000), document="d")
            store.build(seed=3, threads=threads)
        folders.append({p.name: p.read_bytes() for p in sorted(folder.iterdir())})
    assert folders[0] == folders[1]


def test_progress_is_told_in_order(tmp_path):
    told = []
    with Datastore.create(tmp_path / "s", dim=16) as store:
        store.add(clustered(3000, 16), np.arange(3000))
        store.build(progress=lambda stage, done, total: told.append((stage, done, total)))
    assert told
    assert all(isinstance(s, str) and done >= 0 and (total == 0 or done <= total) for s, done, total in told)


def test_open_reads_nothing_that_grows(tmp_path):
    """Structure, not time: bytes that the process reads or maps privately on open do not depend on n."""
    paths = {}
    for n in (100, 20_000):
        paths[n] = tmp_path / str(n)
        with Datastore.create(paths[n], dim=16, keep_keys="float16") as store:
            store.add(clustered(n, 16), np.arange(n))
            store.build(seed=0, nlist=8)
    manifests = {n: max(p.stat().st_size for p in path.glob("manifest-*.json")) for n, path in paths.items()}
    assert abs(manifests[100] - manifests[20_000]) < 5_000  # measured settings for more neighbors
    # A damaged byte in the middle of a data file is not seen by open: it does not read it.
    data = max(paths[20_000].glob("data-*.seg"), key=lambda p: p.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)
    with Datastore.open(paths[20_000]) as store:
        assert len(store) == 20_000
        assert store.verify() != []


@pytest.mark.parametrize("order", ["C", "F", "strided", "swapped"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "list"])
def test_keys_of_every_dtype_and_layout(tmp_path, dtype, order):
    exact = np.random.default_rng(0).integers(-9, 10, (12, 8))
    if dtype == "list":
        if order != "C":
            pytest.skip("a list has no memory layout")
        keys = exact.tolist()
    elif order == "F":
        keys = np.asfortranarray(exact.astype(dtype))
    elif order == "strided":
        keys = np.repeat(np.repeat(exact.astype(dtype), 2, axis=0), 2, axis=1)[::2, ::2]
    elif order == "swapped":
        keys = exact.astype(np.dtype(dtype).newbyteorder())
    else:
        keys = exact.astype(dtype)
    with Datastore.create(tmp_path / "s", dim=8, keep_keys="float32") as store:
        store.add(keys, list(range(12)))
        np.testing.assert_array_equal(store.keys(0, 12), exact)
        np.testing.assert_array_equal(store.search(keys, 1, exact=True).distances, 0)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_values_of_every_integer_dtype(tmp_path, dtype):
    with Datastore.create(tmp_path / "s", dim=8) as store:
        values = np.arange(5).astype(dtype)
        if dtype == "bool":
            with pytest.raises(ValueError, match="values must be integers, found dtype bool"):
                store.add(np.ones((5, 8)), values)
            return
        store.add(np.ones((5, 8)), np.stack([values, values], axis=1)[:, 1])
        np.testing.assert_array_equal(store.values(0, 5), np.arange(5))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_tensors(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    keys = torch.arange(96).reshape(8, 12).to(getattr(torch, dtype)).T.requires_grad_()  # (12, 8), not contiguous
    with Datastore.create(tmp_path / "s", dim=8, keep_keys="float32") as store:
        store.add(keys, torch.arange(12, dtype=torch.int32), document="t")
        np.testing.assert_array_equal(store.keys(0, 12), keys.detach().float().numpy())
        found = store.search(keys, 1, exclude=torch.stack([torch.zeros(12), torch.zeros(12)], 1).long())
        np.testing.assert_array_equal(found.ids[:, 0], np.arange(12))
        np.testing.assert_array_equal(store.get(torch.tensor([3])).values, [3])


def test_repr_says_what_it_is(tmp_path):
    store = Datastore.create(tmp_path / "s", dim=8)
    store.add(np.ones((3, 8)), [0, 1, 2])
    store.commit()
    assert repr(store) == f"<Datastore {str(tmp_path / 's')!r}: 3 entries, dim 8, l2, not built>"
    store.close()
    assert repr(store) == f"<Datastore {str(tmp_path / 's')!r}, closed>"
    assert Path(store.path) == tmp_path / "s"


def test_a_store_is_searchable_for_the_type_checker_and_at_run_time(built):
    store: knnlm.Searchable = built[0]
    assert isinstance(store.search(np.zeros((1, 32)), 1), Neighbors)


def test_find_document_by_name(built):
    assert built[0].find_document("doc 7") == 7
    assert built[0].find_document("doc 99") is None


def test_a_reader_keeps_its_generation_until_it_refreshes(tmp_path):
    rng = np.random.default_rng(0)
    with Datastore.create(tmp_path / "store", dim=4) as writer:
        writer.add(rng.standard_normal((10, 4)), np.arange(10), document="a")
        writer.commit()
        with Datastore.open(tmp_path / "store") as reader:
            seen = reader.generation
            writer.add(rng.standard_normal((5, 4)), np.arange(5), document="b")
            writer.build(seed=0)  # drops the raw keys that the reader has mapped
            assert (len(reader), reader.generation) == (10, seen)
            assert reader.search(np.zeros(4), k=20).ids.max() == 9
            reader.refresh()
            assert len(reader) == 15
            assert reader.generation == writer.generation > seen
            assert reader.search(np.zeros(4), k=20).ids.max() == 14


def test_bytes_are_no_documents(tmp_path):
    """Bytes are numbers to Python: of documents 97 and 98, say."""
    with Datastore.create(tmp_path / "store", dim=4) as store:
        for number in range(100):
            store.add(np.ones((1, 4)), [number], document=f"doc {number}")
        store.commit()
        for change in (store.delete, store.supersede):
            for documents in (b"ab", bytearray(b"ab"), memoryview(b"ab")):
                with pytest.raises(ValueError, match="documents must be names or indices"):
                    change(documents)
        assert len(store.documents()) == 100
