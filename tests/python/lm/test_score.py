"""Perplexity of documents with a store: against the reference, with exclusion, controls and the words of a text."""

from __future__ import annotations

import numpy as np
import pytest
from method import evaluate, generate, log_p, retrieve, score
from tiny_lm import Doc, texts, tiny

from knnlm import reference
from knnlm.build.dump import dump
from knnlm.evaluate.fit_blend import cache_thetas, fit_blend
from knnlm.evaluate.size_curve import size_curve
from knnlm.evaluate.tune import save_tuned, tune
from knnlm.knn_lm import KNNLM
from knnlm.lm import score as scoring
from knnlm.lm.combiners import fixed, ngram_of
from knnlm.lm.retriever import Retriever, excluded_ranges
from knnlm.lm.settings import Settings
from knnlm.lm.stored_texts import StoredTexts, stored_texts
from knnlm.model.identity import check, describe
from knnlm.model.key_spec import IdentityError, KeySpec
from knnlm.model.keys import iterate
from knnlm.probability.blend import cache_name
from knnlm.probability.ngram import KneserNey
from knnlm.store.datastore import Datastore


@pytest.fixture(scope="module")
def loaded():
    return tiny()


def stored(loaded, documents, **keys):
    store = reference.BruteForceStore(16)
    spec = KeySpec(**keys)
    dump(loaded, documents, store, keys=spec)
    store.set_attributes(describe(loaded, spec))
    return store


HELD_OUT = [Doc("held out", "abcd abcd bade."), Doc("empty", ""), Doc("more", "face a cab. " * 5)]
SCORED = [HELD_OUT[0], HELD_OUT[2]]  # a document without tokens leaves no trace


def test_equals_the_reference(loaded):
    store = stored(loaded, texts())
    settings = Settings(0.4, 3.0, 9)
    result = evaluate(loaded, HELD_OUT, store, settings)
    sums = []
    for document in SCORED:
        log_p = [0.0]
        for chunk in iterate(loaded, [document], key_dtype="float32"):
            near = store.search(chunk.key, 9)
            for t in range(len(chunk.tokens)):
                p_knn = reference.p_knn(near.distances[t], near.values[t], 30, 3.0)[chunk.tokens[t]]
                log_p.append(np.log(0.4 * p_knn + 0.6 * np.exp(chunk.log_p[t])))
        sums.append(-np.sum(log_p))
    np.testing.assert_allclose(result.document_nll, sums, rtol=1e-5)
    np.testing.assert_array_equal(result.document_tokens, [15, 60])
    np.testing.assert_array_equal(result.document_words, [3, 15])
    assert result.perplexity == pytest.approx(np.exp(np.sum(sums) / 75), rel=1e-5)
    assert result.word_perplexity == pytest.approx(np.exp(np.sum(sums) / 18), rel=1e-5)
    assert result.tokens_per_second > 0
    assert (result.settings["k"], result.settings["temperature"], result.settings["window"]) == (9, 3.0, 24)


def test_lambda_zero_is_the_lm_bit_for_bit(loaded):
    store = stored(loaded, texts())
    cached = retrieve(loaded, HELD_OUT, store, k=4)
    plain = np.concatenate([c.log_p for c in iterate(loaded, HELD_OUT)])
    assert log_p(cached, Settings(0.0, 1.0, 4)).tobytes() == plain.tobytes()
    result = score(cached, Settings(0.0, 1.0, 4))
    assert result.perplexity == result.lm_perplexity


