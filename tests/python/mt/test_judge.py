"""BLEU and chrF are sacrebleu's; the bootstrap is paired, and of whole corpora."""

from __future__ import annotations

import numpy as np
import pytest

from knnlm.mt.judge import differences, judged

sacrebleu = pytest.importorskip("sacrebleu")

TRUE = ["the cat sat on the mat today", "a dog runs in the snow", "two children play outside", "it is late now"] * 5
SAME = list(TRUE)
WORSE = [line.replace("the", "a").replace("now", "here") for line in TRUE]


def test_scores_are_those_of_sacrebleu():
    found = judged(WORSE, TRUE)
    assert found["BLEU"] == round(sacrebleu.corpus_bleu(WORSE, [TRUE]).score, 2)
    assert found["chrF"] == round(sacrebleu.corpus_chrf(WORSE, [TRUE]).score, 2)
    assert "version:" in found["BLEU signature"]


def test_differences_are_of_the_same_sentences():
    bleu, chrf = differences(WORSE, SAME, TRUE, samples=200)
    assert bleu.system == pytest.approx(100)
    assert bleu.base == pytest.approx(sacrebleu.corpus_bleu(WORSE, [TRUE]).score)
    assert chrf.base == pytest.approx(sacrebleu.corpus_chrf(WORSE, [TRUE]).score)
    assert 0 < bleu.low <= bleu.system - bleu.base <= bleu.high
    same = differences(WORSE, WORSE, TRUE, samples=50)
    assert [(one.low, one.high) for one in same] == [(0, 0), (0, 0)]


def test_a_sample_is_scored_as_a_corpus():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(TRUE), (300, len(TRUE)))
    apart = [
        sacrebleu.corpus_bleu([SAME[i] for i in row], [[TRUE[i] for i in row]]).score
        - sacrebleu.corpus_bleu([WORSE[i] for i in row], [[TRUE[i] for i in row]]).score
        for row in rows
    ]
    bleu, _ = differences(WORSE, SAME, TRUE, samples=300)
    assert (bleu.low, bleu.high) == pytest.approx(tuple(np.quantile(apart, (0.025, 0.975))), abs=1e-6)
