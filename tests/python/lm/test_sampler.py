"""The sampler against sorting the whole vocabulary: the same tokens, the same probabilities, the same draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm.lm import sampler
from knnlm.lm.sampler import GREEDY, Sampling, best, draw, kept


def sorted_kept(log_p, sampling):
    """By definition: all tokens sorted, best first, ties by id; then top_k, then top_p."""
    scores = np.asarray(log_p, np.float64)
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(scores[order])]
    if not sampling.do_sample:
        return order[:1], np.ones(1)
    order = order[: sampling.top_k]
    p = np.exp((scores[order] - scores[order[0]]) / sampling.temperature)
    p /= p.sum()
    if sampling.top_p is not None:
        count = int(np.searchsorted(np.cumsum(p), sampling.top_p * (1 - 1e-12))) + 1
        order, p = order[:count], p[:count] / p[:count].sum()
    return order, p


@st.composite
def cases(drawn):
    rng = np.random.default_rng(drawn(st.integers(0, 10**9)))
    v = drawn(st.sampled_from([1, 2, 7, 50, 300, 3000]))
    scores = rng.normal(0, drawn(st.sampled_from([0.01, 1.0, 5.0])), v)
    if drawn(st.booleans()):
        scores = np.round(scores, 1)  # ties
    if drawn(st.booleans()):
        scores[rng.random(v) < 0.5] = -np.inf
        scores[rng.integers(v)] = 0.0
    temperature = drawn(st.sampled_from([0.0, 0.3, 1.0, 2.5]))
    top_k = drawn(st.sampled_from([None, 1, 3, 40, 400]))
    top_p = drawn(st.sampled_from([None, 1e-9, 0.1, 0.5, 0.9, 0.999, 1.0]))
    sampling = Sampling(True, temperature, top_k, top_p) if temperature else GREEDY
    return scores.astype(drawn(st.sampled_from([np.float32, np.float64]))), sampling


@settings(max_examples=300, deadline=None)
@given(cases())
def test_what_is_kept_is_what_sorting_keeps(case):
    log_p, sampling = case
    tokens, p = kept(log_p, sampling)
    expected_tokens, expected_p = sorted_kept(log_p, sampling)
    np.testing.assert_array_equal(tokens, expected_tokens)
    np.testing.assert_allclose(p, expected_p, rtol=1e-9)


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 10**9))
def test_draws_are_those_of_the_sorted_tokens(case, seed):
    log_p, sampling = case
    tokens, p = sorted_kept(log_p, sampling)
    mine, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
    for _ in range(5):
        token = draw(log_p, sampling, mine)
        at = 0 if len(tokens) == 1 else int(np.searchsorted(np.cumsum(p), theirs.random(), side="right"))
        assert token == tokens[min(at, len(tokens) - 1)]


def test_the_vocabulary_is_not_sorted(monkeypatch):
    sizes = []
    original = np.argsort
    monkeypatch.setattr(sampler.np, "argsort", lambda a, **more: sizes.append(len(a)) or original(a, **more))
    rng = np.random.default_rng(0)
    log_p = rng.normal(0, 1, 50_000)
    log_p[[5, 9, 11]] = 20.0
    drawing = ((), (1.0, 40), (1.0, None, 0.9), (0.7, 100, 0.95))
    for sampling in (GREEDY, *(Sampling(True, *how) for how in drawing)):
        draw(log_p, sampling, rng)
    assert max(sizes) <= 256


def test_best_takes_ties_by_index():
    assert best(np.array([1.0, 3.0, 3.0, 3.0, 2.0]), 2).tolist() == [1, 2]
    assert best(np.array([-np.inf, 3.0, -np.inf]), 2).tolist() == [1]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(True), Sampling(True, top_k=2), Sampling(True, top_p=0.5)])
def test_nan_is_said(sampling):
    with pytest.raises(ValueError, match="found NaN"):
        draw([0.0, np.nan, -1.0], sampling, np.random.default_rng(0))
    with pytest.raises(ValueError, match="positive probability"):
        draw([-np.inf, -np.inf], sampling, np.random.default_rng(0))
