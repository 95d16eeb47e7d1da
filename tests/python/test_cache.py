"""The continuous cache against a loop over positions, and the running cache against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm.cache import continuous_cache_log_p
from knnlm.mixture import mix_log_p


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
    both = np.stack([log_p, np.where(np.isnan(log_cache), 0.0, log_cache)])
    mixed = mix_log_p(both, [0.6, 0.4], ~np.isnan([log_p, log_cache]))
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
