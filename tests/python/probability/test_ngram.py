"""The Kneser-Ney model against NLTK, a dictionary version of the formulas, and the laws of probability."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nltk.lm import KneserNeyInterpolated
from nltk.lm.preprocessing import everygrams

from knnlm.probability.ngram import KneserNey, modified_discounts


class NaiveKneserNey:
    """The formulas of the module docstring, word by word with dictionaries."""

    def __init__(self, documents, vocab_size, order, discounts=None):
        self.v, self.order = vocab_size, order
        raw = [defaultdict(int) for _ in range(order + 1)]
        left = [defaultdict(set) for _ in range(order + 1)]
        for document in documents:
            words = ["<s>", *document]
            for n in range(1, order + 1):
                for i in range(len(words) - n + 1):
                    gram = tuple(words[i : i + n])
                    raw[n][gram] += 1
                    if i:
                        left[n][gram].add(words[i - 1])
        self.counts, self.discounts = [{}], []
        for n in range(1, order + 1):
            counts = {g: c if n == order or g[0] == "<s>" else len(left[n][g]) for g, c in raw[n].items()}
            if n == 1:
                counts.pop(("<s>",), None)
            self.counts.append(counts)
            given = modified_discounts(np.array(list(counts.values()))) if discounts is None else discounts[n - 1]
            self.discounts.append(given)

    def prob(self, word, history):
        """p(word | all the words of the document so far)."""
        context = ("<s>", *history)[max(0, len(history) + 2 - self.order) :] if self.order > 1 else ()
        return self._prob(word, context)

    def _prob(self, word, context):
        n = len(context) + 1
        lower = 1 / self.v if n == 1 else self._prob(word, context[1:])
        followers = {g: c for g, c in self.counts[n].items() if g[:-1] == context}
        total = sum(followers.values())
        if not total:
            return lower

        def discount(count):
            return min(count, self.discounts[n - 1][min(count, 3) - 1]) if count else 0.0

        count = followers.get((*context, word), 0)
        return (count - discount(count)) / total + sum(map(discount, followers.values())) / total * lower


def random_documents(rng, vocab_size, lengths):
    """Skewed word frequencies, so that n-grams repeat and some words never occur."""
    return [np.minimum(rng.zipf(1.5, size=length) - 1, vocab_size - 2) for length in lengths]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_dictionary_version(order):
    rng = np.random.default_rng(order)
    documents = random_documents(rng, 12, [60, 1, 35, 3])
    model = KneserNey(order).fit(documents, 12)
    naive = NaiveKneserNey([d.tolist() for d in documents], 12, order)
    np.testing.assert_allclose(model.discounts, np.array(naive.discounts), rtol=1e-12)
    for text in [*documents, *random_documents(rng, 12, [25]), rng.integers(0, 12, 25)]:
        expected = [naive.prob(int(w), text[:i].tolist()) for i, w in enumerate(text)]
        np.testing.assert_allclose(np.exp(model.log_probs(text)), expected, rtol=1e-10)


def test_equals_nltk_with_one_discount():
    order, v, discount = 4, 9, 0.1
    rng = np.random.default_rng(3)
    document = random_documents(rng, v, [300])[0]
    words = ["<s>", *map(str, document)]
    nltk_model = KneserNeyInterpolated(order, discount=discount)
    nltk_model.fit([everygrams(words, max_len=order)], vocabulary_text=[str(w) for w in range(v)])
    table = np.full((order, 3), discount)
    table[0] = 0.0  # NLTK does not smooth its unigrams
    model = KneserNey(order, discounts=table).fit([document], v)
    text = np.concatenate([document[:60], rng.integers(0, v - 3, 60)])
    text = text[np.isin(text, document)]
    log_probs = model.log_probs(text)
    # NLTK has no rule for lower orders that begin a document, so the first positions are left to the dictionary test.
    for i in range(order - 1, len(text)):
        expected = nltk_model.score(str(text[i]), [str(w) for w in text[i - order + 1 : i]])
        assert np.exp(log_probs[i]) == pytest.approx(expected, rel=1e-10)


@given(
    documents=st.lists(st.lists(st.integers(0, 6), max_size=30), min_size=1, max_size=5),
    history=st.lists(st.integers(0, 7), max_size=6),
    order=st.integers(1, 5),
)
@example([[4], [4, 0, 0, 0, 0, 0, 2, 1], [4, 0, 3, 1, 0, 2, 0, 4, 0], [4, 1, 1, 1, 2, 0, 1, 0, 1]], [], 2)  # D3 of 0
@settings(max_examples=150, deadline=None)
def test_every_distribution_sums_to_one_and_is_what_log_probs_reads(documents, history, order):
    if not any(documents):
        documents = [[1]]
    model = KneserNey(order).fit(documents, 8)
    p = model.distribution(history)
    assert p.shape == (8,)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert (p > 0).all()
    for word in (0, 7):
        assert np.exp(model.log_probs([*history, word])[-1]) == pytest.approx(p[word], rel=1e-12)


def test_contexts_do_not_cross_documents():
    first, second = [1, 2, 3, 4], [5, 6, 7, 1]
    model = KneserNey(3).fit([first, second], 9)
    joined = KneserNey(3).fit([first + second], 9)
    assert joined.distribution([3, 4])[5] > 2 * model.distribution([3, 4])[5]
    assert model.distribution([])[5] > 2 * model.distribution([])[2]  # 5 begins a document, 2 does not


def test_unigram_uses_plain_counts():
    model = KneserNey(2).fit([[0, 1] * 20 + [2] * 20], 4)
    p = np.exp(model.unigram_log_probs(np.arange(4)))
    assert p.sum() == pytest.approx(1.0)
    assert p[0] == pytest.approx(p[2], rel=1e-12)  # 20 times each, whatever stands before them
    assert 0 < p[3] < 0.05


def test_longer_orders_predict_repeated_text_better():
    rng = np.random.default_rng(0)
    text = np.tile(rng.integers(0, 50, 40), 25)
    perplexities = [np.exp(-KneserNey(n).fit([text], 50).log_probs(text[:200]).mean()) for n in (1, 2, 3)]
    assert perplexities[0] > 20 > perplexities[1]
    assert perplexities[2] < 1.2


def test_chen_and_goodman_discounts():
    counts = np.repeat([1, 2, 3, 4, 9], [100, 40, 20, 10, 7])
    y = 100 / 180
    assert modified_discounts(counts) == pytest.approx((1 - 2 * y * 0.4, 2 - 3 * y * 0.5, 3 - 4 * y * 0.5))
    assert modified_discounts(np.array([1, 1, 1, 2])) == pytest.approx((3 / 5,) * 3)
    assert modified_discounts(np.array([5, 6])) == (0.5, 1.0, 1.5)


def test_empty_text_and_documents_shorter_than_the_order():
    model = KneserNey(5).fit([[1], [], [2, 1]], 3)
    assert model.log_probs([]).shape == (0,)
    assert model.distribution([2, 1, 0, 2, 1, 1]).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KneserNey(0), "order of at least 1, found 0"),
        (lambda: KneserNey(2, discounts=np.zeros((3, 3))), r"\(2, 3\), found shape \(3, 3\)"),
        (lambda: KneserNey(2, discounts=-0.5), "discounts >= 0"),
        (lambda: KneserNey(2).fit([[]], 5), "at least one token"),
        (lambda: KneserNey(2).fit([], 5), "at least one token"),
        (lambda: KneserNey(2).fit([[1, 5]], 5), "from 0 to 4, found 1 to 5"),
        (lambda: KneserNey(2).fit([[1]], 5).log_probs([-1]), "from 0 to 4, found -1 to -1"),
        (lambda: KneserNey(2).fit([[0.5]], 5), "one-dimensional array of token ids"),
        (lambda: KneserNey(2).log_probs([1]), "not been fitted"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
