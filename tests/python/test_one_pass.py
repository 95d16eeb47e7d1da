"""One pass from text to codes: no raw key on disk, and an interrupted build ends with the bytes of a whole one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from tiny_lm import LETTERS, tiny

from knnlm import Datastore
from knnlm.identity import KeySpec
from knnlm.keys import TokenDocument
from knnlm.one_pass import build_in_one_pass, parts_of, sample_keys

DIM = 32


def documents():
    rng = np.random.default_rng(0)
    return [
        TokenDocument(f"doc {i}", rng.integers(1, len(LETTERS), 40 + i).astype(np.uint32), {"i": i}) for i in range(40)
    ]


def hashes(path):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(path).iterdir() if p.name != "lock"}


def build(path, loaded, **options):
    keys = KeySpec(window=24, key_dtype="float32").resolved(loaded.context)
    chosen = {"keys": keys, "dim": DIM, "attributes": {"a": 1}, "part_tokens": 300, "nlist": 8, **options}
    return build_in_one_pass(path, loaded, documents, **chosen)


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


class KilledError(Exception):
    """Stands for the end of the process."""


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
    with pytest.raises(ValueError, match="found another"):
        build(whole[0], loaded, attributes={"a": 2})


def test_parts_are_whole_documents():
    parts = list(parts_of(documents(), 300))
    assert [d.name for part in parts for d in part] == [d.name for d in documents()]
    assert all(sum(len(d.tokens) for d in part) >= 300 for part in parts[:-1])


def test_a_sample_is_a_part_of_the_keys(loaded):
    keys = KeySpec(window=24, key_dtype="float32").resolved(loaded.context)
    total = sum(len(d.tokens) for d in documents())
    everything = sample_keys(loaded, documents, keys, total, total, 0)
    assert everything.shape == (total, DIM)
    some = sample_keys(loaded, documents, keys, 500, total, 0)
    assert 100 < len(some) <= 500
    gap = np.linalg.norm(some[:, None] - everything[None], axis=-1).min(axis=1)  # (n,)
    assert gap.max() < 1e-3
