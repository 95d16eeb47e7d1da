"""Tuning: lambda, T and k against brute force over a grid, curves, joint weights, and what is saved."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from method import interpolate, log_p, score

from knnlm import reference
from knnlm.evaluate.tune import best_lambda, powers_of_two, save_tuned, tune
from knnlm.lm.retrieved_text import RetrievedText
from knnlm.lm.scored_text import evaluation
from knnlm.lm.settings import Settings, settings_of
from knnlm.probability.mix import mix
from knnlm.probability.weights import fit_weights


def made(n=400, k=24, seed=0, metric="l2", scale=5.0):
    """Neighbors that are right more often the nearer they are."""
    rng = np.random.default_rng(seed)
    distances = np.sort(rng.gamma(4, scale, (n, k)).astype(np.float32), 1)
    match = rng.random((n, k)) < 0.5 * np.exp(-distances / scale / 3)
    match[rng.random(n) < 0.3] = False
    if metric == "ip":
        distances = -distances
    lm = np.log(rng.beta(0.5, 2, n)).astype(np.float32)
    return RetrievedText(
        log_p_lm=lm,
        distances=distances,
        match=match,
        metric=metric,
        offsets=np.array([0, n // 3, n // 3, n]),
        words=np.array([90, 0, 200]),
    )


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_the_smallest_temperatures_are_the_nearest_alone(metric):
    cached = made(50, 8, metric=metric)
    cached.distances[0, :2] = cached.distances[0, 0]  # a tie
    cached.match[0, :2] = [True, False]
    nearest = cached.match[:, 0].astype(float)
    nearest[0] = 0.5
    for temperature in (1e-30, 1e-38, 1e-45, 5e-324):
        np.testing.assert_allclose(np.exp(cached.log_p_knn(temperature)), nearest, atol=1e-6)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_log_p_knn_equals_the_reference_for_every_k(metric):
    cached = made(60, 13, metric=metric)
    cached.distances[3, 5:] = cached.distances[4] = np.inf if metric == "l2" else -np.inf
    cached.match[3, 5:] = cached.match[4] = False
    ks = powers_of_two(13)
    assert ks == [1, 2, 4, 8, 13]
    for temperature in (0.3, 7.0, 500.0):
        for k, row in zip(ks, cached.log_p_knn_by_k(temperature, ks), strict=True):
            expected = [
                reference.p_knn(d, m.astype(int), 2, temperature, metric)[1] if np.isfinite(d[0]) else np.nan
                for d, m in zip(cached.distances[:, :k], cached.match[:, :k], strict=True)
            ]
            np.testing.assert_allclose(np.exp(row), expected, atol=1e-6)
            np.testing.assert_allclose(row, cached.log_p_knn(temperature, k), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0, 1), st.floats(0, 1))
def test_best_lambda_beats_every_other(seed, n, zeros, nans):
    rng = np.random.default_rng(seed)
    lm = np.log(rng.beta(0.5, 1, n))
    with np.errstate(divide="ignore"):
        knn = np.log(np.where(rng.random(n) < zeros, 0, rng.beta(0.5, 1, n)))
    knn[rng.random(n) < nans] = np.nan
    weight, mean = best_lambda(lm, knn)
    assert 0 <= weight <= 1
    assert mean == pytest.approx(np.mean(interpolate(lm, knn, weight)), abs=1e-9)
    for other in np.linspace(0, 1, 41):
        assert np.mean(interpolate(lm, knn, other)) <= mean + 1e-9


def test_best_lambda_at_its_ends():
    assert best_lambda(np.log([0.5, 0.5]), np.array([-np.inf, -np.inf]))[0] == 0
    assert best_lambda(np.log([0.5, 0.5]), np.log([0.9, 0.9]))[0] == 1
    assert best_lambda(np.array([-800.0]), np.array([-1.0]))[0] == 1
    assert best_lambda(np.array([-1.0]), np.array([np.nan])) == (0.0, -1.0)


@pytest.mark.parametrize("n", [1, 9, 300])
def test_few_tokens_do_not_switch_the_model_off(n):
    lm, distances = np.full(n, np.log(0.1), np.float32), np.tile(np.arange(4, dtype=np.float32), (n, 1))
    match = np.ones((n, 4), bool)
    tuned = tune(
        RetrievedText(
            log_p_lm=lm, distances=distances, match=match, metric="l2", offsets=np.array([0, n]), words=np.array([n])
        )
    )
    assert tuned.lambda_ == n / (n + 1)
    assert tuned.perplexity == pytest.approx(1 / (0.1 / (n + 1) + n / (n + 1)), rel=1e-6)
    match[0] = False
    tuned = tune(
        RetrievedText(
            log_p_lm=lm, distances=distances, match=match, metric="l2", offsets=np.array([0, n]), words=np.array([n])
        )
    )
    assert tuned.lambda_ < n / (n + 1)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_tuned_is_the_best_of_a_dense_grid(metric):
    cached = made(metric=metric)
    tuned = tune(cached)
    best = min(
        np.exp(-best_lambda(cached.log_p_lm, cached.log_p_knn(t, k))[1])
        for t in np.geomspace(0.1, 1000, 200)
        for k in powers_of_two(cached.k)
    )
    assert tuned.perplexity <= best * 1.0002
    assert tuned.perplexity < tuned.lm_perplexity
    result = score(cached, Settings(tuned.lambda_, tuned.temperature, tuned.k))
    assert result.perplexity == pytest.approx(tuned.perplexity, rel=1e-6)
    assert result.lm_perplexity == pytest.approx(tuned.lm_perplexity, rel=1e-6)


def test_curves():
    cached = made()
    tuned = tune(cached)
    by_lambda, by_temperature, by_k = (tuned.curves[name] for name in ("lambda_", "temperature", "k"))
    for curve in (by_lambda, by_temperature, by_k):
        assert curve.x == sorted(curve.x)
        assert len(curve.x) == len(curve.perplexity) == len(curve.lambda_)
        assert min(curve.perplexity) == pytest.approx(tuned.perplexity, rel=1e-6)
    assert by_lambda.x[0] == 0
    assert by_lambda.perplexity[0] == pytest.approx(tuned.lm_perplexity)
    assert by_lambda.x[-1] == 1
    assert by_lambda.perplexity[-1] == np.inf  # some targets were not retrieved
    assert by_k.x == [1, 2, 4, 8, 16, 24]
    assert by_k.fixed == {"temperature": tuned.temperature}


def test_the_scale_of_distances_does_not_matter():
    a, b = tune(made(scale=5.0)), tune(made(scale=5e5))
    assert b.temperature == pytest.approx(a.temperature * 1e5, rel=0.02)
    assert b.perplexity == pytest.approx(a.perplexity, rel=1e-4)
    cached = made()
    cached.default_temperature = 1e-4  # a bad guess is left behind
    assert tune(cached).perplexity == pytest.approx(a.perplexity, rel=1e-3)


def test_useless_neighbors_leave_the_lm_alone():
    cached = made()
    cached.match[:] = False
    tuned = tune(cached)
    assert tuned.lambda_ == 0
    assert tuned.perplexity == tuned.lm_perplexity
    none = RetrievedText(
        log_p_lm=cached.log_p_lm, distances=np.full((400, 3), np.inf, np.float32), match=np.zeros((400, 3), bool)
    )
    assert tune(none).lambda_ == 0
    with pytest.raises(ValueError, match="validation text"):
        tune(
            RetrievedText(
                log_p_lm=np.zeros(0, np.float32), distances=np.zeros((0, 2), np.float32), match=np.zeros((0, 2), bool)
            )
        )


def test_fixed_temperature_and_given_grids():
    cached = made()
    assert tune(cached, temperature=7.5).temperature == 7.5
    assert tune(cached, ks=[2, 1000]).k in (2, 24)
    tuned = tune(cached, temperatures=[1, 10, 100], refine=0)
    assert tuned.temperature in (1, 10, 100)


def test_tuned_settings_are_remembered_by_the_store():
    store = reference.BruteForceStore(4)
    store.add(np.zeros((50, 4)), np.zeros(50, int))
    assert settings_of(store) == Settings(0.25, 1.0, 50)
    store.set_attributes({"model": {"name": "m"}})
    tuned = tune(made())
    save_tuned(store, tuned, nprobe=16, rerank=None)
    json.dumps(store.attributes)
    assert store.attributes["model"] == {"name": "m"}
    assert settings_of(store) == Settings(tuned.lambda_, tuned.temperature, tuned.k, nprobe=16)
    assert settings_of(store, lambda_=0.0, k=None).lambda_ == 0
    assert settings_of(store, lambda_=0.0).k == tuned.k


def test_joint_weights():
    rng = np.random.default_rng(0)
    a, b, c = np.log(rng.beta(1, 2, (3, 3000)))
    c[:100] = np.nan  # a cache that is empty at first
    parts = {"lm": a, "knn": b, "cache": c}
    fitted = fit_weights(parts)
    assert sum(fitted.weights.values()) == pytest.approx(1)
    log_p = mix(parts, fitted.weights)
    assert fitted.perplexity == pytest.approx(reference.perplexity(log_p))
    for name in parts:
        moved = {n: (w + (n == name) * 0.05) / 1.05 for n, w in fitted.weights.items()}
        assert reference.perplexity(mix(parts, moved)) >= fitted.perplexity * (1 - 1e-4)
    two = fit_weights({"lm": a, "knn": b})
    assert two.weights["knn"] == pytest.approx(best_lambda(a, b)[0], abs=2e-3)
    with pytest.raises(ValueError, match="weights"):
        mix(parts, {"lm": 0.5, "words": 0.5})


def test_evaluation_sums_by_document():
    cached = made()
    result = score(cached, Settings(0.3, 9.0, 8))
    log_p = interpolate(cached.log_p_lm, cached.log_p_knn(9.0, 8), 0.3)
    np.testing.assert_array_equal(result.document_tokens, [133, 0, 267])
    np.testing.assert_allclose(result.document_nll, [-log_p[:133].sum(), 0, -log_p[133:].sum()])
    assert result.perplexity == pytest.approx(reference.perplexity(log_p))
    assert result.word_perplexity == pytest.approx(reference.perplexity(log_p, 290))
    assert result.settings["k"] == 8
    json.dumps(result.to_dict())
    log_p[5] = -np.inf
    assert np.isinf(evaluation(cached, log_p, {}).document_nll).tolist() == [True, False, False]


def test_saved_and_loaded(tmp_path):
    cached = made()
    cached.features = {"entropy": cached.log_p_lm * 2}
    cached.match_shuffled = cached.match[::-1].copy()
    cached.values = cached.match.astype(np.uint32)
    cached.names = ["a", "b", "ü"]
    cached.settings = {"k": 24, "exact": True}
    cached.save(tmp_path / "cached.safetensors")
    again = RetrievedText.load(tmp_path / "cached.safetensors")
    for name in ("log_p_lm", "distances", "match", "match_shuffled", "values", "offsets", "words"):
        np.testing.assert_array_equal(getattr(again, name), getattr(cached, name))
    assert again.match.dtype == bool
    assert (again.names, again.settings, again.metric) == (cached.names, cached.settings, cached.metric)
    np.testing.assert_array_equal(again.features["entropy"], cached.features["entropy"])
    assert tune(again).perplexity == tune(cached).perplexity
    np.testing.assert_array_equal(again.shuffled().match, cached.match_shuffled)
    np.testing.assert_array_equal(log_p(again, Settings(0.0, 1.0)), cached.log_p_lm)
    (tmp_path / "bad").write_bytes(b"not a cache")
    with pytest.raises(ValueError, match="neighbors of a text"):
        RetrievedText.load(tmp_path / "bad")
    with pytest.raises(ValueError, match="shuffle_seed"):
        made().shuffled()
    with pytest.raises(ValueError, match="expected distances"):
        RetrievedText(
            log_p_lm=np.zeros(3, np.float32), distances=np.zeros((2, 4), np.float32), match=np.zeros((2, 4), bool)
        )
