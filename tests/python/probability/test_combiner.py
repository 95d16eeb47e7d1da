"""Every combiner, on every path: p sums to 1 over the whole vocabulary, and a target's p is that of its word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm.probability.blend import Blend, cache_name
from knnlm.probability.combiner import combined
from knnlm.probability.fixed import Fixed
from knnlm.probability.knn import sparse_p_knn
from knnlm.store.neighbors import Neighbors, missing_value

V = 23


@dataclass(frozen=True)
class ByEntropy:
    """A combiner as somebody else would write it: the less sure the model, the more the store counts."""

    temperature: float = 2.0
    k: int | None = None
    features: tuple[str, ...] = ("entropy",)

    def log_p(self, log_p_lm, neighbors, features, targets=None):
        weight = np.asarray(features["entropy"], np.float64) / np.log(V)
        weights = {"lm": 1 - weight, "knn": weight}
        return combined(weights, log_p_lm, neighbors, self.temperature, self.k, {}, targets)

    def to_dict(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "k": self.k}


def weights_of(drawn, names):
    parts = [drawn(st.sampled_from([0.0, 0.1, 1.0, 7.0])) for _ in names]
    total = sum(parts)
    return {name: part / total for name, part in zip(names, parts, strict=True)} if total else {names[0]: 1.0}


@st.composite
def cases(drawn):
    """A combiner, log p_LM (q, V), neighbors (q, k) of which some are missing, and the features of all words."""
    rng = np.random.default_rng(drawn(st.integers(0, 10**9)))
    q, k, metric = drawn(st.integers(1, 5)), drawn(st.sampled_from([1, 3, 40])), drawn(st.sampled_from(["l2", "ip"]))
    logits = rng.normal(0, drawn(st.sampled_from([0.1, 3.0, 30.0])), (q, V))
    log_p_lm = (logits - np.logaddexp.reduce(logits, -1, keepdims=True)).astype(np.float32)
    log_p_lm -= np.log(np.exp(log_p_lm.astype(np.float64)).sum(-1, keepdims=True)).astype(np.float32)

    def near(scale):
        distances = np.sort(rng.exponential(scale, (q, k)).astype(np.float32), -1)
        distances = distances if metric == "l2" else -distances
        there = np.arange(k) < rng.integers(0, k + 1, q)[:, None]
        nowhere = np.inf if metric == "l2" else -np.inf
        values = np.where(there, rng.integers(0, V, (q, k)), missing_value(np.uint32)).astype(np.uint32)
        return Neighbors(np.where(there, distances, np.float32(nowhere)), values, np.where(there, 0, -1), metric)

    neighbors = near(drawn(st.sampled_from([0.0, 1.0, 1e3])))
    temperature = drawn(st.sampled_from([0.01, 1.0, 100.0]))
    kind = drawn(st.sampled_from(["fixed", "by row", "entropy", "blend"]))
    features: dict[str, Any] = {}
    if kind == "fixed":
        combiner = Fixed(drawn(st.sampled_from([0.0, 0.25, 1.0])), temperature, drawn(st.sampled_from([None, 1, 2])))
    elif kind == "by row":
        combiner = Fixed(rng.choice([0.0, 0.3, 1.0], q), temperature)
    elif kind == "entropy":
        combiner = ByEntropy(temperature)
        p = np.exp(log_p_lm.astype(np.float64))
        features["entropy"] = np.clip(-(p * log_p_lm).sum(-1), 0, np.log(V))
    else:
        theta, order = drawn(st.sampled_from([(0.5, None), ("auto", 5), (None, 5)]))
        names = ["lm", "knn", *(["cache"] if theta is not None else []), *(["ngram"] if order else [])]
        combiner = Blend(weights_of(drawn, names), theta, order=order, temperature=temperature)
        if theta is not None:
            features[cache_name(theta)] = sparse_p_knn(near(1.0), 1.0)
        if order:
            words = rng.dirichlet(np.ones(V), q)
            words[:, rng.integers(V)] = 0
            with np.errstate(divide="ignore"):
                features["ngram"] = np.log(words / words.sum(-1, keepdims=True))
    return combiner, log_p_lm, neighbors, features


def of_targets(features, targets):
    """The features of all words, of one word a row."""
    rows, found = np.arange(len(targets)), {}
    for name, feature in features.items():
        if name == "entropy":
            found[name] = feature
        elif isinstance(feature, np.ndarray):
            found[name] = feature[rows, targets]
        else:
            dense = np.full((len(targets), V), -np.inf)
            at = np.repeat(rows, np.diff(feature.offsets))
            dense[at, feature.tokens] = np.log(feature.probabilities)
            dense[np.diff(feature.offsets) == 0] = np.nan
            found[name] = dense[rows, targets]
    return found


@settings(max_examples=400, deadline=None)
@given(cases())
def test_p_sums_to_one_over_the_vocabulary_on_both_paths(case):
    combiner, log_p_lm, neighbors, features = case
    whole = combiner.log_p(log_p_lm, neighbors, features)
    assert not np.isnan(whole).any()
    np.testing.assert_allclose(np.exp(whole.astype(np.float64)).sum(-1), 1, atol=1e-6)
    by_target = np.stack(
        [
            combiner.log_p(log_p_lm[:, word], neighbors, of_targets(features, targets), targets)
            for word in range(V)
            for targets in [np.full(len(log_p_lm), word)]
        ],
        axis=-1,
    )  # (q, V)
    np.testing.assert_allclose(np.exp(by_target.astype(np.float64)).sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(np.exp(by_target), np.exp(whole), atol=1e-6)


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 1.0])
def test_without_neighbors_p_is_that_of_the_model(lambda_):
    log_p_lm = np.log(np.random.default_rng(0).dirichlet(np.ones(V), 3)).astype(np.float32)
    for neighbors in (None, Neighbors(np.full((3, 2), np.inf, np.float32), np.full((3, 2), 2**32 - 1, np.uint32),
                                      np.full((3, 2), -1))):  # fmt: skip
        np.testing.assert_array_equal(Fixed(lambda_, 1.0).log_p(log_p_lm, neighbors, {}), log_p_lm)
        targets = np.array([1, 5, 7])
        own = log_p_lm[np.arange(3), targets]
        np.testing.assert_array_equal(Fixed(lambda_, 1.0).log_p(own, neighbors, {}, targets), own)


def test_the_ends_are_exact():
    rng = np.random.default_rng(1)
    log_p_lm = np.log(rng.dirichlet(np.ones(V), 2)).astype(np.float32)
    near = Neighbors(np.zeros((2, 2), np.float32), np.array([[3, 4], [5, 5]], np.uint32), np.zeros((2, 2), np.int64))
    assert Fixed(0.0, 1.0).log_p(log_p_lm, near, {}).tobytes() == log_p_lm.tobytes()
    ones = Fixed(1.0, 1.0).log_p(log_p_lm, near, {})
    assert np.exp(ones)[0, [3, 4]].tolist() == pytest.approx([0.5, 0.5])
    assert np.isneginf(np.delete(ones[0], [3, 4])).all()
    assert Fixed(1.0, 1.0).log_p(log_p_lm[:, 0], near, {}, np.array([3, 5])).tolist() == pytest.approx([np.log(0.5), 0])
    rows = Fixed(np.array([0.0, 1.0]), 1.0).log_p(log_p_lm, near, {})
    np.testing.assert_array_equal(rows[0], log_p_lm[0])
    np.testing.assert_array_equal(rows[1], ones[1])