def test_text_of_the_store_is_scored_without_itself(loaded):
    documents = texts()
    store = stored(loaded, documents)
    own = store.documents()[2]
    document = next(d for d in documents if d.name == own.name)
    for exclude, hidden in (("document", (own.start, own.stop)), ("entry", None), ("none", (0, 0))):
        cached = retrieve(loaded, [document], store, k=len(store), exclude=exclude)
        count = np.isfinite(cached.distances).sum(1)
        left_out = 1 if hidden is None else hidden[1] - hidden[0]
        assert (count == len(store) - left_out).all()
        assert cached.excluded_documents == (exclude != "none")
        nearest_is_itself = cached.distances[:, 0] < 1e-4
        assert nearest_is_itself.all() == (exclude == "none")
    renamed = retrieve(loaded, [Doc("other name", document.text)], store, k=3)
    assert renamed.excluded_documents == 1
    changed = retrieve(loaded, [Doc(document.name, document.text[:-1] + ",")], store, k=3)
    assert changed.excluded_documents == 0
    with pytest.raises(ValueError, match="exclude"):
        retrieve(loaded, [document], store, k=3, exclude="self")


@pytest.mark.parametrize("kind", ["reference", "disk"])
def test_every_copy_of_a_text_is_left_out(loaded, tmp_path, kind):
    text = "abc abd abe."
    documents = [Doc("a", text), Doc("other", "fgh fgh"), Doc("b", text), Doc("c", text)]
    if kind == "reference":
        store = stored(loaded, documents)
    else:
        store = Datastore.create(
            tmp_path / "store", dim=16, keep_keys="float32", attributes=describe(loaded, KeySpec())
        )
        dump(loaded, documents, store)
    n, length = len(store), len(text)
    for exclude, left in (("document", n - 3 * length), ("entry", n - 3), ("none", n)):
        cached = retrieve(loaded, [Doc("b", text)], store, k=n, exclude=exclude)
        assert np.isfinite(cached.distances).sum(1).tolist() == [left] * length
        assert (cached.distances[:, 0] < 1e-4).all() == (exclude == "none")
        nearest = retrieve(loaded, [Doc("b", text)], store, k=2, exclude=exclude)
        np.testing.assert_allclose(nearest.distances, cached.distances[:, :2], rtol=1e-4, atol=1e-5)
    assert StoredTexts(store).find_all("b", loaded.tokenizer.encode(text))[0] == (length + 7, 2 * length + 7)


def test_own_entries_are_found_by_position(loaded):
    store = stored(loaded, [Doc("a", "abc"), Doc("b", "abcd" * 9), Doc("a", "abca")])
    texts_ = StoredTexts(store)
    encode = loaded.tokenizer.encode
    assert texts_.find("a", encode("abca")) == (39, 43)
    assert texts_.find("unknown", encode("abc")) == (0, 3)
    assert texts_.find("b", encode("abcd" * 8)) is None
    np.testing.assert_array_equal(excluded_ranges((39, 43), "entry", 1, 2), [[40, 41], [41, 42]])
    np.testing.assert_array_equal(excluded_ranges((39, 43), "document", 1, 2), [[39, 43], [39, 43]])


def test_shuffled_control_keeps_distances_and_token_counts(loaded):
    store = stored(loaded, texts())
    cached = retrieve(loaded, HELD_OUT, store, k=len(store), shuffle_seed=3, keep_values=True)
    shuffled = cached.shuffled()
    np.testing.assert_array_equal(shuffled.distances, cached.distances)
    # With every entry retrieved, both stores hold each token equally often.
    np.testing.assert_array_equal(shuffled.match.sum(1), cached.match.sum(1))
    assert (shuffled.match != cached.match).any()
    np.testing.assert_array_equal(cached.match, cached.values == cached.tokens[:, None])


def test_cache_and_features_beside_the_neighbors(loaded):
    store = stored(loaded, texts())
    cached = retrieve(
        loaded, HELD_OUT, store, k=2, cache_thetas=[0.1, 1.0], cache_size=20, features=["entropy"], batch_tokens=24
    )
    at = 0
    for document in HELD_OUT:
        for chunk in iterate(loaded, [document], key_dtype="float32", features=["entropy"]):
            expected = reference.continuous_cache(chunk.key, chunk.tokens, 30, 0.1, 20)
            p = expected[np.arange(len(chunk.tokens)), chunk.tokens]
            got = cached.features[cache_name(0.1)][at : at + len(p)]
            np.testing.assert_allclose(np.exp(np.nan_to_num(got, nan=-np.inf)), p, atol=1e-4)
            assert np.isnan(got[0])
            np.testing.assert_allclose(
                cached.features["entropy"][at : at + len(p)], chunk.features["entropy"], atol=1e-4
            )
            at += len(p)
    assert at == len(cached)


