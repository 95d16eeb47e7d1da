"""Re-training without raw keys: the model makes the keys of stored documents again, one generation takes them in."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_lm import LETTERS, tiny

from knnlm import Datastore, FormatError, StoreError
from knnlm.build.dump import dump
from knnlm.build.one_pass import build_in_one_pass
from knnlm.build.retrain import RETRAINING, retrain
from knnlm.model.identity import describe
from knnlm.model.key_spec import IdentityError, KeySpec
from knnlm.system.journal import Staging
from knnlm.text.inputs import TokenDocument

DIM = 32
KEYS = KeySpec(window=24, key_dtype="float32")
INDEX = {"nlist": 20, "threads": 2, "part_tokens": 1000}
PARTS = 6


def texts(prefix, seed, count, length=100):
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(1, len(LETTERS), length + 5 * i).astype(np.uint32) for i in range(count)]
    return [TokenDocument(f"{prefix} {i}", tokens, {"i": i}) for i, tokens in enumerate(drawn)]


def hashes(path):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in Path(path).iterdir()
        if p.is_file() and p.name != "lock"
    }


def codes(path):
    """Files of codebook and lists without what their names tell of the generation."""
    return {name.split("-")[0]: digest for name, digest in hashes(path).items() if name[0] in "cl"}


@pytest.fixture(scope="module")
def loaded():
    return tiny(d=DIM)


def make_changed(path, loaded, length):
    """A store of codes with gaps in its ids: some documents compacted away, some only deleted, some added later."""
    attributes = describe(loaded, KEYS)
    documents = texts("doc", 0, 30, length)
    build_in_one_pass(
        path, loaded, lambda: documents, keys=KEYS, dim=DIM, attributes=attributes, nlist=20, part_tokens=1000
    )
    with Datastore.open(path) as store:
        store.delete(["doc 0", "doc 7", "doc 8"])
        store.compact()
        dump(loaded, texts("later", 1, 12, length), store, keys=KEYS)
        store.delete(["doc 20", "later 11"])
    return path


@pytest.fixture(scope="module")
def changed(loaded, tmp_path_factory):
    return make_changed(tmp_path_factory.mktemp("changed") / "store", loaded, 100)


@pytest.fixture
def store(changed, tmp_path):
    return Path(shutil.copytree(changed, tmp_path / "store"))


@pytest.fixture(scope="module")
def whole(changed, loaded, tmp_path_factory):
    path = Path(shutil.copytree(changed, tmp_path_factory.mktemp("whole") / "store"))
    return path, retrain(path, loaded, **INDEX)


def contents(store):
    """Everything but codes."""
    documents = list(store.documents())
    return documents, [store.values(d.start, d.stop).tolist() for d in documents], store.next_id, store.attributes


def recall(store, raw, asked):
    """Share of the 64 nearest entries that are found."""
    ids = np.concatenate([np.arange(d.start, d.stop)[::60] for d in raw.documents()])
    own = np.stack([ids, ids + 1], -1)
    queries = raw.reconstruct(ids)
    exact = raw.search(queries, 64, exact=True, exclude=own).ids
    found = store.search(queries, 64, recall=asked, exclude=own).ids
    return np.mean([np.isin(a, b).mean() for a, b in zip(found, exact, strict=True)])


def test_all_entries_get_new_codes_in_one_generation(changed, whole):
    path, result = whole
    with Datastore.open(changed) as old, Datastore.open(path) as new:
        assert contents(new) == contents(old)
        assert new.generation == old.generation + 1 == result.generation
        assert result.tokens == len(new) == new.info()["indexed"]
        assert (result.resumed_parts, result.parts) == (0, PARTS)
        assert new.verify() == []
        assert (new.info()["nlist"], new.info()["drift"], new.info()["lists_segments"]) == (20, None, 1)
        found = new.search(np.zeros(DIM), len(new), nprobe=20).ids
        assert sorted(found.tolist()) == [i for d in new.documents() for i in range(d.start, d.stop)]
    assert not (path / RETRAINING).exists()


def test_the_recall_of_the_new_codes_is_measured_without_raw_keys(loaded, tmp_path):
    path = make_changed(tmp_path / "store", loaded, 600)
    retrain(path, loaded, nlist=150)
    everything = texts("doc", 0, 30, 600) + texts("later", 1, 12, 600)
    with Datastore.open(path) as new, Datastore.create(tmp_path / "raw", dim=DIM, keep_keys="float32") as raw:
        measured = {row["k"]: row["best_recall"] for row in new.info()["calibration"]}
        dump(loaded, everything, raw, keys=KEYS)
        raw.delete([d.name for d in everything if new.find_document(d.name) is None])
        raw.build(nlist=150)
        assert {row["k"]: row["best_recall"] for row in raw.info()["calibration"]} == pytest.approx(measured, abs=0.02)
        goal = min(0.9, measured[64] - 0.02)
        assert recall(new, raw, goal) > goal - 0.05


def test_codes_are_those_of_a_store_that_kept_its_keys(loaded, tmp_path):
    documents = texts("doc", 3, 12)
    for name, kept in (("codes", None), ("raw", "float32")):
        attributes = describe(loaded, KEYS)
        with Datastore.create(tmp_path / name, dim=DIM, keep_keys=kept, attributes=attributes) as store:
            # Alone in its batch, a document has the same keys whatever else is in the store.
            for document in documents:
                dump(loaded, [document], store, keys=KEYS, batch_tokens=24)
            store.build(nlist=20)
            store.delete("doc 4")
    with Datastore.open(tmp_path / "raw") as raw:
        raw.build(retrain=True, nlist=40)
    retrain(tmp_path / "codes", loaded, nlist=40, part_tokens=10**9, batch_tokens=24)
    assert codes(tmp_path / "codes") == codes(tmp_path / "raw")


class KilledError(Exception):
    """Stands for the end of the process."""


def kill_before_publishing(monkeypatch, store, loaded):
    def killed(*arguments, **options):
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("knnlm.store.builder._core.reindex", killed)
        with pytest.raises(KilledError):
            retrain(store, loaded, **INDEX)


@pytest.mark.parametrize("moment", ["sample", "words", "encode 1", "encode 3", f"encode {PARTS}", "publish"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(store, whole, loaded, moment, monkeypatch):
    before = hashes(store)
    encoded = 0

    def kill(stage, done, total):
        nonlocal encoded
        encoded += stage == "encode"
        if moment in (stage, f"encode {encoded}"):
            raise KilledError

    if moment == "publish":
        kill_before_publishing(monkeypatch, store, loaded)
    else:
        with pytest.raises(KilledError):
            retrain(store, loaded, progress=kill, **INDEX)
    assert hashes(store) == before
    with Datastore.open(store) as opened:
        assert opened.verify() == []
        opened.search(np.zeros(DIM), 5)
    (store / RETRAINING / "lists-00000099-0.seg").write_bytes(b"left by a worker")
    result = retrain(store, loaded, **INDEX)
    assert result.resumed_parts == {"sample": 0, "words": 0, "encode 1": 1, "encode 3": 3}.get(moment, PARTS)
    assert hashes(store) == hashes(whole[0])


def test_a_run_killed_after_it_published_only_clears_up(store, whole, loaded, monkeypatch):
    def killed(staging):
        if staging.plan() is not None:
            (staging.folder / "codebook.json").unlink()
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("knnlm.system.journal.Staging.remove", killed)
        with pytest.raises(KilledError):
            retrain(store, loaded, **INDEX)
    assert (store / RETRAINING).is_dir()
    result = retrain(store, loaded, **INDEX)
    assert (result.resumed_parts, result.parts, result.generation) == (PARTS, PARTS, whole[1].generation)
    assert hashes(store) == hashes(whole[0])
    assert not (store / RETRAINING).exists()


def test_a_run_killed_just_after_it_published_only_clears_up(store, whole, loaded, monkeypatch):
    def killed(staging, name, record):
        if "published" in record:
            raise KilledError
        write(staging, name, record)

    write = Staging.write
    with monkeypatch.context() as patched:
        patched.setattr("knnlm.system.journal.Staging.write", killed)
        with pytest.raises(KilledError):
            retrain(store, loaded, **INDEX)
    result = retrain(store, loaded, **INDEX)
    assert (result.resumed_parts, result.parts, result.generation) == (PARTS, PARTS, whole[1].generation)
    assert hashes(store) == hashes(whole[0])


def test_an_index_that_another_command_made_meanwhile_is_not_taken_for_its_own(loaded, tmp_path, monkeypatch):
    attributes = describe(loaded, KEYS)
    with Datastore.create(tmp_path / "store", dim=DIM, keep_keys="float32", attributes=attributes) as store:
        dump(loaded, texts("doc", 0, 30), store, keys=KEYS)
        store.build(nlist=10)
        kill_before_publishing(monkeypatch, store.path, loaded)
        store.build(retrain=True, nlist=15)
        generation = store.generation
    result = retrain(tmp_path / "store", loaded, **INDEX)
    assert (result.resumed_parts, result.generation) == (0, generation + 1)
    with Datastore.open(tmp_path / "store") as store:
        assert store.info()["nlist"] == INDEX["nlist"]
        assert store.verify() == []


def test_what_is_staged_for_another_state_is_thrown_away(store, loaded):
    def kill(stage, done, total):
        if stage == "encode":
            raise KilledError

    with pytest.raises(KilledError):
        retrain(store, loaded, progress=kill, **INDEX)
    with Datastore.open(store) as opened:
        opened.delete("doc 3")
    assert retrain(store, loaded, **INDEX).resumed_parts == 0
    with Datastore.open(store) as opened:
        assert opened.verify() == []
        assert opened.info()["indexed"] == len(opened)


def test_other_writers_are_kept_out_and_readers_keep_their_generation(store, loaded):
    reader = Datastore.open(store)
    generation, found = reader.generation, reader.search(np.zeros(DIM), 9).ids.tolist()
    refused = []

    def look(stage, done, total):
        if stage == "encode":
            with Datastore.open(store) as other, pytest.raises(StoreError, match="another writer"):
                other.delete("doc 3")
            refused.append(reader.search(np.zeros(DIM), 9).ids.tolist() == found)

    retrain(store, loaded, progress=look, **INDEX)
    assert refused == [True] * PARTS
    assert (reader.generation, reader.search(np.zeros(DIM), 9).ids.tolist()) == (generation, found)
    reader.refresh()
    assert reader.generation == generation + 1


def load_tiny():
    """The model, for worker processes."""
    torch.set_num_threads(1)
    return tiny(d=DIM)


def test_worker_processes_give_the_bytes_of_one(store, whole, loaded):
    retrain(store, loaded, workers=2, load=load_tiny, **INDEX)
    assert hashes(store) == hashes(whole[0])


def test_a_damaged_staged_file_is_refused(store, loaded, monkeypatch):
    before = hashes(store)
    kill_before_publishing(monkeypatch, store, loaded)
    part = store / RETRAINING / "lists-00000002-0.seg"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(FormatError, match=r"lists-00000002-0.seg.*as it was; remove .*retraining"):
        retrain(store, loaded, **INDEX)
    assert hashes(store) == before


def test_a_damaged_truth_costs_the_measurement_alone(store, whole, loaded, monkeypatch):
    kill_before_publishing(monkeypatch, store, loaded)
    [truth] = (store / RETRAINING).glob("truth-*.npz")
    truth.write_bytes(truth.read_bytes()[:100])
    assert retrain(store, loaded, **INDEX).unmeasured
    with Datastore.open(store) as opened, Datastore.open(whole[0]) as expected:
        assert expected.info()["calibration"]
        assert not opened.info()["calibration"]
        queries = np.random.default_rng(0).standard_normal((20, DIM))
        np.testing.assert_array_equal(opened.search(queries, 5).ids, expected.search(queries, 5).ids)
        with pytest.raises(StoreError, match="retrain"):
            opened.search(queries, 5, recall=0.5)
        assert opened.verify() == []
    assert not retrain(store, loaded, **INDEX).unmeasured


def test_only_the_model_that_made_the_store_will_do(store, loaded, tmp_path):
    other = tiny(d=DIM)
    other.fingerprint = "other"
    with pytest.raises(IdentityError, match="model weights"):
        retrain(store, other)
    with Datastore.create(tmp_path / "vectors", dim=DIM) as vectors:
        vectors.add(np.eye(DIM), np.arange(DIM))
        vectors.build()
    with pytest.raises(StoreError, match=r"made from vectors.*keep_keys"):
        retrain(tmp_path / "vectors", loaded)
    with pytest.raises(ValueError, match="fewer"):
        retrain(store, loaded, nlist=10**6)
    with Datastore.open(store) as opened:
        opened.delete(list(range(len(opened.documents()))))
    with pytest.raises(ValueError, match="found none"):
        retrain(store, loaded)
    with Datastore.create(tmp_path / "odd", dim=DIM, attributes=describe(loaded, KEYS)) as odd:
        odd.add(np.eye(DIM), np.arange(DIM), document="a")
        odd.build()
    with pytest.raises(ValueError, match=r"document 'a'.*tokens below 30"):
        retrain(tmp_path / "odd", loaded)


def test_a_store_whose_new_entries_wait_for_an_index_gets_codes_of_all(loaded, tmp_path):
    with Datastore.create(tmp_path / "store", dim=DIM, attributes=describe(loaded, KEYS)) as store:
        dump(loaded, texts("doc", 0, 5), store, keys=KEYS)
        store.build(nlist=8)
        dump(loaded, texts("later", 1, 3), store, keys=KEYS)
        assert store.info()["entries_with_keys"] > 0
        assert retrain(store.path, loaded).parts == 1
        store.refresh()
        info = store.info()
        assert (info["entries_with_keys"], info["indexed"]) == (0, len(store))
        assert store.verify() == []
