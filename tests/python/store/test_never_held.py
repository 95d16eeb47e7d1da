"""A store that deleted 5 % of its documents gives a language model what one that never held them gives it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from method import combiner, retrieve
from tiny_lm import Doc, tiny

from knnlm import KNNLM, Datastore
from knnlm.build.dump import dump
from knnlm.lm.combiners import ngram_of
from knnlm.model.identity import describe
from knnlm.model.key_spec import KeySpec
from knnlm.model.keys import iterate_as
from knnlm.probability.blend import Blend
from knnlm.store.temperature import default_temperature

DIM = 100
SPEC = KeySpec(window=24, context=8, key_dtype="float32")
GONE = ["doc 0", "doc 17", "doc 39"]
TEXTS = ["abcd abgh face. a cab", "hhgg aabb", "face face cafe dead beef " * 3]


def documents(prefix="doc", count=40, seed=0):
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(12)]
    return [Doc(f"{prefix} {i}", " ".join(rng.choice(words, 10 + i)) + ".", {"i": i}) for i in range(count)]


@pytest.fixture(scope="module")
def loaded():
    return tiny(d=DIM)


def fill(store, loaded, without):
    """The documents but those, with the same keys bit for bit: all run, as a matrix product rounds by its batch."""
    for chunk in iterate_as(loaded, documents(), SPEC, scores=False):
        if chunk.document.name not in without:
            store.add(chunk.key, chunk.tokens, document=chunk.document.name, metadata=chunk.document.metadata)
    store.commit()


def trained(path, loaded, without):
    """Encoded as it comes, with codes learnt from other documents: two levels of codes and no raw keys."""
    store = Datastore.create(path, dim=DIM, attributes=describe(loaded, SPEC))
    sample = [chunk.key for chunk in iterate_as(loaded, documents("sample", 20, seed=9), SPEC, scores=False)]
    store.train(np.concatenate(sample), expected=5000, seed=3, nlist=16, threads=1)
    fill(store, loaded, without)
    return store


def built(path, loaded, without):
    """Indexed after the first half, which has nothing that goes but raw keys of all."""
    store = Datastore.create(path, dim=DIM, keep_keys="float16", attributes=describe(loaded, SPEC))
    dump(loaded, documents("first", 20, seed=9), store, keys=SPEC)
    store.build(nlist=16, threads=1)
    fill(store, loaded, without)
    with pytest.warns(UserWarning, match="outgrown its index"):  # 16 lists learnt from the first half
        store.build(threads=1)
    return store


def unbuilt(path, loaded, without):
    """Without an index: the temperature comes from a sample of the keys."""
    store = Datastore.create(path, dim=DIM, keep_keys="float32", attributes=describe(loaded, SPEC))
    fill(store, loaded, without)
    return store


@pytest.fixture(params=[trained, built, unbuilt], ids=lambda made: made.__name__)
def stores(request, tmp_path, loaded):
    """One that will delete documents, one that never held them."""
    with (
        request.param(tmp_path / "store", loaded, ()) as store,
        request.param(tmp_path / "never", loaded, GONE) as never,
    ):
        codes = [list(Path(s.path).glob("codebook-*.seg")) for s in (store, never)]
        assert [c.read_bytes() for c in codes[0]] == [c.read_bytes() for c in codes[1]]
        yield store, never


def answers(loaded, store):
    """Everything that a model makes of a store, as numbers."""
    out = {"temperature": default_temperature(store)}
    for name, options in {"codes": {}, "one list": {"nprobe": 1}, "exact": {"exact": True}}.items():
        if name == "exact" and not store.info()["entries_with_keys"]:
            continue
        lm = KNNLM(loaded, store, **options)
        out[name] = [lm.perplexity(text) for text in TEXTS]
        out[f"{name}, of a stored text"] = lm.log_probs(documents()[5]).tolist()
        out[f"{name}, in detail"] = lm.evaluate([Doc(t, t) for t in TEXTS]).document_nll.tolist()
    out["values of neighbors"] = lm.explain(TEXTS[0]).neighbors.values.tolist()
    out["text"] = lm.generate("abcd", max_new_tokens=20)
    cached = retrieve(
        loaded,
        [Doc(t, t) for t in TEXTS],
        store,
        k=20,
        shuffle_seed=4,
        ngram=ngram_of(store, 3, 30),
        cache_thetas=[0.5],
    )
    out["n-gram and cache"] = {name: column.tolist() for name, column in cached.features.items()}
    out["distances"] = cached.distances.tolist()
    out["shuffled"] = cached.match_shuffled.tolist()
    weights = {"lm": 0.3, "knn": 0.3, "cache": 0.2, "ngram": 0.2}
    lm.combiner = combiner(lm.settings, Blend(weights, theta=0.5, order=3))
    out["blend"] = [lm.perplexity(text) for text in TEXTS]
    return json.loads(json.dumps(out))


def test_perplexity_is_that_of_a_store_that_never_held_them(stores, loaded):
    store, never = stores
    expected = answers(loaded, never)
    before = answers(loaded, store)
    same = {name for name in expected if before[name] == expected[name]}
    assert same <= {"temperature", "text"}, "everything else shows what will go"
    assert store.delete(GONE) / store.next_id > 0.05
    assert answers(loaded, store) == expected
    store.compact()
    assert answers(loaded, store) == expected
    assert answers(loaded, Datastore.open(store.path)) == expected


def test_a_temperature_comes_from_what_is_left(tmp_path):
    keys = np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32)
    with Datastore.create(tmp_path / "a", dim=8) as store, Datastore.create(tmp_path / "b", dim=8) as never:
        store.add(keys[:2900], np.zeros(2900, np.uint32), "long")  # nearly all of ids that are spread evenly
        for one in (store, never):
            one.add(keys[2900:], np.zeros(100, np.uint32))
            one.commit()
        store.delete("long")
        assert default_temperature(store) == default_temperature(never) != 1
