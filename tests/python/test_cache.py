"""The continuous cache against a loop over positions, and the running cache against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm.cache import RunningCache, continuous_cache_log_p
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


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_running_cache_is_p_cache_through_search(metric):
    rng = np.random.default_rng(1)
    keys, targets, theta, size = rng.normal(size=(50, 4)), rng.integers(0, 5, 50), 0.7, 16
    cache = RunningCache(4, size, metric)
    expected = continuous_cache_log_p(keys, targets, theta, size, metric)
    for t in range(50):
        found = cache.search(keys[t], size)
        sign = 1 if metric == "ip" else -1
        weights = np.exp(sign * theta * found.distances.astype(np.float64))  # missing: exp(-inf) = 0
        hit = weights[found.values == targets[t]].sum()
        if hit:
            assert np.log(hit / weights.sum()) == pytest.approx(expected[t], abs=1e-4)
        else:
            assert expected[t] == -np.inf or t == 0
        assert cache.append(keys[t], targets[t]) == range(t, t + 1)
    assert len(cache) == size


def test_running_cache_equals_brute_force_with_ties_exclusion_and_missing():
    rng = np.random.default_rng(2)
    keys = rng.integers(-2, 3, size=(90, 3)).astype(np.float32)  # many equal distances
    cache = RunningCache(3, size=40)
    for start in (0, 7, 30):
        cache.append(keys[start : {0: 7, 7: 30, 30: 90}[start]], np.arange(start, {0: 7, 7: 30, 30: 90}[start]))
    ids = np.arange(50, 90)
    queries = rng.integers(-2, 3, size=(5, 3)).astype(np.float32)
    ranges = np.array([[0, 0], [50, 60], [88, 95], [0, 90], [70, 71]])
    found = cache.search(queries, 45, exclude=ranges, nprobe=3, exact=True)
    for row in range(5):
        left = ids[(ids < ranges[row, 0]) | (ids >= ranges[row, 1])]
        d = ((keys[left] - queries[row]) ** 2).sum(axis=1)
        order = np.lexsort((left, d))
        np.testing.assert_array_equal(found.ids[row, : len(left)], left[order])
        np.testing.assert_array_equal(found.values[row, : len(left)], left[order])
        np.testing.assert_array_equal(found.distances[row, : len(left)], d[order])
        assert (found.ids[row, len(left) :] == -1).all()
        assert np.isposinf(found.distances[row, len(left) :]).all()
        assert (found.values[row, len(left) :] == 0xFFFFFFFF).all()
    assert found.distances.dtype == np.float32
    assert found.ids.dtype == np.int64
    assert found.values.dtype == np.uint32


def test_empty_and_cleared_cache_answer_missing():
    cache = RunningCache(2, size=3, metric="ip")
    cache.append(np.ones((5, 2)), np.arange(5))
    assert cache.search(np.ones((1, 2)), 2).ids.tolist() == [[2, 3]]
    cache.clear()
    found = cache.search(np.ones(2), 2)
    assert len(cache) == 0
    assert found.ids.tolist() == [-1, -1]
    assert np.isneginf(found.distances).all()
    assert cache.append(np.ones(2), 1) == range(0, 1)


def test_torch_tensors_are_accepted():
    torch = pytest.importorskip("torch")
    cache = RunningCache(2)
    cache.append(torch.ones(3, 2, dtype=torch.bfloat16), np.array([1, 2, 3], dtype=np.uint32))
    assert cache.search(torch.ones(1, 4, 2), 3).values.tolist() == [[[1, 2, 3]] * 4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: continuous_cache_log_p(np.ones((3, 2)), np.ones(2, int), 1.0), r"found \(3, 2\) and \(2,\)"),
        (lambda: continuous_cache_log_p(np.ones((3, 2)), np.ones(3, int), 1.0, metric="cos"), "found 'cos'"),
        (lambda: continuous_cache_log_p(np.ones((3, 2)), np.ones(3, int), -1.0), "theta >= 0"),
        (lambda: RunningCache(0), "at least 1"),
        (lambda: RunningCache(2, metric="cos"), "found 'cos'"),
        (lambda: RunningCache(2).append(np.ones((1, 3)), [1]), "the dimension of the store, found"),
        (lambda: RunningCache(2).append(np.ones((1, 2)), [1, 2]), "one value for each of 1 keys"),
        (lambda: RunningCache(2).append(np.full((1, 2), np.nan), [1]), "keys must be finite"),
        (lambda: RunningCache(2).append(np.ones((1, 2)), [2**32]), "32-bit values"),
        (lambda: RunningCache(2).search(np.ones(2), 0), "k of at least 1"),
        (lambda: RunningCache(2).search(np.ones(2), 1, exclude=[[0, 1], [0, 1]]), r"shape \(2,\), a range"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
