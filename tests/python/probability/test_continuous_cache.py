"""The continuous cache against a loop over positions, and the running cache against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm.probability.continuous_cache import ContinuousCache, continuous_cache_log_p, theta_of
from knnlm.probability.knn import log_p_knn
from knnlm.probability.mix import mix
from knnlm.reference import BruteForceStore
from knnlm.store.protocols import Searchable


def loop(keys, targets, theta, size, metric):
    """Equation 3 of the paper, one position and one pair at a time."""
    keys = keys.astype(np.float64)
    out = np.full(len(keys), -np.inf)
    out[0] = np.nan
    for t in range(1, len(keys)):
        scores = {}
        for i in range(max(0, t - size), t):
            s = keys[t] @ keys[i] if metric == "ip" else -((keys[t] - keys[i]) ** 2).sum()
            scores.setdefault(targets[i], []).append(theta * s)
        if targets[t] in scores:
            everything = np.concatenate(list(scores.values()))
            out[t] = np.logaddexp.reduce(scores[targets[t]]) - np.logaddexp.reduce(everything)
    return out


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("size", [1, 7, 300, 5000])
def test_equals_the_loop_over_positions(metric, size):
    rng = np.random.default_rng(size)
    keys = rng.normal(size=(600, 6)).astype(np.float32)
    targets = rng.integers(0, 20, 600)
    for theta in (0.0, 0.3, 2.0):
        expected = loop(keys, targets, theta, size, metric)
        found = continuous_cache_log_p(keys, targets, theta, size, metric)
        np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        known = np.isfinite(expected)
        np.testing.assert_allclose(found[known], expected[known], atol=2e-5)
    many = continuous_cache_log_p(keys, targets, [0.3, 2.0], size, metric)
    np.testing.assert_array_equal(many[1], continuous_cache_log_p(keys, targets, 2.0, size, metric))


@given(length=st.integers(0, 40), size=st.integers(1, 50), theta=st.floats(0, 1e4), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_probabilities_of_all_words_sum_to_one(length, size, theta, seed):
    rng = np.random.default_rng(seed)
    keys, targets = rng.normal(size=(length + 1, 3)), rng.integers(0, 4, length + 1)
    p = []
    for word in range(4):
        targets[-1] = word
        p.append(np.exp(continuous_cache_log_p(keys, targets, theta, size)[-1]))
    assert sum(p) == pytest.approx(1.0 if length else np.nan, nan_ok=True)


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_the_cache_is_searched_like_any_datastore(metric):
    rng = np.random.default_rng(3)
    keys, values = rng.integers(-2, 3, (40, 4)).astype(np.float32), rng.integers(0, 9, 40)  # many equal distances
    queries, exclude = rng.integers(-2, 3, (5, 4)).astype(np.float32), np.array([[0, 20]] * 5)
    cache, whole = ContinuousCache(4, size=30, metric=metric), BruteForceStore(4, metric)
    whole.add(keys, values)
    for start in range(0, 40, 7):
        cache.add(keys[start : start + 7], values[start : start + 7])
    assert isinstance(cache, Searchable)
    assert len(cache) == 30
    for k in (1, 8, 50):  # the first ten were pushed out
        gone = np.array([[0, 10]] * 5)
        for found, expected in (
            (cache.search(queries, k), whole.search(queries, k, exclude=gone)),
            (cache.search(queries, k, exclude=exclude), whole.search(queries, k, exclude=exclude)),
        ):
            np.testing.assert_array_equal(found.ids, expected.ids)
            np.testing.assert_array_equal(found.values, expected.values)
            np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-6)
    assert cache.search(queries[0], 3).ids.shape == (3,)
    assert ContinuousCache(4).search(queries, 2).ids.tolist() == [[-1, -1]] * 5
    for wrong in (lambda: cache.search(queries, 0), lambda: cache.search(keys[:, :3], 1), lambda: cache.add(keys, [1])):
        with pytest.raises(ValueError, match="expected"):
            wrong()


@pytest.mark.parametrize("theta", [0.7, "auto"])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_scoring_equals_searching_one_position_at_a_time(metric, theta):
    rng = np.random.default_rng(4)
    keys, targets = rng.normal(size=(300, 5)).astype(np.float32), rng.integers(0, 6, 300)
    scored = continuous_cache_log_p(keys, targets, theta, 50, metric)
    cache = ContinuousCache(5, 50, metric)
    for t in range(len(keys)):
        if t:
            found = cache.search(keys[t], len(cache))
            scores = found.distances if metric == "ip" else -found.distances
            temperature = 1 / (theta_of(scores) if theta == "auto" else theta)
            assert log_p_knn(found, targets[t], temperature) == pytest.approx(scored[t], abs=1e-3)
        cache.add(keys[t : t + 1], targets[t : t + 1])
    changed = targets.copy()
    changed[200:] = 99
    np.testing.assert_array_equal(continuous_cache_log_p(keys, changed, theta, 50, metric)[:200], scored[:200])


def test_theta_of_a_query():
    assert theta_of(-np.arange(100.0)) == 6 / 10
    assert theta_of([-1.0, -4.0]) == 2.0
    assert theta_of([-3.0]) == theta_of([]) == theta_of([2.0, 2.0]) == 1.0


def test_flat_cache_counts_words_and_sharp_cache_copies_the_nearest():
    keys = np.array([[0.0, 9.0], [10.0, 0.0], [8.0, 0.0], [9.0, 0.0]])
    targets = np.array([5, 6, 5, 5])
    assert np.exp(continuous_cache_log_p(keys, targets, 0.0)) == pytest.approx([np.nan, 0, 1 / 2, 2 / 3], nan_ok=True)
    assert continuous_cache_log_p(keys, targets, 1e3)[-1] < -100  # the largest product has another word
    assert np.exp(continuous_cache_log_p(keys, targets, 1e3, metric="l2")[-1]) == pytest.approx(0.5)  # a tie


def test_no_weight_at_the_start_of_a_document():
    log_p = np.log([0.25, 0.5, 0.125])
    log_cache = continuous_cache_log_p(np.ones((3, 2)), np.array([7, 7, 8]), 1.0)
    assert log_cache.tolist()[1:] == [0.0, -np.inf]
    mixed = mix({"lm": log_p, "cache": log_cache}, {"lm": 0.6, "cache": 0.4})
    assert np.exp(mixed) == pytest.approx([0.25, 0.3 + 0.4, 0.6 * 0.125])
    assert np.exp(continuous_cache_log_p(np.ones((1, 2)), [3], [1.0, 2.0])).shape == (2, 1)
    assert continuous_cache_log_p(np.ones((0, 2)), np.zeros(0, int), 1.0).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: continuous_cache_log_p(np.ones((3, 2)), np.ones(2, int), 1.0), r"found \(3, 2\) and \(2,\)"),
        (lambda: continuous_cache_log_p(np.ones((3, 2)), np.ones(3, int), 1.0, metric="cos"), "found 'cos'"),
        (lambda: continuous_cache_log_p(np.ones((3, 2)), np.ones(3, int), -1.0), "theta >= 0"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
