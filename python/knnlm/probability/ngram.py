"""Interpolated modified Kneser-Ney n-gram model over integer tokens (Chen & Goodman 1998, section 3).

For a word w after the history h of n-1 words, with h' = h without its first word:

    p_n(w|h) = max(a(hw) - D(a(hw)), 0) / sum_u a(hu)  +  gamma(h) p_{n-1}(w|h')
    gamma(h) = (D1 N1(h) + D2 N2(h) + D3 N3+(h)) / sum_u a(hu)

down to p_0 = 1/v. The count a(g) is the plain count at the highest order and for n-grams that begin a document (they
have no left neighbor), else the number of distinct words seen before g. D1, D2, D3 come from the counts of counts of
each order (equation 26). An unseen history passes its whole mass down. A document is padded with one begin mark on the
left, which is context only; nothing is added on the right, so L tokens give L log-probabilities.

An n-gram of level n is (id of its first n-1 words at level n-1, last word), packed into one 64-bit number. Its id is
the rank of that number, so counting is one sort per level and looking up is one binary search per level.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class _Level:
    """One order n >= 2: sorted packed n-grams, their discounted shares, and gamma of their histories."""

    grams: Ints  # (g,) history id * (v + 1) + word, ascending
    alpha: Floats  # (g,) discounted share of the history's mass
    gamma: Floats  # (ids of level n-1,) mass passed down; 1 for a history that nothing followed


class KneserNey:
    """Modified Kneser-Ney language model of any order; `fit` it, then ask for `log_probs`.

    Args:
        order: longest n-gram; 1 is a smoothed unigram model.
        discounts: None takes them from the counts; a number uses it for every count and order; an array (order, 3)
            gives D1, D2, D3+ of the orders 1, 2, ...

    Raises:
        ValueError: order below 1, or discounts that are negative or of another shape.
    """

    def __init__(self, order: int = 5, discounts: float | ArrayLike | None = None) -> None:
        if order < 1:
            raise ValueError(f"expected an order of at least 1, found {order}")
        self.order = order
        self.vocab_size = 0
        self._given: Floats | None = None
        if discounts is not None:
            given = np.asarray(discounts, dtype=np.float64)
            given = np.broadcast_to(given, (order, 3)) if given.ndim == 0 else given
            if given.shape != (order, 3) or not (given >= 0).all():
                raise ValueError(f"expected discounts >= 0, one number or ({order}, 3), found shape {given.shape}")
            self._given = given
        self.discounts: Floats = np.zeros((order, 3))  # (order, 3) those in use, filled by fit
        self._unigram: Floats = np.zeros(0)
        self._level_one: Floats = np.zeros(0)
        self._levels: list[_Level] = []

    def fit(self, documents: Iterable[ArrayLike], vocab_size: int) -> KneserNey:
        """Counts the n-grams of token documents and returns the model itself.

        Args:
            documents: each a sequence of ids below `vocab_size`; n-grams never cross their borders.
            vocab_size: v, the number of words that share the probability; words never seen get some as well.

        Raises:
            ValueError: no tokens at all, or an id outside the vocabulary.
        """
        if vocab_size < 1:
            raise ValueError(f"expected a vocabulary of at least 1 word, found {vocab_size}")
        parts: list[Ints] = []
        mark = np.array([vocab_size], dtype=np.int64)
        for document in documents:
            parts += [mark, _checked(document, vocab_size)]
        x = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        starts = x == vocab_size
        if starts.all():
            raise ValueError("expected at least one token to fit an n-gram model, found none")
        self.vocab_size, self._levels = vocab_size, []
        self._unigram, _ = self._lowest(np.bincount(x[~starts], minlength=vocab_size), None)
        for row, (grams, counts, histories) in enumerate(_count(x, starts, self.order)):
            if row == 0:
                self._level_one, self.discounts[0] = self._lowest(counts[:vocab_size], 0)
            else:
                self.discounts[row] = self._choose(counts, row)
                self._levels.append(_level(grams, counts, histories, vocab_size, self.discounts[row]))
        return self

    def log_probs(self, tokens: ArrayLike) -> Floats:
        """Natural log-probability of each token of one document given those before it: (L,) ids to (L,) float64.

        Raises:
            ValueError: not fitted, or an id outside the vocabulary.
        """
        x = _checked(tokens, self._fitted())
        x = np.concatenate([[self.vocab_size], x])
        ids = x  # id of the n-gram that ends at each position, -1 if it was never seen
        p = self._level_one[x[1:]]
        for level in self._levels:
            p, found = _step(level, ids[:-1], x[1:], p, self.vocab_size)
            ids = np.concatenate([[-1], found])
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(p))

    def unigram_log_probs(self, tokens: ArrayLike) -> Floats:
        """Natural log-probability of each token by its smoothed frequency alone: (L,) ids to (L,) float64."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self._unigram[_checked(tokens, self._fitted())]))

    def distribution(self, history: Sequence[int] | ArrayLike) -> Floats:
        """p(w | all tokens of a document so far) for every word w: (any length,) ids to (v,) float64, sum 1."""
        v = self._fitted()
        x = np.concatenate([[v], _checked(history, v)])
        p = self._level_one
        for n, level in enumerate(self._levels, start=2):
            if len(x) < n - 1:
                break
            history_id = x[len(x) - n + 1]
            for lower, word in zip(self._levels, x[len(x) - n + 2 :], strict=False):
                history_id = _find(lower.grams, np.array([history_id]), np.array([word]), v)[0]
            p, _ = _step(level, np.full(v, history_id), np.arange(v), p, v)
        return p

    def _fitted(self) -> int:
        if not self.vocab_size:
            raise ValueError("this n-gram model has not been fitted: call fit(documents, vocab_size) first")
        return self.vocab_size

    def _choose(self, counts: Ints, row: int | None) -> Floats:
        given: Floats | None = None if self._given is None or row is None else self._given[row]
        return np.array(modified_discounts(counts)) if given is None else given

    def _lowest(self, counts: Ints, row: int | None) -> tuple[Floats, Floats]:
        """Unigrams interpolated with the uniform distribution: (v,) counts to (v,) probabilities, and D1..D3."""
        d = self._choose(counts, row)
        removed = _removed(counts, d)
        return (counts - removed + removed.sum() / self.vocab_size) / counts.sum(), d


