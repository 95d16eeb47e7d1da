"""End to end: text, keys, store, neighbors, mixture, perplexity; each step again in the exact NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from method import retrieve, score
from tiny_lm import LETTERS, Doc, tiny

from knnlm import Datastore, reference
from knnlm.build.dump import dump
from knnlm.evaluate.tune import save_tuned, tune
from knnlm.knn_lm import KNNLM
from knnlm.lm.settings import settings_of
from knnlm.model.identity import describe
from knnlm.model.key_spec import KeySpec

WORDS = ["bade", "cafe", "face", "dace", "fade", "bead"]


def made_text(seed, count):
    """Sentences in which each word has a likely successor."""
    rng = np.random.default_rng(seed)
    word, words = 0, []
    for _ in range(count):
        word = (word + 1) % len(WORDS) if rng.random() < 0.85 else int(rng.integers(len(WORDS)))
        words.append(WORDS[word])
    return " ".join(words) + "."


STORED = [Doc("one", made_text(1, 20)), Doc("two", made_text(2, 15)), Doc("three", made_text(3, 8))]  # 219 tokens
VALID, TEST = [Doc("valid", made_text(4, 12))], [Doc("test", made_text(5, 12)), Doc("short", "f")]


def brute_force(tmp_path):
    return reference.BruteForceStore(16)


def rust(tmp_path):
    return Datastore.create(tmp_path / "store", dim=16, keep_keys="float32")


@pytest.fixture(params=[brute_force, rust])
def system(request, tmp_path):
    """A model and a store that it has filled."""
    loaded = tiny(seed=3)
    store = request.param(tmp_path)
    spec = KeySpec(window=20, context=10, key_dtype="float32")
    dump(loaded, STORED, store, keys=spec, batch_tokens=40)
    store.set_attributes(describe(loaded, spec))
    return loaded, store


def keys_and_log_probs(loaded, text):
    """What the windows define, by hand: one forward pass a token, key = output of the last feed-forward norm."""
    kept = []
    hook = loaded.model.blocks[-1].ffn_norm.register_forward_hook(lambda _, __, out: kept.append(out[0, -1]))
    inputs = [0, *loaded.tokenizer.encode(text).tolist()]
    rows = []
    loaded.model.eval()
    with torch.inference_mode():
        for t in range(len(inputs) - 1):
            # Ten tokens are scored per window of twenty after the first, which scores twenty.
            start = 0 if t < 20 else (t // 10) * 10 - 10
            rows.append(
                loaded.model(torch.tensor([inputs[start : t + 1]])).logits[0, -1].double().log_softmax(-1).numpy()
            )
    hook.remove()
    return torch.stack(kept).numpy().astype(np.float64), np.array(rows)


def test_everything_equals_the_reference(system):
    loaded, store = system
    keys, values = [], []
    for document in STORED:
        k, _ = keys_and_log_probs(loaded, document.text)
        keys.append(k)
        values.append(loaded.tokenizer.encode(document.text))
    keys, values = np.concatenate(keys), np.concatenate(values)
    assert len(store) == len(values) == sum(len(d.text) for d in STORED)
    np.testing.assert_array_equal(store.values(0, len(store)), values)

    cached = retrieve(loaded, VALID, store, k=64, exact=True)
    tuned = tune(cached)
    assert tuned.perplexity < tuned.lm_perplexity
    save_tuned(store, tuned, exact=True)
    settings = settings_of(store)
    assert settings.exact
    assert settings.k == tuned.k

    lm = KNNLM(loaded, store)
    for document in TEST:
        queries, log_p_lm = keys_and_log_probs(loaded, document.text)
        targets = loaded.tokenizer.encode(document.text)
        expected = []
        for query, row, target in zip(queries, log_p_lm, targets, strict=True):
            distances = ((keys - query) ** 2).sum(1)
            near = np.argsort(distances, kind="stable")[: tuned.k]
            p_knn = reference.p_knn(distances[near], values[near], len(LETTERS), tuned.temperature)
            assert p_knn.sum() == pytest.approx(1)
            p = reference.mixture(np.exp(row), p_knn, tuned.lambda_)
            assert p.sum() == pytest.approx(1)
            expected.append(np.log(p[target]))
        np.testing.assert_allclose(lm.log_probs(document), expected, atol=1e-3)
        np.testing.assert_allclose(np.exp(lm.log_probs(document)), np.exp(expected), atol=1e-5)
        assert lm.perplexity(document) == pytest.approx(reference.perplexity(expected), rel=1e-4)


@pytest.mark.parametrize("make", [brute_force, rust])
def test_one_neighbor_alone_predicts_all_of_the_stored_text(make, tmp_path):
    # A window as long as the text: no two tokens have the same past, so no two keys are equal.
    loaded = tiny(seed=3, context=256)
    store = make(tmp_path)
    document = Doc("one", made_text(1, 45))
    dump(loaded, [document], store, keys=KeySpec(key_dtype="float32"))
    lm = KNNLM(loaded, store, lambda_=1.0, k=1, temperature=1.0, exact=True)
    explained = lm.explain(document, exclude="none")
    assert len(explained) > 200
    np.testing.assert_array_equal(explained.neighbors.ids[:, 0], np.arange(len(explained)))
    np.testing.assert_array_equal(explained.neighbors.values[:, 0], explained.tokens)
    np.testing.assert_array_equal(explained.log_p, 0.0)
    assert lm.perplexity(document, exclude="none") == 1.0


def test_a_stored_document_is_not_its_own_neighbor(system):
    loaded, store = system
    lm = KNNLM(loaded, store, k=30, exact=True)
    for document, info in zip(STORED, store.documents(), strict=True):
        ids = lm.explain(document).neighbors.ids
        assert ((ids >= 0) & ((ids < info.start) | (ids >= info.stop))).all()


@pytest.mark.parametrize("system", [rust], indirect=True)  # the reference store has no index
def test_the_index_answers_the_same_pipeline(system, tmp_path):
    loaded, store = system
    exact = score(retrieve(loaded, TEST, store, k=16, exact=True), settings_of(store, k=16, temperature=5.0))
    store.build(seed=0)
    assert settings_of(store).temperature > 0
    built = score(retrieve(loaded, TEST, store, k=16), settings_of(store, k=16, temperature=5.0))
    assert built.lm_perplexity == exact.lm_perplexity
    assert built.perplexity == pytest.approx(exact.perplexity, rel=0.1)


def test_an_untuned_store_proposes_a_temperature(system):
    _, store = system
    before = settings_of(store).temperature
    if hasattr(store, "build"):
        store.build(seed=0)
        # The index samples other keys by the same rule.
        assert settings_of(store).temperature == pytest.approx(before, rel=0.3)
    near = store.search(store.reconstruct(np.arange(50)), len(store) // 10)
    assert 1 < np.median(near.distances[:, -1]) / before < 20


def test_shuffled_values_gain_less(system):
    loaded, store = system
    cached = retrieve(loaded, [*VALID, *TEST], store, k=32, exact=True, shuffle_seed=0)
    real, shuffled = tune(cached), tune(cached.shuffled())
    assert real.lm_perplexity - real.perplexity > 0
    assert real.perplexity < shuffled.perplexity
