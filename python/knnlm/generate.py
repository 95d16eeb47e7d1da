"""Generate text from the mixture: the sampler sees log p of LM and datastore together, after the final logits."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from knnlm.blend import Blend
from knnlm.cache import ContinuousCache, theta_of
from knnlm.capture import Capture
from knnlm.forward import check_tokens
from knnlm.identity import KeySpec, Loaded, Settings, check, key_spec, settings_of
from knnlm.interpolate import mix_full
from knnlm.mixture import mix_log_p
from knnlm.modules import token_limit, unwrapped
from knnlm.neighbours import Neighbours, Searchable
from knnlm.windows import check_window, plan

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. temperature 0 is greedy; top_k and top_p (Holtzman et al. 2020) cut the tail first.

    This temperature reshapes the mixture; the one of p_kNN is in `Settings`.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no distribution can be cut by."""
        if not self.temperature >= 0 or not np.isfinite(self.temperature):
            raise ValueError(f"temperature: expected 0 (greedy) or a positive number, found {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected at least 1, found {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a share above 0 and up to 1, found {self.top_p}")


GREEDY = Sampling(temperature=0.0)


class GeneratedToken(NamedTuple):
    """A token that was chosen, and its log-probabilities under the mixture and under the LM (nats)."""

    id: int
    log_p: float
    log_p_lm: float


def kept(log_p: ArrayLike, sampling: Sampling) -> tuple[NDArray[np.int64], Vector]:
    """The tokens that may be drawn, best first (ties by id), and their probabilities, which sum to 1.

    log_p: (v,). top_k and top_p count in that order; top_p keeps the fewest tokens whose mass reaches it.
    """
    scores = np.asarray(log_p, np.float64)
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(scores[order])]
    if not len(order):
        raise ValueError("expected a token with a positive probability, found none")
    if sampling.temperature == 0:
        return order[:1], np.ones(1)
    order = order[: sampling.top_k]
    scaled = scores[order] / sampling.temperature
    p = np.exp(scaled - scaled[0])
    p /= p.sum()
    if sampling.top_p is not None:
        count = int(np.searchsorted(np.cumsum(p), sampling.top_p * (1 - 1e-12))) + 1
        order, p = order[:count], p[:count] / p[:count].sum()
    return order, p


def draw(log_p: ArrayLike, sampling: Sampling, rng: np.random.Generator) -> int:
    """One token from (v,) log-probabilities; a function of the generator's state only."""
    tokens, p = kept(log_p, sampling)
    if len(tokens) == 1:
        return int(tokens[0])
    return int(tokens[min(len(tokens) - 1, int(np.searchsorted(np.cumsum(p), rng.random(), side="right")))])


