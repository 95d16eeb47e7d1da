"""One pass from text to codes: no raw key on disk, and an interrupted build ends with the bytes of a whole one."""

from __future__ import annotations

import numpy as np
import pytest
from one_pass_corpus import DIM, KilledError, build, documents, hashes, hashes_of_all
from tiny_lm import LETTERS, tiny

from knnlm import Datastore, StoreError
from knnlm.build.dump import dump
from knnlm.build.one_pass import build_in_one_pass
from knnlm.build.parts import parts_of, placed, sample_keys
from knnlm.model.key_spec import KeySpec
from knnlm.model.keys import iterate_as
from knnlm.store.recall_sample import Truth
from knnlm.text.inputs import TokenDocument


@pytest.fixture(scope="module")
def loaded():
    return tiny(d=DIM)


@pytest.fixture(scope="module")
def whole(loaded, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "store"
    return path, build(path, loaded)


def test_the_store_holds_every_token_and_no_raw_key(whole):
    path, result = whole
    with Datastore.open(path) as store:
        texts = documents()
        assert (len(store), result.tokens) == (sum(len(d.tokens) for d in texts),) * 2
        assert [d.name for d in store.documents()] == [d.name for d in texts]
        np.testing.assert_array_equal(store.values(0, len(store)), np.concatenate([d.tokens for d in texts]))
        info = store.info()
        assert (info["indexed"], info["entries_with_keys"]) == (len(store), 0)
        assert "Keys" not in info["sections"]
        assert store.verify() == []
        assert store.search(np.zeros(DIM), 5).found.all()


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_build_that_is_killed_goes_on_to_the_same_bytes(whole, loaded, tmp_path, after):
    commits = 0

    def kill(stage, done, total):
        nonlocal commits
        commits += stage == "encode"
        if commits > after:
            raise KilledError

    with pytest.raises(KilledError):
        build(tmp_path / "store", loaded, progress=kill)
    result = build(tmp_path / "store", loaded)
    assert 0 < result.resumed_parts < result.parts
    assert hashes(tmp_path / "store") == hashes(whole[0])


def test_another_text_does_not_go_on(whole, loaded):
    with pytest.raises(ValueError, match="found a finished store of this text with another model or settings: "):
        build(whole[0], loaded, attributes={"a": 2})


@pytest.mark.parametrize("stage", ["sample", "encode"])
def test_another_metric_does_not_go_on(loaded, tmp_path, stage):
    def kill(found, done, total):
        if found == stage:
            raise KilledError

    with pytest.raises(KilledError):
        build(tmp_path / "store", loaded, progress=kill)
    if stage == "encode":
        with pytest.raises(
            ValueError, match=r"found an unfinished build of this text with another model or settings: "
        ):
            build(tmp_path / "store", loaded, metric="ip")
        return
    assert build(tmp_path / "store", loaded, metric="ip").resumed_parts == 0  # nothing that cost much was there
    with Datastore.open(tmp_path / "store") as store:
        assert store.metric == "ip"


def test_a_store_of_raw_keys_is_not_replaced(loaded, tmp_path):
    keys = KeySpec(window=24, key_dtype="float32").resolved(loaded.context)
    with Datastore.create(tmp_path / "store", dim=DIM, keep_keys="float32") as store:
        dump(loaded, documents()[:3], store, keys=keys)
    before = hashes_of_all(tmp_path / "store")
    with pytest.raises(ValueError, match=r"found one of 123 entries that has no index.*remove it"):
        build(tmp_path / "store", loaded)
    assert hashes_of_all(tmp_path / "store") == before


@pytest.mark.parametrize("name", ["notes.txt", "data.seg", "my.tmp", "folder", "parts"])
def test_files_of_no_store_are_not_removed(loaded, tmp_path, name):
    Datastore.create(tmp_path / "store", dim=DIM).close()
    place = tmp_path / "store" / name
    place.mkdir() if name in ("folder", "parts") else place.write_text("mine")
    before = sorted((tmp_path / "store").iterdir())
    with pytest.raises(ValueError, match=rf"an empty one beside {name}; move"):
        build(tmp_path / "store", loaded)
    assert sorted((tmp_path / "store").iterdir()) == before


def renamed(texts):
    texts[30] = TokenDocument("another name", texts[30].tokens, texts[30].metadata)


def swapped(texts):
    texts[3], texts[35] = texts[35], texts[3]


def edited(texts):
    tokens = texts[2].tokens.copy()
    tokens[5] = tokens[5] % (len(LETTERS) - 1) + 1
    texts[2] = TokenDocument(texts[2].name, tokens, texts[2].metadata)


@pytest.mark.parametrize("change", [renamed, swapped, edited])
def test_an_interrupted_build_does_not_go_on_with_a_changed_text(whole, loaded, tmp_path, change):
    changed = documents()
    change(changed)

    def kill(stage, done, total):
        if stage == "encode" and done > 600:
            raise KilledError

    with pytest.raises(KilledError):
        build(tmp_path / "store", loaded, progress=kill)
    before = hashes_of_all(tmp_path / "store")
    with pytest.raises(ValueError, match=r"found an unfinished build of another text: ") as refused:
        build(tmp_path / "store", loaded, lambda: changed)
    says = str(refused.value)
    assert "put back what it was made of and the same command goes on with it" in says
    assert says.endswith(f"or remove the folder {tmp_path / 'store'} to begin anew")
    assert hashes_of_all(tmp_path / "store") == before
    assert build(tmp_path / "store", loaded).resumed_parts > 1
    assert hashes(tmp_path / "store") == hashes(whole[0])


@pytest.mark.parametrize("moment", ["count tokens", "sample", "encode", "merge lists"])
def test_a_second_build_of_the_same_place_is_refused_and_deletes_nothing(whole, loaded, tmp_path, moment):
    refused = []

    def look(stage, done, total):
        if stage != moment or (stage == "count tokens" and not (tmp_path / "store").exists()):
            return
        if stage == "sample" and refused:  # the second one is of the core, which writes on while it reports
            return
        before = hashes_of_all(tmp_path / "store")
        for other in ({}, {"seed": 1}, {"documents": lambda: pytest.fail("the text was read")}):
            with pytest.raises(StoreError, match="another writer"):
                build(tmp_path / "store", loaded, **other)
        with Datastore.open(tmp_path / "store") as store, pytest.raises(StoreError, match="another writer"):
            store.delete("doc 0")
        assert hashes_of_all(tmp_path / "store") == before
        refused.append(stage)

    if moment == "count tokens":  # that of a run that goes on
        Datastore.create(tmp_path / "store", dim=DIM).close()
    build(tmp_path / "store", loaded, progress=look)
    assert refused
    assert hashes(tmp_path / "store") == hashes(whole[0])
    with Datastore.open(tmp_path / "store") as store:
        store.set_attributes({})  # the lock is free


def test_two_builds_that_begin_at_once_make_one_store(whole, loaded, tmp_path):
    begun = False

    def begin(stage, done, total):
        nonlocal begun
        if not begun:  # while the first one counts, another process makes the store
            begun = True
            build(tmp_path / "store", loaded)

    result = build(tmp_path / "store", loaded, progress=begin)
    assert result.parts == result.resumed_parts
    assert hashes(tmp_path / "store") == hashes(whole[0])


def test_a_text_that_loses_a_document_while_it_is_built_is_refused(loaded, tmp_path):
    calls = 0

    def shrinking():
        nonlocal calls
        calls += 1
        return documents()[: 40 if calls < 3 else 39]

    with pytest.raises(ValueError, match="the text changed meanwhile"):
        build(tmp_path / "store", loaded, shrinking)


def test_a_finished_build_does_nothing_when_its_store_has_grown(loaded, tmp_path):
    build(tmp_path / "store", loaded)
    with Datastore.open(tmp_path / "store") as store:
        dump(loaded, [TokenDocument("later", documents()[0].tokens)], store)
    before = hashes(tmp_path / "store")
    result = build(tmp_path / "store", loaded)
    assert result.parts == result.resumed_parts
    assert hashes(tmp_path / "store") == before


def test_parts_are_whole_documents():
    parts = list(parts_of(placed(documents()), 300))
    assert [d.name for part in parts for d in part.documents] == [d.name for d in documents()]
    assert all(part.tokens >= 300 for part in parts[:-1])
    assert [part.number for part in parts] == list(range(len(parts)))
    assert [part.start for part in parts[1:]] == np.cumsum([part.tokens for part in parts])[:-1].tolist()


def test_a_sample_is_a_part_of_the_keys(loaded):
    keys = KeySpec(window=24, key_dtype="float32").resolved(loaded.context)
    total = sum(len(d.tokens) for d in documents())
    everything, ids = sample_keys(loaded, lambda: placed(documents()), keys, total, total, 0)
    assert everything.shape == (total, DIM)
    np.testing.assert_array_equal(ids, np.arange(total))
    some, ids = sample_keys(loaded, lambda: placed(documents()), keys, 500, total, 0)
    assert 100 < len(some) <= 500
    np.testing.assert_allclose(some, everything[ids], atol=1e-4)


def test_a_sample_of_a_long_document_is_from_anywhere_in_it(loaded):
    keys = KeySpec(window=24, context=8, key_dtype="float32").resolved(loaded.context)
    book = [TokenDocument("book", np.random.default_rng(3).integers(1, len(LETTERS), 30000).astype(np.uint32))]
    everything, ids = sample_keys(loaded, lambda: placed(book), keys, 30000, 30000, 0)
    np.testing.assert_array_equal(ids, np.arange(30000))
    starts = set()
    for seed in range(8):
        some, ids = sample_keys(loaded, lambda: placed(book), keys, 4000, 30000, seed)
        assert (np.diff(ids) > 0).all()
        if ids[-1] - ids[0] < 6000:  # else chance drew no stretch, and all of it was taken
            assert len(ids) == 4000
            starts.add(int(ids[0]) // 1000)
            later = ids >= ids[0] + 24  # the first window does not know the token before it
            np.testing.assert_allclose(some[later], everything[ids[later]], atol=1e-4)
            np.testing.assert_array_equal(sample_keys(loaded, lambda: placed(book), keys, 4000, 30000, seed)[1], ids)
    assert starts
    assert starts != {0}


def test_keys_are_made_in_the_arithmetic_that_was_asked_for(loaded, tmp_path, monkeypatch):
    asked = []

    def watched(loaded, documents, spec, **options):
        asked.append(options.get("autocast", spec.autocast))
        return iterate_as(loaded, documents, spec, **options)

    monkeypatch.setattr("knnlm.build.parts.iterate_as", watched)
    monkeypatch.setattr("knnlm.build.encode.iterate_as", watched)
    keys = KeySpec(window=24, key_dtype="float32", autocast="bfloat16").resolved(loaded.context)
    build(tmp_path / "store", loaded, keys=keys)
    assert set(asked) == {"bfloat16"}


@pytest.mark.parametrize("stage", ["merge lists", "measure recall"])
def test_a_build_killed_after_its_last_part_ends_with_the_same_bytes(large, tmp_path, stage):
    path, _, model = large

    def kill(found, done, total):
        if found == stage:
            raise KilledError

    with pytest.raises(KilledError):
        build_large(tmp_path / "store", model, progress=kill)
    assert (tmp_path / "store" / "parts").is_dir()
    result = build_large(tmp_path / "store", model)
    assert result.resumed_parts == result.parts
    assert hashes(tmp_path / "store") == hashes(path)


def many_documents():
    rng = np.random.default_rng(1)
    return [TokenDocument(f"doc {i}", rng.integers(1, len(LETTERS), 700).astype(np.uint32)) for i in range(40)]


def build_large(path, loaded, **options):
    keys = KeySpec(window=24, key_dtype="float32").resolved(loaded.context)
    chosen = {"keys": keys, "dim": DIM, "attributes": {}, "part_tokens": 5000, "nlist": 150, "threads": 2, **options}
    return build_in_one_pass(path, loaded, many_documents, **chosen)


@pytest.fixture(scope="module")
def large(tmp_path_factory, loaded):
    """A store that is not scanned as a whole, so that its recall is measured."""
    path = tmp_path_factory.mktemp("large") / "store"
    return path, build_large(path, loaded), loaded


def test_the_recall_of_codes_is_measured_without_raw_keys(large, tmp_path):
    path, _, loaded = large
    keys = KeySpec(window=24, key_dtype="float32").resolved(loaded.context)
    with Datastore.open(path) as store, Datastore.create(tmp_path / "raw", dim=DIM, keep_keys="float32") as raw:
        measured = {row["k"]: row for row in store.info()["calibration"]}
        assert set(measured) == {1, 8, 64, 1024}
        dump(loaded, many_documents(), raw, keys=keys)
        raw.build(nlist=150)  # the sample was all of the text: the same codebook, queries and neighbors
        by_codes = [{**row, "best_recall_by_keys": None} for row in raw.info()["calibration"]]
        assert by_codes == store.info()["calibration"]
        assert all(row["best_recall_by_keys"] >= row["best_recall"] for row in raw.info()["calibration"])
        goal = min(0.9, measured[64]["best_recall"] - 0.02)
        rows = np.arange(100, len(raw), 97)
        own = np.stack([rows, rows + 1], -1)
        queries = np.concatenate([raw.keys(i, i + 1) for i in rows])
        exact = raw.search(queries, 64, exact=True, exclude=own).ids
        found = store.search(queries, 64, recall=goal, exclude=own).ids
        share = np.mean([np.isin(a, b).mean() for a, b in zip(found, exact, strict=True)])
        assert share > goal - 0.05
        with pytest.raises(StoreError, match=r"codes only.*measured when it was built"):
            store.calibrate()
    assert not (path / "parts").exists()


def test_truth_is_exact_whatever_the_parts():
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((500, 8)).astype(np.float32)
    keys[100:120] = keys[0]  # ties
    ids = np.arange(500)
    for metric in ("l2", "ip"):
        first = Truth.choose(keys, ids, 500, metric)
        assert first.ids.shape == (256, 64)
        assert (first.own[:, 1] - first.own[:, 0]).max() == 15  # its own entry and 500 / 64 on either side
        whole, parts = first.merged(first.nearest(keys, 0)), first
        for start in range(0, 500, 90):
            parts = parts.merged(parts.nearest(keys[start : start + 90], start, threads=2))
        np.testing.assert_array_equal(whole.ids, parts.ids)
        np.testing.assert_array_equal(whole.distances, parts.distances)
        difference = first.queries[:, None] - keys[None]  # (q, n, d)
        score = (difference**2).sum(-1) if metric == "l2" else -first.queries @ keys.T
        own = (ids >= first.own[:, :1]) & (ids < first.own[:, 1:])  # (q, n)
        score[own] = np.inf
        best = np.sort(score, axis=1)[:, :64]
        np.testing.assert_allclose(np.sort(whole.distances if metric == "l2" else -whole.distances), best, atol=1e-4)
        assert not np.take_along_axis(own, whole.ids, 1).any()


def test_other_changes_of_an_unfinished_build_skip_no_part(loaded, tmp_path):
    commits = 0

    def kill(stage, done, total):
        nonlocal commits
        commits += stage == "encode"
        if commits > 1:
            raise KilledError

    with pytest.raises(KilledError):
        build(tmp_path / "store", loaded, progress=kill)
    with Datastore.open(tmp_path / "store") as store:
        for text in "abcde":  # generations that are no parts
            store.set_attributes({**store.attributes, "other": text})
        store.set_attributes({name: value for name, value in store.attributes.items() if name != "other"})
        held = store.next_id
    build(tmp_path / "store", loaded)
    with Datastore.open(tmp_path / "store") as store:
        assert held < len(store) == sum(len(d.tokens) for d in documents())
        assert store.info()["calibration"]


@pytest.mark.parametrize("damage", ["bit", "half", "empty", "pickle", "shape", "failed"])
def test_a_damaged_file_of_an_unfinished_build_costs_what_it_held(loaded, tmp_path, damage):
    def kill(stage, done, total):
        if stage == "encode":
            raise KilledError

    with pytest.raises(KilledError):
        build(tmp_path / "store", loaded, progress=kill)
    parts = tmp_path / "store" / "parts"
    [file] = parts.glob("truth-*.npz")
    content = file.read_bytes()
    if damage == "failed":
        file = parts / "failed.json"
        file.write_text('[["a", "b"]')
    elif damage == "shape":
        with np.load(file) as saved:
            arrays = dict(saved)
        np.savez(file, **{**arrays, "own": arrays["own"][1:]})
    elif damage == "pickle":
        np.savez(file, queries=np.array([{}], object), own=0, distances=0, ids=0, metric=0)
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes({"bit": flipped, "half": content[:middle], "empty": b""}[damage])
    if damage == "failed":  # what is to be left out cannot be guessed
        with pytest.raises(ValueError, match=rf"{file.name}: expected the .* found a damaged file; restore it"):
            build(tmp_path / "store", loaded)
        return
    build(tmp_path / "whole", loaded)
    for life in range(2):  # killed again: a run that goes on without is one to go on with
        if life == 0:
            with pytest.raises(KilledError):
                build(tmp_path / "store", loaded, progress=kill)
        else:
            assert build(tmp_path / "store", loaded).unmeasured
    whole, store = (Datastore.open(tmp_path / name) for name in ("whole", "store"))
    queries = store.reconstruct(np.arange(0, len(store), 7))
    found, expected = (opened.search(queries, 5) for opened in (store, whole))
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.distances, expected.distances)
    assert whole.info()["calibration"]
    assert not store.info()["calibration"]
    with pytest.raises(StoreError, match="retrain"):
        store.search(queries, 5, recall=0.9)
    assert store.verify() == []
