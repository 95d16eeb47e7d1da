"""EM weights against a grid, and the exact ends of the mixture."""

import numpy as np
import pytest

from knnlm.probability.mix import mix
from knnlm.probability.weights import em_weights


def mixture(log_ps, weights, available=None):
    """Of models by number, the first of which is the LM."""
    x = np.array(log_ps) if available is None else np.where(available, log_ps, np.nan)
    names = ["lm", "b", "c"][: len(x)]
    return mix(dict(zip(names, x, strict=True)), dict(zip(names, weights, strict=True)))


def test_where_nothing_with_weight_is_left_p_is_that_of_the_model():
    mixed = mix({"lm": [-1.0, -2.0], "knn": [np.nan, -3.0]}, {"lm": 0.0, "knn": 1.0})
    assert mixed.tolist() == [-1.0, -3.0]
    by_row = mix({"lm": [-1.0, -2.0], "knn": [-4.0, -3.0]}, {"lm": [1.0, 0.0], "knn": [0.0, 1.0]})
    assert by_row.tolist() == [-1.0, -3.0]


def models(seed=0, n=4000):
    """Two models that are good on different tokens, and one that copies (probability 0 elsewhere)."""
    rng = np.random.default_rng(seed)
    p = rng.beta(0.6, 2, size=(3, n))
    p[2, rng.random(n) < 0.6] = 0.0
    with np.errstate(divide="ignore"):
        return np.log(p)


def test_em_finds_the_best_point_of_a_grid():
    x = models()
    weights = em_weights(x)
    assert weights.sum() == pytest.approx(1.0)
    best = mixture(x, weights).mean()
    for a in np.arange(0.02, 0.97, 0.05):
        for b in np.arange(0.02, 1 - a, 0.05):
            assert mixture(x, [a, b, 1 - a - b]).mean() <= best + 1e-6


def test_a_useless_model_gets_no_weight_and_a_perfect_one_gets_all():
    x = np.log(np.array([np.full(500, 0.3), np.full(500, 0.01), np.full(500, 0.9)]))
    assert em_weights(x) == pytest.approx([0, 0, 1], abs=1e-4)


def test_the_ends_are_exact():
    x = models()
    np.testing.assert_array_equal(mixture(x, [1, 0, 0]), x[0])
    np.testing.assert_array_equal(mixture(x, [0, 0, 1]), x[2])
    np.testing.assert_allclose(np.exp(mixture(x, [0.5, 0.2, 0.3])), np.array([0.5, 0.2, 0.3]) @ np.exp(x))


def test_a_missing_model_gives_its_weight_away():
    x = models(n=10)
    available = np.ones((3, 10), dtype=bool)
    available[2, 0] = False
    mixed = np.exp(mixture(x, [0.6, 0.2, 0.2], available))
    assert mixed[0] == pytest.approx(0.75 * np.exp(x[0, 0]) + 0.25 * np.exp(x[1, 0]))
    np.testing.assert_allclose(mixed[1:], np.array([0.6, 0.2, 0.2]) @ np.exp(x[:, 1:]))
    np.testing.assert_allclose(em_weights(x, available), em_weights(x[:, 1:]))


def test_tokens_without_any_probability_do_not_break_em():
    x = np.array([[-1.0, -np.inf, -2.0], [-2.0, -np.inf, -1.0]])
    assert em_weights(x) == pytest.approx([0.5, 0.5])
    assert mixture(x, [0.5, 0.5])[1] == -np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: em_weights(np.zeros(3)), r"\(c, n\), found shape \(3,\)"),
        (lambda: em_weights(np.full((2, 3), np.nan)), "NaN"),
        (lambda: em_weights(np.full((2, 3), -np.inf)), "found none"),
        (lambda: mixture(np.zeros((2, 3)), [0.5, 0.6]), "sum 1"),
        (lambda: mixture(np.zeros((2, 3)), [1.5, -0.5]), "between 0 and 1"),
        (lambda: mix({"lm": [0.0]}, {"lm": 0.5, "knn": 0.5}), "'knn', which is not there"),
        (lambda: mix({"knn": [0.0]}, {"knn": 1.0}), '"lm"'),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