class Reader:
    """Feeds one growing text to a model: logits and key at its last position, with the model's own KV cache if any.

    Windows are those of the dump (`windows.plan`): when one is full, the next begins with `context` earlier tokens, so
    a key is the one that the same text would have in a store. Models take their cache as `past_key_values` (Hugging
    Face), as `cache` (`TransformerLM`), or get the whole window every time.
    """

    def __init__(self, loaded: Loaded, keys: KeySpec, capture: bool = True) -> None:
        """Attach the capture; close with `close`."""
        spec = keys.resolved(loaded.context)
        assert spec.window is not None
        assert spec.context is not None
        check_window(spec.window, spec.context, loaded.context)
        self.model, self.window, self.context = loaded.model, spec.window, spec.context
        self.device = next(self.model.parameters()).device
        self.autocast = None if spec.autocast is None else getattr(torch, spec.autocast)
        self.inputs: list[int] = [int(loaded.tokenizer.bos_id)]
        self.capture = Capture(self.model, spec.representation, spec.layer) if capture else None
        accepted = inspect.signature(self.model.forward).parameters
        self._hugging_face = "past_key_values" in accepted
        self._own_cache = "cache" in accepted and not self._hugging_face
        self._last_only = "logits_to_keep" in accepted
        self._start = -1
        self._fed = 0
        self._cache: Any = None
        self._was_training = self.model.training
        self.model.eval()

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text."""
        self.inputs.extend(int(token) for token in tokens)

    @torch.inference_mode()
    def read(self) -> tuple[torch.Tensor, NDArray[np.float32] | None]:
        """Final logits (v,) float32 for the next token, and the key (1, d)."""
        start = plan(len(self.inputs), self.window, self.context)[-1].start
        cached = self._hugging_face or self._own_cache
        if start != self._start or not cached:
            self._start, self._fed, self._cache = start, start, self._empty_cache()
        fed = torch.tensor([self.inputs[self._fed :]], dtype=torch.int64, device=self.device)  # (1, T)
        options: dict[str, Any] = {}
        if self._hugging_face:
            options = {"past_key_values": self._cache, "use_cache": True}
        elif self._own_cache:
            options = {"cache": self._cache}
        if self._last_only:
            options["logits_to_keep"] = 1
        # As in the dump, so that the key is the one that the store would have.
        with torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext():
            output = self.model(fed, **options)
        if cached:
            self._cache = output.past_key_values if self._hugging_face else output.cache
            self._fed = len(self.inputs)
        key = self.capture.keys[:, -1].float().cpu().numpy() if self.capture is not None else None  # (1, d)
        return output.logits[0, -1].float(), key

    def _empty_cache(self) -> Any:
        if not self._own_cache:
            return None
        from knnlm.transformer import KVCache

        return KVCache()

    def close(self) -> None:
        """Remove the hooks."""
        if self.capture is not None:
            self.capture.close()
        self.model.train(self._was_training)


def generate(
    loaded: Loaded,
    prompt: Sequence[int] | NDArray[Any],
    *,
    store: Searchable | None = None,
    settings: Settings | None = None,
    keys: KeySpec | None = None,
    blend: Blend | None = None,
    max_tokens: int = 100,
    sampling: Sampling = GREEDY,
    stop: Collection[int] = (),
) -> Iterator[GeneratedToken]:
    """Continue a prompt of token ids, a token at a time; the prompt follows the document start, as in the dump.

    blend: weights with a continuous cache of prompt and text, in place of lambda.
    store: None = the LM alone. settings: default: what `tune` saved in the store, else the defaults. Ends after
    `max_tokens`, or before a token in `stop`. Same seed, same text. Raises IdentityError if the store belongs to
    another model and ValueError for a prompt token that the model does not have.
    """
    tokens = [int(token) for token in prompt]
    vocabulary = int(loaded.tokenizer.vocab_size)
    if any(not 0 <= token < vocabulary for token in tokens):
        raise ValueError(f"prompt: expected token ids from 0 to {vocabulary - 1}; use the model's own tokenizer")
    limit = token_limit(unwrapped(loaded.model))
    check_tokens(loaded.tokenizer, "prompt", np.array(tokens, np.int64), vocabulary if limit is None else limit)
    spec = keys or KeySpec()
    if store is not None:
        check(store, loaded, keys)
        settings = settings_of(store) if settings is None else settings
        spec = keys or key_spec(store) or spec
    rng = np.random.default_rng(sampling.seed)
    if blend is not None and (blend.theta is None or blend.order is not None):
        raise ValueError("generate: expected a blend with a cache and without an n-gram model, which only scores text")
    cache: ContinuousCache | None = None
    reader = Reader(loaded, spec, capture=store is not None or blend is not None)
    try:
        reader.extend(tokens)
        for _ in range(max_tokens):
            logits, key = reader.read()
            log_p_lm = torch.log_softmax(logits, -1).cpu().numpy()  # (v,)
            log_p = log_p_lm
            if blend is not None and key is not None:
                if cache is None:
                    cache = _cache_of_prompt(loaded, tokens, blend, spec, store, key.shape[1])
                log_p = _blended(log_p_lm, store, cache, key, settings, blend)
            elif store is not None and settings is not None and key is not None and settings.lambda_ > 0:
                log_p = _mixed(log_p_lm, store, key, settings)
            token = draw(log_p, sampling, rng)
            if token in stop:
                return
            yield GeneratedToken(token, float(log_p[token]), float(log_p_lm[token]))
            if cache is not None and key is not None:
                cache.add(key, [token])
            reader.extend([token])
    finally:
        reader.close()


def _mixed(log_p_lm: NDArray[Any], store: Searchable, key: NDArray[np.float32], settings: Settings) -> NDArray[Any]:
    found, temperature = _found(store, key, settings)
    return np.asarray(mix_full(log_p_lm[None], found, temperature, settings.lambda_)[0])


def _found(store: Searchable, key: NDArray[np.float32], settings: Settings) -> tuple[Neighbours, float]:
    """Neighbours of a key (1, d), and T."""
    filled = settings
    if settings.k is None or settings.temperature is None:
        filled = settings_of(store, **{n: v for n, v in settings.to_dict().items() if n != "threads"})
    assert filled.k is not None
    assert filled.temperature is not None
    found = store.search(
        key,
        filled.k,
        nprobe=filled.nprobe,
        rerank=filled.rerank,
        exact=filled.exact,
        threads=settings.threads,
    )
    return found, filled.temperature


def _cache_of_prompt(
    loaded: Loaded, tokens: Sequence[int], blend: Blend, spec: KeySpec, store: Searchable | None, dim: int
) -> ContinuousCache:
    """The cache after the prompt, with the keys that scoring it would have."""
    from knnlm.keys import TokenDocument, arithmetic, iterate_as

    cache = ContinuousCache(dim, blend.size, blend.metric)
    spec = spec.resolved(loaded.context)
    for chunk in iterate_as(
        loaded,
        [TokenDocument("", np.asarray(tokens, np.uint32))],
        spec,
        key_dtype="float32",
        dtype=arithmetic(store, spec, None),
    ):
        cache.add(chunk.key, chunk.tokens)
    return cache


def _blended(
    log_p_lm: NDArray[Any],
    store: Searchable | None,
    cache: ContinuousCache,
    key: NDArray[np.float32],
    settings: Settings | None,
    blend: Blend,
) -> NDArray[Any]:
    """log p over the vocabulary, (v,): w_lm p_LM + w_knn p_kNN + w_cache p_cache, of those that exist."""
    parts, weights = [log_p_lm.astype(np.float64)], [blend.weights["lm"]]

    def put(name: str, found: Neighbours, temperature: float) -> None:
        if found.found.any() and blend.weights.get(name):
            parts.append(mix_full(log_p_lm[None], found, temperature, 1.0)[0])
            weights.append(blend.weights[name])

    if store is not None and settings is not None:
        put("knn", *_found(store, key, settings))
    if len(cache):
        found = cache.search(key, len(cache))
        theta = blend.theta
        if theta == "auto":
            theta = theta_of(found.distances[0] if cache.metric == "ip" else -found.distances[0])
        put("cache", found, 1 / max(float(theta or 0), 1e-9))  # theta 0 counts words: T without end
    total = sum(weights)
    if not total > 0:
        return parts[0]
    return mix_log_p(np.stack(parts), np.array(weights) / total)