def test_batches_do_not_change_the_answer(loaded):
    store = stored(loaded, texts())
    a = retrieve(loaded, HELD_OUT, store, k=5, batch_tokens=24)
    b = retrieve(loaded, HELD_OUT, store, k=5, batch_tokens=4096)
    np.testing.assert_allclose(a.distances, b.distances, atol=1e-3)
    np.testing.assert_array_equal(a.tokens, b.tokens)


def test_an_empty_text_and_an_empty_store(loaded):
    store = stored(loaded, texts())
    assert np.isnan(evaluate(loaded, [Doc("empty", "")], store).perplexity)
    empty = reference.BruteForceStore(16)
    result = evaluate(loaded, HELD_OUT, empty, Settings(0.9, 1.0, 4))
    assert result.perplexity == pytest.approx(result.lm_perplexity, rel=1e-6)
    assert result.retrieved == 0


def test_the_default_settings_of_a_store(loaded):
    store = stored(loaded, texts())
    store.set_attributes({**store.attributes, "tuned": {"lambda_": 0.6, "temperature": 2.5, "k": 7}})
    result = evaluate(loaded, HELD_OUT, store)
    assert [result.settings[name] for name in ("lambda_", "temperature", "k")] == [0.6, 2.5, 7]
    assert evaluate(loaded, HELD_OUT, store, Settings(0.1)).settings["k"] == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "another"}, "model weights"),
        ({"tokenizer": "letters2"}, "tokenizer"),
        ({"representation": "block-output"}, "key representation.*ffn-input.*block-output"),
        ({"layer": -2}, "layer"),
    ],
)
def test_a_store_of_another_model_is_refused(loaded, change, message):
    store = stored(loaded, texts())
    other = tiny()
    spec = None
    if "fingerprint" in change:
        other.fingerprint = change["fingerprint"]
    elif "tokenizer" in change:
        other.tokenizer.fingerprint = change["tokenizer"]
    else:
        spec = KeySpec(**change)
    with pytest.raises(IdentityError, match=f"does not belong.*{message}.*dump the store again"):
        check(store, other, spec)
    with pytest.raises(IdentityError):
        evaluate(other, HELD_OUT, store, keys=spec)
    check(store, loaded)
    check(reference.BruteForceStore(16), other, spec)  # made by hand: nothing to compare


def test_one_pass_without_neighbors_gives_what_they_give(loaded):
    store = stored(loaded, texts())
    whole = retrieve(loaded, HELD_OUT, store, k=6)
    settings = [Settings(0.3, 2.5, 6), Settings(0.6, 1.5, 4)]
    combiners = {f"{s.lambda_}": fixed(s) for s in settings}
    small = scoring.score(loaded, HELD_OUT, Retriever(store, Settings(k=6)), combiners)
    assert not hasattr(small, "distances")
    for setting, (name, combiner) in zip(settings, combiners.items(), strict=True):
        np.testing.assert_array_equal(small.log_p[name], whole.log_p_of(combiner))
        a, b = scoring.evaluated(small, combiner, name), score(whole, setting)
        np.testing.assert_array_equal(a.document_nll, b.document_nll)
        assert (a.retrieved, a.settings) == (b.retrieved, b.settings)
    assert evaluate(loaded, HELD_OUT, store, settings[1]).perplexity == a.perplexity
    with pytest.raises(TypeError, match="with its neighbors"):
        scoring.evaluated(small, combiners["0.3"])
    alone = scoring.score(loaded, HELD_OUT, keep_keys=True, keys=KeySpec(window=16))
    assert alone.keys.shape == (len(whole), 16)
    assert (alone.log_p, alone.hits) == ({}, None)


