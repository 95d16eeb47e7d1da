"""Stores of other programs come in, neighbors and stores go out, with the numbers that they had."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from method import retrieve
from safetensors import safe_open
from tiny_lm import Doc, texts, tiny

from knnlm import Datastore
from knnlm.build.dump import dump
from knnlm.exchange.arrow import write_arrow
from knnlm.exchange.import_vectors import import_faiss, import_memmaps
from knnlm.lm.distill import targets, write_parquet, write_safetensors
from knnlm.lm.retriever import Retriever
from knnlm.lm.settings import Settings
from knnlm.model.identity import describe
from knnlm.model.key_spec import IdentityError, KeySpec
from knnlm.model.keys import iterate
from knnlm.probability.knn import log_p_knn
from knnlm.reference import BruteForceStore

D = 16


def raw(tmp_path, n=500, dtype=np.float16, value=np.int32, zeros=0, name="dstore_gpt2_{n}_16_{what}.npy"):
    """Keys and values as the original programs write them: no header."""
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((n, D)).astype(dtype)
    keys[n - zeros :] = 0
    values = rng.integers(0, 30000, n).astype(value)
    paths = [tmp_path / name.format(n=n, what=what) for what in ("keys", "vals")]
    keys.tofile(paths[0])
    values.tofile(paths[1])
    return keys, values, *paths


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.int16, np.int32, np.int64])
def test_memory_maps_keep_keys_values_and_order(tmp_path, dtype, value):
    keys, values, a, b = raw(tmp_path, dtype=dtype, value=value, zeros=13)
    found = import_memmaps(tmp_path / "store", a, b)
    assert (found.entries, found.dim, found.dropped) == (487, D, 13)
    with Datastore.open(tmp_path / "store") as store:
        np.testing.assert_array_equal(store.keys(0, 487), keys[:487].astype(np.float32))
        np.testing.assert_array_equal(store.values(0, 487), values[:487])
        assert store.search(keys[7].astype(np.float32), 1).ids.tolist() == [7]


def test_a_shape_that_is_not_clear_is_asked_for(tmp_path):
    keys, _, a, b = raw(tmp_path, name="{what}.bin")
    with pytest.raises(ValueError, match="give dim"):
        import_memmaps(tmp_path / "store", a, b)
    with pytest.raises(ValueError, match="or 250 rows of float32"):  # 500 × f16 with i32 is 250 × f32 with i64
        import_memmaps(tmp_path / "store", a, b, dim=D)
    with pytest.raises(ValueError, match="no shape"):
        import_memmaps(tmp_path / "store", a, b, dim=D + 1, key_dtype="float16")
    assert import_memmaps(tmp_path / "store", a, b, dim=D, key_dtype="float16").entries == len(keys)


def test_values_that_had_wrapped_are_refused(tmp_path):
    _, values, a, b = raw(tmp_path, value=np.int16)
    values[44] = -100
    values.tofile(b)
    with pytest.raises(ValueError, match="value 44"):
        import_memmaps(tmp_path / "store", a, b)


def test_values_that_need_64_bits_stay_whole(tmp_path):
    _, values, a, b = raw(tmp_path, value=np.int64)
    values[:10] = np.arange(2**32, 2**32 + 10)
    values[10] = 2**32 - 1
    values.tofile(b)
    import_memmaps(tmp_path / "store", a, b)
    with Datastore.open(tmp_path / "store") as store:
        assert store.info()["value_dtype"] == "uint64"
        np.testing.assert_array_equal(store.values(0, 500), values)
    paths = [tmp_path / "keys.npy", tmp_path / "values.npy"]
    np.save(paths[0], np.ones((3, D), np.float16))
    np.save(paths[1], np.array([0.5, 1.0, 2.0]))
    with pytest.raises(ValueError, match="expected integers, found float64"):
        import_memmaps(tmp_path / "other", *paths)


def test_npy_files_say_their_shape(tmp_path):
    keys, values, *_ = raw(tmp_path)
    np.save(tmp_path / "k.npy", keys)
    np.save(tmp_path / "v.npy", values[:, None])
    assert import_memmaps(tmp_path / "store", tmp_path / "k.npy", tmp_path / "v.npy").entries == 500


def test_header_and_raw_file_go_together(tmp_path):
    keys, values, a, b = raw(tmp_path, name="{what}.bin")
    np.save(tmp_path / "k.npy", keys)
    np.save(tmp_path / "v.npy", values)
    pairs = [(tmp_path / "k.npy", b, {}), (a, tmp_path / "v.npy", {"dim": D})]
    for number, (one, other, given) in enumerate(pairs):
        assert import_memmaps(tmp_path / str(number), one, other, **given).entries == 500
        with Datastore.open(tmp_path / str(number)) as store:
            np.testing.assert_array_equal(store.keys(0, 500), keys.astype(np.float32))
            np.testing.assert_array_equal(store.values(0, 500), values)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"dim": 8}, r"k\.npy: expected keys of shape \(n, 8\), as was given, found \(500, 16\) in its header"),
        ({"key_dtype": "float32"}, r"k\.npy: expected float32, as was given, found float16 in its header"),
        ({"value_dtype": "int64"}, r"v\.npy: expected int64, as was given, found int32 in its header"),
    ],
)
def test_what_is_given_and_differs_from_the_header_is_refused(tmp_path, given, text):
    keys, values, *_ = raw(tmp_path)
    np.save(tmp_path / "k.npy", keys)
    np.save(tmp_path / "v.npy", values)
    with pytest.raises(ValueError, match=text):
        import_memmaps(tmp_path / "store", tmp_path / "k.npy", tmp_path / "v.npy", **given)
    assert not (tmp_path / "store").exists()


def test_files_that_are_no_arrays_are_refused_by_name(tmp_path):
    keys, values, *_ = raw(tmp_path)
    np.save(tmp_path / "k.npy", keys)
    np.save(tmp_path / "v.npy", values)
    cut = tmp_path / "cut.npy"
    cut.write_bytes((tmp_path / "k.npy").read_bytes()[:1000])
    np.save(tmp_path / "objects.npy", np.array([1, "a"], object), allow_pickle=True)
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    np.savez(tmp_path / "zipped.npz", keys)
    (tmp_path / "empty.npy").touch()
    for name, text in [
        ("cut", "whole .npy file of numbers"),
        ("objects", "whole .npy file of numbers"),
        ("text", "expected numbers, found dtype <U1"),
        ("empty", "found an empty file"),
        ("zipped", "found a zip archive"),
    ]:
        path = next(tmp_path.glob(f"{name}.*"))
        with pytest.raises(ValueError, match=text) as caught:
            import_memmaps(tmp_path / "store", path, tmp_path / "v.npy")
        assert str(path) in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.skipif(os.name == "nt", reason="no such files there")
def test_pipes_and_devices_are_no_files(tmp_path):
    _, _, a, b = raw(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        for given in ((tmp_path / name, b), (a, tmp_path / name)):
            with pytest.raises(ValueError, match=f"{name}: expected a file, found a pipe or a device"):
                import_memmaps(tmp_path / "store", *given)
        with pytest.raises(ValueError, match=f"{name}: expected a file, found a pipe or a device"):
            import_faiss(tmp_path / "store", tmp_path / name, b)
    with pytest.raises(IsADirectoryError):
        import_memmaps(tmp_path / "store", tmp_path, b)


@pytest.mark.parametrize("name", ["dstore_x_100_0_keys.npy", "dstore_x_0_16_keys.npy"])
def test_a_name_that_says_nothing_is_refused(tmp_path, name):
    for file in (name, name.replace("keys", "vals")):
        np.zeros(100, np.float32).tofile(tmp_path / file)
    with pytest.raises(ValueError, match=r"1 or more entries of a dimension of 1 or more.* rename it, and give dim"):
        import_memmaps(tmp_path / "store", tmp_path / name, tmp_path / name.replace("keys", "vals"))


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_labels_that_are_to_be_ignored_are_explained_and_left_out_if_asked(tmp_path, kind):
    keys, values, a, b = raw(tmp_path, value=kind)
    values[[44, 300]] = -100
    values.tofile(b)
    with pytest.raises(
        ValueError, match=r"value 44: .*found -100, and 1 more below 0; -100 is PyTorch's mark .*ignore=-100"
    ):
        import_memmaps(tmp_path / "store", a, b)
    found = import_memmaps(tmp_path / "store", a, b, ignore=-100)
    assert (found.entries, found.ignored) == (498, 2)
    kept = np.delete(np.arange(500), [44, 300])
    with Datastore.open(tmp_path / "store") as store:
        np.testing.assert_array_equal(store.keys(0, 498), keys[kept].astype(np.float32))
        np.testing.assert_array_equal(store.values(0, 498), values[kept])
    values[7] = -5
    values.tofile(b)
    with pytest.raises(ValueError, match="value 7: expected 0 or more, found -5: tokens are never negative"):
        import_memmaps(tmp_path / "other", a, b, ignore=-100)


def test_a_file_read_as_another_type_is_refused_by_row_and_type(tmp_path):
    _, _, a, b = raw(tmp_path, n=400, dtype=np.float32, name="{what}.bin")
    with pytest.raises(
        ValueError, match=r"row \d+: expected finite numbers, found \S+; it was read as float16 of dimension 32"
    ):
        import_memmaps(tmp_path / "store", a, b, dim=2 * D, key_dtype="float16")
    assert not (tmp_path / "store").exists()
    keys = np.ones((70_000, 4), np.float32)
    keys[66_000, 1] = np.nan
    np.save(tmp_path / "k.npy", keys)
    np.save(tmp_path / "v.npy", np.arange(70_000))
    with pytest.raises(ValueError, match="row 66000: expected finite numbers, found nan"):
        import_memmaps(tmp_path / "store", tmp_path / "k.npy", tmp_path / "v.npy")
    assert not (tmp_path / "store").exists()
    (tmp_path / "store").mkdir()
    with pytest.raises(ValueError, match="row 66000"):
        import_memmaps(tmp_path / "store", tmp_path / "k.npy", tmp_path / "v.npy")
    assert list((tmp_path / "store").iterdir()) == []
    np.zeros(400 * D, np.float32).tofile(a)
    with pytest.raises(ValueError, match="found 400 rows of zeros only"):
        import_memmaps(tmp_path / "store", a, b, dim=D, key_dtype="float32")


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    loaded = tiny()
    documents = texts()
    spec = KeySpec(window=24, context=8, key_dtype="float32")
    store = Datastore.create(
        tmp_path_factory.mktemp("lm") / "store", dim=D, keep_keys="float32", attributes=describe(loaded, spec)
    )
    dump(loaded, documents, store, keys=spec)
    yield loaded, documents, store
    store.close()


SETTINGS = Settings(temperature=3.0, k=12, exact=True)


def test_targets_are_what_evaluation_would_use(language_model, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    loaded, documents, store = language_model
    rows = write_parquet(tmp_path / "t.parquet", targets(loaded, documents, Retriever(store, SETTINGS), 3.0))
    assert rows == len(store)
    table = parquet.read_table(tmp_path / "t.parquet").to_pydict()
    at = 0
    for chunk in iterate(loaded, documents, window=24, context=8, key_dtype="float32", scores=False):
        own = store.find_document(chunk.document.name)
        found = store.search(chunk.key, 12, exact=True, deny=[own])
        log_p = log_p_knn(found, chunk.tokens, 3.0)
        for i, token in enumerate(chunk.tokens):
            assert (table["document"][at], table["token"][at]) == (chunk.document.name, token)
            assert table["position"][at] == chunk.start + i
            np.testing.assert_array_equal(table["ids"][at], found.ids[i])
            assert sum(table["probabilities"][at]) == pytest.approx(1, abs=1e-5)
            of = dict(zip(table["tokens"][at], table["probabilities"][at], strict=True))
            assert of.get(token, 0) == pytest.approx(float(np.exp(log_p[i])), abs=1e-6)
            assert table["probability"][at] == pytest.approx(of.get(token, 0), abs=1e-6)
            at += 1
    assert at == rows


def test_targets_are_of_the_arithmetic_of_the_store():
    loaded, spec = tiny(seed=2), KeySpec(autocast="bfloat16")
    store = BruteForceStore(D)
    dump(loaded, texts(), store, keys=spec)
    expected = retrieve(loaded, texts(), store, k=12)
    batches = list(targets(loaded, texts(), Retriever(store, Settings(temperature=3.0, k=12)), 3.0))
    np.testing.assert_array_equal(np.concatenate([b["distances"] for b in batches]), expected.distances)
    with pytest.raises(IdentityError, match="arithmetic"):
        next(
            targets(
                loaded,
                texts(),
                Retriever(store, Settings(temperature=3.0, k=12)),
                3.0,
                keys=KeySpec(autocast="float16"),
            )
        )


def by_position(batches):
    return {(b["document"], int(p)): ids for b in batches for p, ids in zip(b["position"], b["ids"], strict=True)}


def test_a_text_is_left_out_by_its_tokens_not_by_its_name(language_model):
    loaded, documents, store = language_model
    own = documents[4]
    expected = by_position(targets(loaded, [own], Retriever(store, SETTINGS), 3.0))
    elsewhere = by_position(targets(loaded, [Doc(f"folder/{own.name}", own.text)], Retriever(store, SETTINGS), 3.0))
    np.testing.assert_array_equal(list(elsewhere.values()), list(expected.values()))
    of_own = store.documents()[store.find_document(own.name)]
    assert not any(((ids >= of_own.start) & (ids < of_own.stop)).any() for ids in elsewhere.values())
    unrelated = by_position(targets(loaded, [Doc(own.name, own.text[:-9] + "bade.")], Retriever(store, SETTINGS), 3.0))
    assert any(((ids >= of_own.start) & (ids < of_own.stop)).any() for ids in unrelated.values())


def test_safetensors_hold_the_same(language_model, tmp_path):
    loaded, documents, store = language_model
    rows = write_safetensors(
        tmp_path / "t.safetensors", targets(loaded, documents, Retriever(store, SETTINGS, "none"), 3.0, neighbors=False)
    )
    with safe_open(tmp_path / "t.safetensors", "np") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        names = json.loads(file.metadata()["documents"])
    assert len(held["token"]) == rows == len(store)
    assert "ids" not in held
    assert [names[i] for i in np.unique(held["document"])] == [d.name for d in store.documents()]
    np.testing.assert_allclose(np.add.reduceat(held["probabilities"], held["offsets"][:-1]), 1, atol=1e-5)
    np.testing.assert_array_equal(held["token"], store.values(0, len(store)))


def test_a_store_goes_out_as_arrow(language_model, tmp_path):
    pa = pytest.importorskip("pyarrow")
    _, _, store = language_model
    assert write_arrow(tmp_path / "s.arrow", store) == len(store)
    table = pa.ipc.open_file(tmp_path / "s.arrow").read_all()
    assert table["id"].to_pylist() == list(range(len(store)))
    np.testing.assert_array_equal(np.array(table["value"]), store.values(0, len(store)))
    keys = np.array(table["key"].combine_chunks().values).reshape(-1, D)
    np.testing.assert_array_equal(keys, store.keys(0, len(store)))
    assert json.loads(table.schema.metadata[b"knnlm"])["keys"] == "raw"
