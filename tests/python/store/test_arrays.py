"""Arrays as callers have them: unaligned ones are copied, what NumPy or the core cannot hold is refused in words."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_corpus import run, run_json

from knnlm import Datastore
from knnlm.probability.continuous_cache import ContinuousCache
from knnlm.store.arrays import to_numpy
from knnlm.store.union import StoreUnion
from knnlm.system import memory

KEYS = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)


def unaligned(array: Any) -> Any:
    """The same numbers, one byte after where they may lie."""
    array = np.asarray(array)
    room = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    room[...] = array
    assert not room.flags.aligned
    return room


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Datastore.create(tmp_path / "store", dim=16, keep_keys="float32") as store:
        store.add(KEYS, np.arange(300), "one")
        yield store


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("width", ["uint32", "uint64"])
def test_unaligned_arrays_are_copied(tmp_path: Path, kind: str, width: Any) -> None:
    keys, values = KEYS.astype(kind), np.arange(300, dtype=width) * 3
    with Datastore.create(tmp_path / "store", dim=16, keep_keys="float32", value_dtype=width) as store:
        store.add(unaligned(keys), unaligned(values))
        np.testing.assert_array_equal(store.keys(0, 300), keys.astype(np.float32))
        np.testing.assert_array_equal(store.values(0, 300), values)
        own = np.stack([np.arange(300), np.arange(300) + 1], -1)
        found = store.search(unaligned(keys), 3, exclude=unaligned(own))
        expected = store.search(keys.astype(np.float32), 3, exclude=own)
        np.testing.assert_array_equal(found.ids, expected.ids)
        assert found.ids[0, 0] != 0
        for ids in (np.arange(10), np.arange(10, dtype=np.int32)):
            np.testing.assert_array_equal(store.get(unaligned(ids)).values, values[:10])
            np.testing.assert_array_equal(store.reconstruct(unaligned(ids)), store.keys(0, 10))
    with Datastore.create(tmp_path / "trained", dim=16, keep_keys="float32") as store:
        store.train(unaligned(keys), expected=300)
        store.add(unaligned(keys), unaligned(values.astype(np.int64)))
        assert len(store) == 300


def test_a_file_with_a_header_of_odd_length_is_mapped_and_added(store: Any, tmp_path: Path) -> None:
    (tmp_path / "with_header.bin").write_bytes(b"HDR01" + KEYS.tobytes())
    mapped = np.memmap(tmp_path / "with_header.bin", np.float32, "r", offset=5, shape=(300, 16))
    ids = store.add(mapped, np.arange(300), "two")
    np.testing.assert_array_equal(store.keys(ids.start, ids.stop), KEYS)


def test_tensors_of_every_kind_are_taken_or_refused_in_words(store: Any) -> None:
    x = torch.from_numpy(KEYS[:4])
    complex_ = torch.complex(x, -x)
    for taken in (x, x.requires_grad_(), x.to(torch.bfloat16), x.to(torch.float8_e4m3fn), x.to(torch.float8_e5m2),
                  complex_.conj().imag, torch._neg_view(x)):  # fmt: skip
        expected = taken.detach().float().resolve_neg().numpy()
        np.testing.assert_array_equal(to_numpy(taken).astype(np.float32), expected)
        assert store.search(taken, 2).ids.shape == (4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused = {
            "sparse": x.to_sparse(),
            "sparse_csr": x.detach().to_sparse_csr(),
            "strided one of torch.float32 on meta": torch.empty(4, 16, device="meta"),
            "nested": torch.nested.nested_tensor([x[0], x[1]]),
        }
    for kind, tensor in refused.items():
        with pytest.raises(ValueError, match=f"expected a dense tensor with data, found a {kind}"):
            store.search(tensor, 2)
        with pytest.raises(ValueError, match="expected a dense tensor with data"):
            store.add(tensor, [0] * 4)
    with pytest.raises(ValueError, match="queries must be floats, found dtype complex64"):
        store.search(complex_, 2)
    with pytest.raises(ValueError, match="expected an array, or lists of one length"):
        store.search([[1.0], [1.0, 2.0]], 2)


def test_integers_beyond_63_bits_stay_integers(tmp_path: Path) -> None:
    with Datastore.create(tmp_path / "store", dim=16, value_dtype="uint64") as store:
        store.add(KEYS[:3], [2**63, 1, 2**64 - 2])
        assert store.values(0, 3).tolist() == [2**63, 1, 2**64 - 2]
        for wrong in ([2**64 - 1, 1], [-1, 2**63], [2**70, 0]):
            with pytest.raises(ValueError, match="values must be from 0 to 18446744073709551614, found"):
                store.add(KEYS[:2], wrong)
        with pytest.raises(ValueError, match="values must be integers, found dtype float64"):
            store.add(KEYS[:2], [1.0, 2])


@pytest.mark.parametrize("scale", [1e-20, 1e-30, 1e-42])
def test_keys_whose_squares_vanish_are_refused_unless_others_are_larger(tmp_path: Path, scale: float) -> None:
    with Datastore.create(tmp_path / "store", dim=16, keep_keys="float32") as store:
        with pytest.raises(ValueError, match=r"keys: expected numbers whose squares float32 holds, found none above"):
            store.add(KEYS * np.float32(scale), np.arange(300))
        with pytest.raises(ValueError, match="sample: expected numbers whose squares"):
            store.train(KEYS * np.float32(scale), expected=300)
        with pytest.raises(ValueError, match="found only smaller ones"):
            store.add(KEYS.astype(np.float64) * 1e-60, np.arange(300))
        mixed = KEYS.copy()
        mixed[:10] *= np.float32(scale)
        mixed[10] = 0
        store.add(mixed, np.arange(300))
        store.add(np.zeros((2, 16), np.float32), [0, 1])
        assert store.search(mixed[20:30], 1).ids[:, 0].tolist() == list(range(20, 30))
    with Datastore.create(tmp_path / "ip", dim=16, metric="ip", keep_keys="float32") as store:
        store.add(KEYS * np.float32(1e-30), np.arange(300))
        np.testing.assert_array_equal(store.search(KEYS[:5], 1).ids[:, 0], np.argmax(KEYS[:5] @ KEYS.T, 1))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda s, p: Datastore.create(p, dim=4, keep_keys=True), "keep_keys must be one of 'float16'"),
        (lambda s, p: Datastore.create(p, dim=4, metric=3), "metric must be one of 'l2', 'ip', found 3"),
        (lambda s, p: Datastore.create(p, dim=4, value_dtype=np.uint32), "value_dtype must be one of 'uint32'"),
        (lambda s, p: s.build(code=8), r"code must be 'small', 'flat', \(m, bits\) or None, found 8"),
        (lambda s, p: s.build(code=(8,)), r"found \(8,\)"),
        (lambda s, p: s.build(code=("a", 2)), r"code must be 'small'"),
        (lambda s, p: s.build(threads=0), "threads must be from 1 to 4096, found 0"),
        (lambda s, p: s.search(KEYS, 2, threads=10_000), "threads must be from 1 to 4096, found 10000"),
        (lambda s, p: s.search(KEYS, 2, rerank=3), "rerank must be one of 'none', 'code', 'keys', None, found 3"),
        (lambda s, p: s.search(KEYS, 2, exact="no"), "exact must be True or False, found 'no'"),
        (lambda s, p: s.search(KEYS, 2, recall="x"), "recall must be above 0 and at most 1, found 'x'"),
        (lambda s, p: s.search(KEYS, 2, deny=5), r"deny: expected a list of documents, found 5: write \[5\]"),
        (lambda s, p: s.add(KEYS, np.arange(300), document=5), r"document must be a name \(str\) or None, found 5"),
        (lambda s, p: s.delete(5.0), "documents must be names or indices, one or several, found 5.0"),
        (lambda s, p: s.delete(None), "documents must be names or indices"),
    ],
)  # fmt: skip
def test_arguments_of_another_type_are_refused_in_words(store: Any, tmp_path: Path, call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(store, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert len(store) == 300


def test_masked_numbers_are_no_numbers(store: Any) -> None:
    masked = np.ma.masked_greater(KEYS[:4], 1.0)
    for call in (
        lambda: store.add(masked, np.arange(4)),
        lambda: store.search(masked, 3),
        lambda: store.add(KEYS[:4], np.ma.array(np.arange(4), mask=[0, 1, 0, 0])),
    ):
        with pytest.raises(ValueError, match=r"expected an array, found a masked one of which \d+ numbers are masked"):
            call()
    assert len(store) == 300
    np.testing.assert_array_equal(store.search(np.ma.array(KEYS[:4]), 3).ids, store.search(KEYS[:4], 3).ids)


def test_flags_and_progress_are_asked_what_they_are(store: Any, tmp_path: Path) -> None:
    calls: list[tuple[str, Any]] = [
        ("overwrite", lambda: Datastore.create(store.path, dim=16, overwrite="no")),  # type: ignore[arg-type]
        ("verify", lambda: Datastore.open(store.path, verify="no")),  # type: ignore[arg-type]
        ("resident", lambda: Datastore.open(store.path, resident=0)),  # type: ignore[arg-type]
        ("retrain", lambda: store.build(retrain=1)),
        ("drop_damaged", lambda: store.compact(drop_damaged="no")),
    ]
    for name, call in calls:
        with pytest.raises(ValueError, match=f"{name} must be True or False, found"):
            call()
    for call in (store.build, store.compact, store.verify, store.damaged):
        with pytest.raises(ValueError, match=r"progress must be a function of \(stage, done, total\) or None, found 5"):
            call(progress=5)
    assert not store.is_built
    assert len(Datastore.open(store.path)) == 300


# -- k far above n ----------------------------------------------------------------------------------------------------


@pytest.fixture
def one_gigabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10**9)


@pytest.mark.usefixtures("one_gigabyte")
def test_an_answer_that_memory_cannot_hold_is_refused_and_takes_none(store: Any) -> None:
    cache = ContinuousCache(16, 10)
    cache.add(KEYS[:10], np.arange(10))
    for searched, n in ((store, 300), (StoreUnion([store, store]), 600), (cache, 10)):
        tracemalloc.start()
        with pytest.raises(
            ValueError, match=rf"k = 100,000,000 for 2 queries.* ask for k = {n}, all that the store has"
        ):
            searched.search(KEYS[:2], 10**8)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()
        many = searched.search(KEYS[:2], 10**5)
        few = searched.search(KEYS[:2], n)
        assert many.ids.shape == (2, 10**5)
        np.testing.assert_array_equal(many.ids[:, :n], few.ids)
        np.testing.assert_array_equal(many.distances[:, :n], few.distances)
        assert (many.ids[:, n:] == -1).all()
        assert np.isinf(many.distances[:, n:]).all()
        assert (many.values[:, n:] == np.iinfo(many.values.dtype).max).all()
    with pytest.raises(ValueError, match="ask for a smaller k, or fewer queries at once"):
        store.search(np.zeros((10**6, 16), np.float32), 300)


def test_what_is_free_is_what_the_least_of_machine_and_group_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free = memory.available()
    assert free is None or free > 1 << 20
    monkeypatch.setattr(memory, "_of_machine", lambda: 5000)
    for of_group, least in ((None, 5000), (4000, 4000), (6000, 5000)):
        monkeypatch.setattr(memory, "_of_group", lambda of_group=of_group: of_group)
        assert memory.available() == least


def test_commands_take_no_more_neighbors_than_there_are(built: Path, texts: Path, tmp_path: Path) -> None:
    with Datastore.open(built) as opened:
        n = len(opened)
    text = texts / "test.txt"
    said = f"--k 100,000,000: {built} has {n:,} entries, all of which are taken"
    most = ("--k", 10**8, "--temperature", 3, "--lambda", 0.3)
    all_ = ("--k", n, *most[2:])
    found, expected = run_json("eval", built, text, *most), run_json("eval", built, text, *all_)
    assert found["perplexity"] == expected["perplexity"]
    assert said in run("eval", built, text, *most).stderr
    assert said in run("generate", built, "--prompt", "the store", "--max-new-tokens", 2, *most).stderr
    assert said in run("inspect", built, text, "--tokens", 2, *most).stderr
    assert said in run("export", built, text, "--out", tmp_path / "t.parquet", *most).stderr
