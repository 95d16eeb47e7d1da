"""Mixing the words that neighbors hold, and all others at once, against mixing all of them one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from knnlm.hf.few_words import few_words, mix_in_place
from knnlm.probability.fixed import Fixed
from knnlm.store.neighbors import Neighbors, missing_value

V, Q, K = 97, 6, 20


def neighbors(rng, metric="l2", dtype=np.uint16):
    distances = np.sort(rng.random((Q, K)), axis=1).astype(np.float32)
    distances = distances if metric == "l2" else -distances
    ids = rng.integers(0, 1000, (Q, K))
    values = rng.integers(0, V, (Q, K)).astype(dtype)
    for row, missing in ((2, 5), (3, K)):  # row 3 has found nothing
        distances[row, K - missing :] = np.inf if metric == "l2" else -np.inf
        ids[row, K - missing :] = -1
        values[row, K - missing :] = missing_value(dtype)
    return Neighbors(distances, values, ids, metric)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("lambda_", [0.3, 1.0, "by row"])
@pytest.mark.parametrize("some", [False, True])
def test_the_mixture_is_that_of_all_words(metric, dtype, lambda_, some):
    rng = np.random.default_rng(1)
    found = neighbors(rng, metric, dtype)
    combiner = Fixed(rng.random(Q) if lambda_ == "by row" else lambda_, 0.2, 15)
    logits = torch.from_numpy(rng.normal(size=(Q + 3, V)).astype(np.float32))
    logits[:, 5] = -torch.inf
    log_p = torch.log_softmax(logits, -1)
    at = torch.tensor([7, 0, 2, 8, 4, 5]) if some else None
    given = log_p.clone() if some else log_p[:Q].clone()
    mix_in_place(given, at, found, combiner)
    rows = slice(None) if at is None else at
    expected = log_p[: len(given)].clone()
    expected[rows] = torch.from_numpy(combiner.log_p(expected[rows].numpy(), found, {}).astype(np.float32))
    torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-6)
    assert (given.double().exp().sum(-1) - 1).abs().max() < 1e-6
    if lambda_ == 1.0:
        assert torch.equal(torch.isinf(given), torch.isinf(expected))


def test_numbers_are_of_words_in_order():
    rng = np.random.default_rng(2)
    found = neighbors(rng)
    few = few_words(found)
    for row in range(Q):
        words = np.unique(found.values[row][found.found[row]])
        own = few.rows == row
        np.testing.assert_array_equal(few.words[own], words)
        np.testing.assert_array_equal(few.numbers[own], np.arange(len(words)))
        held = few.neighbors.values[row][found.found[row]]
        np.testing.assert_array_equal(words[held], found.values[row][found.found[row]])
    assert few.most == max(len(np.unique(found.values[row][found.found[row]])) for row in range(Q))
    none = few_words(found[3:4])
    assert (len(none.words), none.most) == (0, 0)


def test_a_word_that_the_model_does_not_have_is_refused():
    found = neighbors(np.random.default_rng(3))
    with pytest.raises(ValueError, match=r"holds token \d+, the model has 50 tokens"):
        mix_in_place(torch.zeros(Q, 50), None, found, Fixed(0.5, 1.0))