def test_many_neighbors_move_to_a_file(loaded, monkeypatch, tmp_path):
    store = stored(loaded, texts())
    expected = retrieve(loaded, HELD_OUT, store, k=6, shuffle_seed=1)
    monkeypatch.setattr("knnlm.system.growing_array.LIMIT", 200)
    found = retrieve(loaded, HELD_OUT, store, k=6, shuffle_seed=1)
    assert isinstance(found.distances, np.memmap)
    for name in ("distances", "match", "match_shuffled", "tokens", "log_p_lm"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert tune(found).to_dict(curves=True) == tune(expected).to_dict(curves=True)
    found.save(tmp_path / "cached")
    np.testing.assert_array_equal(type(found).load(tmp_path / "cached").distances, expected.distances)


def test_documents_of_a_store_are_listed_once_a_generation(loaded, tmp_path):
    with Datastore.create(
        tmp_path / "store", dim=16, keep_keys="float32", attributes=describe(loaded, KeySpec())
    ) as store:
        dump(loaded, texts(), store)
        listed = []
        original = store.document_spans
        store.document_spans = lambda: listed.append(1) or original()
        lm = KNNLM(loaded, store, temperature=2.0)
        values = [lm.perplexity(texts()[3].text) for _ in range(3)]
        lm.explain(texts()[3].text)
        assert len(listed) == 1
        assert len(set(values)) == 1
        assert stored_texts(store).find("", loaded.tokenizer.encode("abba")) is None
        store.add(np.zeros((4, 16), np.float32), loaded.tokenizer.encode("abba"), document="new")
        store.commit()
        assert stored_texts(store).find("", loaded.tokenizer.encode("abba")) == (len(store) - 4, len(store))
        assert len(listed) == 2


def test_queries_follow_the_arithmetic_of_the_keys(loaded):
    spec = KeySpec(autocast="bfloat16", key_dtype="float32")
    document = texts()[4]
    store = stored(loaded, [document], autocast="bfloat16", key_dtype="float32")
    assert store.attributes["autocast"] == "bfloat16"
    cached = retrieve(loaded, [document], store, k=1, exclude="none")
    assert (cached.distances == 0).all()  # the very keys
    assert KNNLM(loaded, store, temperature=1.0, k=1, lambda_=1.0).perplexity(document, exclude="none") == 1.0
    plain = stored(loaded, [document], key_dtype="float32")
    assert (retrieve(loaded, [document], plain, k=1, exclude="none").distances == 0).all()
    with pytest.raises(IdentityError, match="autocast"):
        retrieve(loaded, [document], plain, k=1, keys=spec)
    with pytest.raises(IdentityError, match="arithmetic"):
        dump(loaded, [document], plain, keys=spec)
    with pytest.raises(ValueError, match="int8"):
        KeySpec(autocast="int8")


def test_cache_and_ngram_are_blended_with_saved_weights(loaded):
    store = stored(loaded, texts())
    ngram = ngram_of(store, 3, 30)
    thetas = cache_thetas(4.0)
    cached = retrieve(loaded, texts(seed=1), store, k=6, cache_thetas=thetas, cache_metric="l2", ngram=ngram)
    tuned = tune(cached)
    knn = cached.log_p_knn(tuned.temperature, tuned.k)
    caches = {theta: cached.features[cache_name(theta)] for theta in thetas}
    both = fit_blend(cached.log_p_lm, knn, caches, cached.features["ngram"], metric="l2", order=3)
    assert both.theta in thetas
    assert sum(both.weights.values()) == pytest.approx(1)
    only = fit_blend(cached.log_p_lm, knn, caches, metric="l2")
    assert set(only.weights) == {"lm", "knn", "cache"}
    assert both.perplexity <= only.perplexity * (1 + 1e-6) <= tuned.perplexity * (1 + 2e-6)
    save_tuned(store, tuned, blends={"cache+ngram": both.to_dict(), "cache": only.to_dict()})
    held = [Doc("held", texts(seed=1)[4].text)]
    lm = KNNLM(loaded, store, cache=True, ngram=True)
    # By hand: the four columns of the document under the saved weights.
    columns = retrieve(
        loaded, held, store, k=tuned.k, cache_thetas=[both.theta], cache_metric="l2", ngram=KneserNey(3).fit(
            [loaded.tokenizer.encode(d.text) for d in texts() if d.text], 30
        ),
    )  # fmt: skip
    p = {
        "lm": np.exp(columns.log_p_lm.astype(float)),
        "knn": np.exp(columns.log_p_knn(tuned.temperature)),
        "cache": np.exp(columns.features[cache_name(both.theta)].astype(float)),
        "ngram": np.exp(columns.features["ngram"].astype(float)),
    }
    there = {name: ~np.isnan(x) for name, x in p.items()}
    weight = {name: both.weights[name] * there[name] for name in p}
    expected = sum(weight[name] * np.nan_to_num(p[name]) for name in p) / sum(weight.values())
    np.testing.assert_allclose(np.exp(lm.log_probs(held[0])), expected, rtol=1e-4)
    found = lm.evaluate(held)
    assert found.perplexity == pytest.approx(lm.perplexity(held[0]), rel=1e-5)
    assert found.settings["blend"]["weights"] == both.weights
    with pytest.raises(ValueError, match="knnlm tune STORE TEXT --ngram"):
        KNNLM(loaded, store, ngram=True)
    explained = lm.explain(held[0])
    np.testing.assert_array_equal(explained.log_p, lm.log_probs(held[0]))
    np.testing.assert_array_equal(explained.features["ngram"], columns.features["ngram"])
    tokens = loaded.tokenizer.encode("abc abd")
    steps = list(generate(loaded, tokens, store=store, blend=both, settings=lm.settings, max_new_tokens=8))
    whole = np.array([*tokens, *(step.id for step in steps)])
    scored = lm.log_probs(whole, exclude="none")[len(tokens) :]
    np.testing.assert_allclose([step.log_p for step in steps], scored, atol=1e-4)
    assert KNNLM(loaded, store, cache=True).generate("abc", max_new_tokens=3)


def test_a_larger_store_is_searched_as_a_smaller_one_would_be(loaded):
    store, half = stored(loaded, texts(seed=2)), stored(loaded, texts(seed=2)[:5])
    settings = Settings(0.5, 3.0, 5)
    found = size_curve(loaded, SCORED, store, settings, shares=[len(half) / len(store), 1])
    assert found.x == [len(half), len(store)]
    for perplexity, weight, part in zip(found.perplexity, found.lambda_, (half, store), strict=True):
        alone = retrieve(loaded, SCORED, part, k=5)
        assert perplexity == pytest.approx(score(alone, Settings(weight, 3.0, 5)).perplexity, rel=1e-5)
    assert found.fixed["lm_perplexity"] == pytest.approx(score(alone, Settings(0.0, 3.0, 5)).lm_perplexity)


@pytest.mark.parametrize("compacted", [False, True])
def test_deleted_entries_are_no_part_of_a_smaller_store(loaded, tmp_path, compacted):
    documents = [*texts(seed=2), Doc("late", "abc bad cafe. " * 9)]
    left = [document for document in documents if document.name not in ("doc 3", "doc 5")]
    spec = KeySpec(key_dtype="float32")
    with Datastore.create(tmp_path / "store", dim=16, keep_keys="float32") as store:
        dump(loaded, documents, store, keys=spec)
        store.delete(["doc 3", "doc 5"])
        if compacted:
            store.compact()
        half = stored(loaded, left[:-1], key_dtype="float32")
        found = size_curve(loaded, SCORED, store, Settings(0.5, 3.0, 5), shares=[len(half) / len(store), 1])
    whole = stored(loaded, left, key_dtype="float32")
    assert found.x == [len(half), len(whole)]
    for perplexity, weight, part in zip(found.perplexity, found.lambda_, (half, whole), strict=True):
        alone = retrieve(loaded, SCORED, part, k=5)
        assert perplexity == pytest.approx(score(alone, Settings(weight, 3.0, 5)).perplexity, rel=1e-5)
