"""Damaged bytes: refused with file, section and entries; what is kept and what is lost is told."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from knnlm import Datastore, FormatError, LostDocument, StoreError
from knnlm.cli import main

RNG = np.random.default_rng(0)


def flipped(path, pattern, find=None, share=0):
    """Flip a bit of a file, of the bytes `find` or at a share of it, which begins in its first section."""
    file = next(path.glob(pattern))
    content = bytearray(file.read_bytes())
    content[max(64, int(share * len(content))) if find is None else content.find(find)] ^= 64
    file.unlink()  # readers have it mapped
    file.write_bytes(content)


def store_at(path, keep_keys=None, **attributes):
    store = Datastore.create(path, dim=8, keep_keys=keep_keys, attributes=attributes)
    for name in ("a", "b", "c"):
        keys = RNG.standard_normal((500, 8), dtype=np.float32)
        store.add(keys, np.arange(500) + 1000 * (ord(name) - 97), document=name)
    store.build(seed=0, threads=1)
    return store


def test_a_value_that_was_flipped_stays_found(tmp_path):
    # One of these values used to come out of `compact` sound, and wrong.
    store_at(tmp_path / "m").close()
    flipped(tmp_path / "m", "data-*.seg", np.arange(100, 120, dtype="<u4").tobytes())
    assert len(Datastore.verify_path(tmp_path / "m")) == 1
    with Datastore.open(tmp_path / "m") as store:
        store.delete("b")
        with pytest.raises(FormatError, match=r"data-.*section Values, entries 0 to 1499.*drop_damaged=True") as error:
            store.compact()
        assert error.value.why == "damaged"
        assert "drop_damaged" not in error.value.message
        with pytest.raises(FormatError, match="Values"):
            store.values(0, 10)
        assert len(store) == 1000  # as it was
        lost = [LostDocument("a", 0, 500, ("Values",)), LostDocument("c", 1000, 1500, ("Values",))]
        assert store.damaged() == lost
        assert store.compact(drop_damaged=True) == lost
        assert len(store) == 0
    assert Datastore.verify_path(tmp_path / "m") == []


def test_codes_are_made_anew_where_raw_keys_are_kept(tmp_path):
    store = store_at(tmp_path / "s", keep_keys="float32")
    expected = store.search(store.keys(0, 20), 5, threads=1)
    store.close()
    flipped(tmp_path / "s", "lists-*.seg")
    with Datastore.open(tmp_path / "s") as store:
        assert store.compact(drop_damaged=True) == []
        np.testing.assert_array_equal(store.search(store.keys(0, 20), 5, threads=1).ids, expected.ids)
    assert Datastore.verify_path(tmp_path / "s") == []


def test_lists_that_are_damaged_are_not_joined_and_it_is_said(tmp_path):
    store_at(tmp_path / "s").close()
    flipped(tmp_path / "s", "lists-*.seg", share=0.5)
    with Datastore.open(tmp_path / "s") as store:
        store.add(RNG.standard_normal((600, 8), dtype=np.float32), np.arange(600), document="d")
        with pytest.warns(UserWarning, match=r"lists-.*section Codes.*expected CRC32C"):
            store.build(threads=1)
        assert len(store) == 2100
        with pytest.raises(StoreError, match="retrain"):
            store.build(retrain=True)


def test_a_store_that_outgrew_its_index_says_so_once_and_by_size(tmp_path):
    with Datastore.create(tmp_path / "s", dim=8, keep_keys="float32") as store:
        store.add(RNG.standard_normal((500, 8), dtype=np.float32), np.zeros(500, int), "first")
        store.build(threads=1)
        store.add(RNG.standard_normal((3000, 8), dtype=np.float32), np.zeros(3000, int), "rest")
        with pytest.warns(UserWarning, match="outgrown its index: it was built for fewer entries"):
            store.build(threads=1)
        info = store.info()
        assert info["retrain_advised"]
        assert info["retrain_reason"].endswith("it has 1 lists, a new one 55")
        assert abs(info["drift"]) < 0.2
        store.build(retrain=True, threads=1)
        assert (store.info()["retrain_advised"], store.info()["nlist"] > 40) == (False, True)


@pytest.fixture
def run():
    def call(*args):
        return CliRunner().invoke(main, [str(arg) for arg in args])

    return call


def test_commands_tell_what_to_do_in_their_own_words(tmp_path, run):
    store_at(tmp_path / "s").close()
    flipped(tmp_path / "s", "data-*.seg")
    Datastore.open(tmp_path / "s").delete("b")
    failed = run("compact", tmp_path / "s")
    assert failed.exit_code == 1
    assert "knnlm compact STORE --drop-damaged names and drops these" in failed.stderr
    assert "in Python" not in failed.stderr
    assert run("compact", tmp_path / "s", "--dry-run").exit_code == 2

    dry = run("compact", tmp_path / "s", "--drop-damaged", "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert "would be dropped: a (ids 0 to 499; damaged: Values)" in dry.stdout
    assert "would be dropped: 2 documents of 1,000 entries, which is all of them" in dry.stdout
    assert len(Datastore.verify_path(tmp_path / "s")) == 1
    done = run("compact", tmp_path / "s", "--drop-damaged", "--json")
    assert json.loads(done.stdout)["damaged"] == [
        {"name": "a", "ids": [0, 500], "damaged": ["Values"]},
        {"name": "c", "ids": [1000, 1500], "damaged": ["Values"]},
    ]
    assert Datastore.verify_path(tmp_path / "s") == []


def test_codes_that_a_model_can_make_anew_are_not_lost_unasked(tmp_path, run):
    store_at(tmp_path / "s", model={"name": "m"}).close()
    flipped(tmp_path / "s", "lists-*.seg", share=0.5)
    dry = run("compact", tmp_path / "s", "--drop-damaged", "--dry-run")
    assert dry.exit_code == 0
    assert "but it is refused without --lose-codes: damaged in their codes alone" in dry.stdout
    assert "can make anew: 3 documents." in dry.stdout
    told = json.loads(run("compact", tmp_path / "s", "--drop-damaged", "--dry-run", "--json").stdout)
    assert "--retrain loses none of them" in told["refused"]
    assert "refused without" not in run(
        "compact", tmp_path / "s", "--drop-damaged", "--dry-run", "--lose-codes"
    ).output  # fmt: skip
    refused = run("compact", tmp_path / "s", "--drop-damaged")
    assert refused.exit_code == 2
    assert "--retrain loses none of them" in refused.stderr
    assert len(Datastore.open(tmp_path / "s")) == 1500
    assert run("compact", tmp_path / "s", "--drop-damaged", "--lose-codes").exit_code == 0
    assert len(Datastore.open(tmp_path / "s")) == 0


def test_a_damaged_codebook_is_not_told_to_be_dropped(tmp_path, run):
    store_at(tmp_path / "s").close()
    flipped(tmp_path / "s", "codebook-*.seg", share=0.5)
    for options in ((), ("--dry-run",)):
        refused = run("compact", tmp_path / "s", "--drop-damaged", *options)
        assert refused.exit_code == 1
        assert "section" in refused.stderr
        assert "no code means anything without it; retrain" in refused.stderr
        assert "--drop-damaged" not in refused.stderr
    with pytest.raises(FormatError, match="no code means anything") as error:
        Datastore.open(tmp_path / "s").compact(drop_damaged=True)
    assert "drop_damaged" not in str(error.value)


def test_a_store_in_memory_answers_as_the_mapped_one(tmp_path):
    import pickle

    with store_at(tmp_path / "s", keep_keys="float16") as store:
        queries = store.keys(0, 30)
        expected = store.search(queries, 7, threads=1)
    with Datastore.open(tmp_path / "s", resident=True) as store:
        for opened in (store, pickle.loads(pickle.dumps(store))):
            found = opened.search(queries, 7, threads=1)
            np.testing.assert_array_equal(found.ids, expected.ids)
            np.testing.assert_array_equal(found.distances, expected.distances)
        np.testing.assert_array_equal(store.document_spans(), [[0, 500], [500, 1000], [1000, 1500]])
    flipped(tmp_path / "s", "codebook-*.seg")
    with pytest.raises(FormatError, match="codebook"):
        Datastore.open(tmp_path / "s", resident=True)
