"""The mixture of components (Khandelwal et al. 2020, equation 3, for LM and p_kNN), in log space.

    p(y | x) = sum over components c of w_c(x) p_c(y | x),      components: "lm", "knn", "cache", "ngram", ...

A component that does not exist at a position (p_kNN where nothing was found, a cache of nothing) gives its weight to
the others in their proportion, and where nothing with weight is left p is p_LM: so p sums to 1 wherever p_LM does. A
weight of 1 returns that component's numbers bit for bit, -inf included.

`mix` has the probabilities of one target a position, `mix_vocabulary` those of all words. Nothing else mixes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knnlm.probability.knn import SparseProbabilities

Floats = NDArray[np.floating[Any]]
LM = "lm"


def mix(log_ps: Mapping[str, ArrayLike], weights: Mapping[str, ArrayLike]) -> Floats:
    """log p of each target under the weighted components, elementwise.

    log_ps: name -> (...) log p in nats, "lm" among them; -inf is probability 0, NaN that the component does not exist
    there. weights: a number, or (...) of one for each position; they sum to 1, and a name that is missing weighs 0.
    Shapes broadcast. Returns the LM's numbers in their type where no other component weighs anything, else float64.
    Raises ValueError for weights that are negative, do not sum to 1 or are of a component that is not there.
    """
    names = list(log_ps)
    arrays = [np.asarray(log_ps[name]) for name in names]
    shares = _checked(names, weights)
    if not any(share.any() for name, share in shares.items() if name != LM):
        shape = np.broadcast_shapes(*(array.shape for array in (*arrays, *shares.values())))
        return np.array(np.broadcast_to(arrays[names.index(LM)], shape))
    logs = [np.asarray(array, np.float64) for array in arrays]
    exist = [~np.isnan(log) for log in logs]
    shares = _of_those_that_exist(shares, dict(zip(names, exist, strict=True)))
    mixed: Any = -np.inf
    with np.errstate(divide="ignore"):
        for name, log, there in zip(names, logs, exist, strict=True):
            mixed = np.logaddexp(mixed, np.log(shares[name]) + np.where(there, log, -np.inf))
    return np.asarray(mixed)


def mix_vocabulary(
    log_p_lm: ArrayLike, parts: Mapping[str, ArrayLike | SparseProbabilities], weights: Mapping[str, ArrayLike]
) -> Floats:
    """log p of every word under the weighted components.

    log_p_lm: (..., v), normalised and final (after bias, cap or scale). parts: of the other components the
    probabilities, sparse with a row for each position, or log p (..., v) with NaN in rows where it does not exist.
    weights: as of `mix`, a number or (...). Returns (..., v): the LM's numbers in their type where no other component
    weighs anything, else float64. Raises ValueError for a word that the model does not have, which means that store and
    model do not belong together.
    """
    lm = np.asarray(log_p_lm)
    lead, v = lm.shape[:-1], lm.shape[-1]
    shares = _checked([LM, *parts], weights)
    if not any(share.any() for name, share in shares.items() if name != LM):
        return np.array(lm)
    out = lm.reshape(-1, v).astype(np.float64)  # (q, v)
    exist = {LM: np.ones(len(out), bool)}
    for name, part in parts.items():
        exist[name] = _rows(name, part, len(out), v)
    rows = {name: np.broadcast_to(share, lead).reshape(-1) for name, share in shares.items()}  # (q,) each
    shares = _of_those_that_exist(rows, exist)
    with np.errstate(divide="ignore"):
        if (shares[LM] != 1).any():
            out += np.log(shares[LM])[:, None]
        for name, part in parts.items():
            log_share = np.log(shares[name])  # (q,)
            if isinstance(part, SparseProbabilities):
                at = np.repeat(np.arange(len(out)), np.diff(part.offsets))
                log_p = np.log(part.probabilities) + log_share[at]
                out[at, part.tokens] = np.logaddexp(out[at, part.tokens], log_p)
            else:
                own = np.flatnonzero(shares[name] > 0)
                out[own] = np.logaddexp(out[own], np.asarray(part).reshape(-1, v)[own] + log_share[own, None])
    return out.reshape(lm.shape)


def _checked(names: list[str], weights: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    """A weight for each name. Raises ValueError for what are none."""
    if LM not in names:
        raise ValueError(f'expected the component "lm" among those to mix, found {sorted(names)}')
    found = {name: np.asarray(weights.get(name, 0.0), np.float64) for name in names}
    if missing := [name for name, weight in weights.items() if name not in found and np.any(np.asarray(weight))]:
        raise ValueError(f"weights: expected {sorted(names)}, found one of {missing[0]!r}, which is not there")
    total: Any = sum(found.values())
    if not all((weight >= 0).all() for weight in found.values()) or not np.all(abs(total - 1.0) <= 1e-6):
        raise ValueError(f"weights: expected numbers between 0 and 1 with the sum 1, found {dict(weights)}")
    return found


def _of_those_that_exist(
    weights: Mapping[str, NDArray[np.float64]], exist: Mapping[str, NDArray[np.bool_]]
) -> dict[str, NDArray[np.float64]]:
    """The weights, with those of components that do not exist at a position given to the others there."""
    if all(there.all() for there in exist.values()):
        return dict(weights)
    kept = {name: weights[name] * there for name, there in exist.items()}
    total: Any = sum(kept.values())
    lost: Any = sum(weights[name] * ~there for name, there in exist.items()) > 0
    shares = {name: np.where(lost, share / np.where(total > 0, total, 1.0), share) for name, share in kept.items()}
    shares[LM] = np.where(total > 0, shares[LM], 1.0)
    return shares


def _rows(name: str, part: ArrayLike | SparseProbabilities, q: int, v: int) -> NDArray[np.bool_]:
    """In which rows a component exists, (q,). Raises ValueError for another number of rows or words."""
    if not isinstance(part, SparseProbabilities):
        log_p = np.asarray(part)
        if log_p.size != q * v or log_p.shape[-1:] != (v,):
            raise ValueError(f"{name}: expected log p of {v} words in {q} rows, found shape {log_p.shape}")
        return ~np.isnan(log_p.reshape(-1, v)[:, 0]) if v else np.zeros(q, bool)
    if len(part.offsets) != q + 1:
        raise ValueError(f"{name}: expected the neighbors of {q} positions, found {len(part.offsets) - 1}")
    if len(part.tokens) and part.tokens.max() >= v:
        raise ValueError(
            f"values: the store holds token {part.tokens.max()}, the model has {v} tokens; "
            "use the model and tokenizer that the store was built with"
        )
    return np.diff(part.offsets) > 0
