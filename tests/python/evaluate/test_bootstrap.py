"""The paired bootstrap: known coverage on simulated documents, agreement with a loop, and its limits."""

import numpy as np
import pytest

from knnlm.evaluate.bootstrap import paired_bootstrap


def simulate(rng, documents, gain):
    """Documents whose mean loss varies a lot between them but whose paired gain varies little."""
    tokens = rng.integers(200, 400, documents)
    level = rng.normal(4.0, 0.5, documents)
    step = rng.normal(gain, 0.05, documents)
    return tokens * level, tokens * (level - step), tokens


def test_coverage_is_near_the_level():
    rng = np.random.default_rng(0)
    true_ratio = simulate(rng, 400_000, 0.03)
    truth = np.exp((true_ratio[1].sum() - true_ratio[0].sum()) / true_ratio[2].sum())
    hits, misses_below = 0, 0
    for trial in range(400):
        a, b, n = simulate(rng, 50, 0.03)
        found = paired_bootstrap(a, b, n, samples=500, seed=trial)
        hits += found.ratio_low <= truth <= found.ratio_high
        misses_below += truth < found.ratio_low
    assert 0.90 <= hits / 400 <= 0.98
    assert 0 < misses_below < 400 - hits  # errors on both sides: the interval is not shifted


def test_equals_a_loop_over_resamples():
    rng = np.random.default_rng(5)
    a, b, n = simulate(rng, 30, 0.1)
    ratios, differences = [], []
    for _ in range(4000):
        drawn = rng.integers(0, 30, 30)
        ppl_a = np.exp(a[drawn].sum() / n[drawn].sum())
        ppl_b = np.exp(b[drawn].sum() / n[drawn].sum())
        ratios.append(ppl_b / ppl_a)
        differences.append(ppl_b - ppl_a)
    found = paired_bootstrap(a, b, n)
    assert [found.ratio_low, found.ratio_high] == pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=0.002)
    assert [found.difference_low, found.difference_high] == pytest.approx(
        np.quantile(differences, [0.025, 0.975]), abs=0.25
    )
    assert found.perplexity_a == pytest.approx(np.exp(a.sum() / n.sum()))
    assert found.ratio == pytest.approx(found.perplexity_b / found.perplexity_a)
    assert found.difference == pytest.approx(found.perplexity_b - found.perplexity_a)


def test_pairing_finds_what_the_spread_between_documents_would_hide():
    rng = np.random.default_rng(1)
    a, b, n = simulate(rng, 60, 0.05)
    paired = paired_bootstrap(a, b, n)
    other = rng.permutation(60)
    unpaired = paired_bootstrap(a, b[other] / n[other] * n, n)
    assert paired.significant
    assert not unpaired.significant


def test_same_system_same_seed_and_one_document():
    a, _, n = simulate(np.random.default_rng(2), 10, 0.0)
    same = paired_bootstrap(a, a, n)
    assert (same.difference_low, same.difference_high, same.ratio_low, same.ratio_high) == (0, 0, 1, 1)
    assert not same.significant
    assert paired_bootstrap(a, a * 1.1, n, seed=4) == paired_bootstrap(a, a * 1.1, n, seed=4)
    one = paired_bootstrap([10.0], [5.0], [4])
    assert one.difference_low == one.difference_high == pytest.approx(one.difference)
    assert not one.significant


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0], [3]), "one entry per document"),
        (([], [], []), "one entry per document"),
        (([np.inf], [1.0], [3]), "finite log-likelihoods"),
        (([1.0], [1.0], [0]), "documents with tokens, found 1 without"),
    ],
)
def test_errors_say_what_was_expected(arguments, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(*arguments)
    with pytest.raises(ValueError, match="level between 0 and 1"):
        paired_bootstrap([1.0], [1.0], [1], level=1.0)