def modified_discounts(counts: Ints) -> tuple[float, float, float]:
    """D1, D2, D3+ from the counts of counts n1..n4 (Chen & Goodman 1998, equation 26).

    Small or unnatural data can leave an n_i empty or push a D_i out of (0, i]; one of 0 would leave
    nothing for words that were not seen. Then one absolute discount n1/(n1+2n2)
    serves all counts, and where even that is undefined, 1/2, 1 and 3/2.
    """
    n1, n2, n3, n4 = (int((counts == i).sum()) for i in range(1, 5))
    if n1 and n2:
        y = n1 / (n1 + 2 * n2)
        if n3 and n4:
            d = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
            if all(0 < d[i] <= i + 1 for i in range(3)):
                return d
        return (y, y, y)
    return _FALLBACK_DISCOUNTS


def _count(x: Ints, starts: NDArray[np.bool_], order: int) -> list[tuple[Ints, Ints, int]]:
    """Distinct n-grams, their counts a(g) and the number of history ids, for each order; `starts` marks begin marks."""
    width = int(x.max(where=starts, initial=0)) + 1  # the begin mark is the largest id: v + 1 packs a word
    place = np.arange(len(x)) - np.maximum.accumulate(np.where(starts, np.arange(len(x)), 0))  # in the document
    ids, grams, raw, histories = x, np.arange(width), np.bincount(x, minlength=width), 1
    begins = grams == width - 1
    counted = []
    for n in range(2, order + 1):
        at = np.flatnonzero(place >= n - 1)
        longer, first, inverse, longer_raw = np.unique(
            ids[at - 1] * width + x[at], return_index=True, return_inverse=True, return_counts=True
        )
        left = np.bincount(ids[at[first]], minlength=len(grams))  # distinct words before each gram
        counted.append((grams, np.where(begins, raw, left), histories))
        histories, grams, raw = len(grams), longer, longer_raw
        begins = place[at[first]] == n - 1
        ids = np.full(len(x), -1)  # id of the n-gram that ends at each position
        ids[at] = inverse.reshape(-1)
    counted.append((grams, raw, histories))
    return counted


def _step(level: _Level, history: Ints, words: Ints, lower: Floats, vocab_size: int) -> tuple[Floats, Ints]:
    """One step of the recursion: p_n of `words` after `history` ids (-1 = unseen) from p_{n-1}, and the ids of hw."""
    found = _find(level.grams, history, words, vocab_size)
    alpha = np.where(found >= 0, level.alpha[found], 0.0) if len(level.alpha) else np.zeros(len(words))
    gamma = np.where(history >= 0, level.gamma[history], 1.0) if len(level.gamma) else 1.0
    return alpha + gamma * lower, found


def _level(grams: Ints, counts: Ints, histories: int, vocab_size: int, discounts: Floats) -> _Level:
    history = grams // (vocab_size + 1)
    removed = _removed(counts, discounts)
    total = np.bincount(history, weights=counts, minlength=histories)
    passed = np.bincount(history, weights=removed, minlength=histories)
    gamma = np.divide(passed, total, out=np.ones(histories), where=total > 0)
    alpha = np.divide(counts - removed, total[history], out=np.zeros(len(grams)), where=total[history] > 0)
    return _Level(grams, alpha, gamma)


def _removed(counts: Ints, discounts: Floats) -> Floats:
    """What discounting takes from each count; never more than there is."""
    return np.asarray(np.minimum(np.concatenate([[0.0], discounts])[np.minimum(counts, 3)], counts))


def _find(grams: Ints, history: Ints, words: Ints, vocab_size: int) -> Ints:
    """Ids of the n-grams (history id, word), -1 where the level has no such n-gram."""
    if not len(grams):
        return np.full(len(words), -1)
    wanted = np.where(history >= 0, history * (vocab_size + 1) + words, -1)
    at = np.minimum(np.searchsorted(grams, wanted), len(grams) - 1)
    return np.where(grams[at] == wanted, at, -1)


def _checked(tokens: ArrayLike, vocab_size: int) -> Ints:
    x = np.asarray(tokens)
    if x.size == 0:
        return np.zeros(0, dtype=np.int64)
    if x.ndim != 1 or x.dtype.kind not in "iu":
        raise ValueError(f"expected a one-dimensional array of token ids, found {x.dtype} of shape {x.shape}")
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"expected token ids from 0 to {vocab_size - 1}, found {low} to {high}: use the fitted tokenizer"
        )
    return x.astype(np.int64)
