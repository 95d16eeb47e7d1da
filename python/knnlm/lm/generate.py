"""Generate text from the mixture: the sampler sees log p of LM and datastore together, after the final logits."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from knnlm.lm.blend import Blend
from knnlm.lm.sampler import GREEDY, Sampling, draw, kept
from knnlm.lm.settings import Settings, settings_of
from knnlm.model.capture import Capture
from knnlm.model.forward import NotFiniteError, check_tokens
from knnlm.model.identity import check
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec
from knnlm.model.loaded import Loaded
from knnlm.model.modules import (
    autocast,
    device_of,
    eager,
    is_compiled,
    name_of,
    output_embedding,
    token_limit,
    unwrapped,
)
from knnlm.model.windows import check_window, plan
from knnlm.probability.continuous_cache import ContinuousCache, theta_of
from knnlm.probability.interpolate import mix_full
from knnlm.probability.mixture import mix_log_p
from knnlm.store.neighbors import Neighbors
from knnlm.store.protocols import Searchable

__all__ = ["GREEDY", "GeneratedToken", "Reader", "Sampling", "draw", "generate", "kept"]

CACHES = ("past_key_values", "cache_params", "state")
"""What Hugging Face models call what they remember of the text, in their arguments and in their output."""

FIXED = ("HybridCache", "HybridChunkedCache", "SlidingWindowCache", "StaticCache")
"""Caches of transformers before 5 that have room for what was read when they were made, and no more."""


class GeneratedToken(NamedTuple):
    """A token that was chosen, and its log-probabilities under the mixture and under the LM (nats)."""

    id: int
    log_p: float
    log_p_lm: float


class Reader:
    """Feeds one growing text to a model: logits and key at its last position, with the model's own cache if any.

    Windows are those of the dump (`windows.plan`): when one is full, the next begins with `context` earlier tokens, so
    a key is the one that the same text would have in a store. Models of Hugging Face keep what they have read as one of
    `CACHES`, `TransformerLM` as `cache`; others get the whole window every time. dtype: type of the arithmetic, None =
    the model's own.
    """

    def __init__(
        self, loaded: Loaded, keys: KeySpec, capture: bool = True, dtype: torch.dtype | None = None, every: bool = False
    ) -> None:
        """Attach the capture; close with `close`. every: `keys_read` gives all keys of a pass, not the last alone."""
        spec = resolve(loaded, keys)
        assert spec.window is not None
        assert spec.context is not None
        check_window(spec.window, spec.context, loaded.context)
        self.model, self.window, self.context = unwrapped(loaded.model), spec.window, spec.context
        self.device, self.compiled = device_of(self.model), is_compiled(self.model)
        self.dtype = getattr(torch, spec.autocast) if dtype is None and spec.autocast is not None else dtype
        self.inputs: list[int] = [int(loaded.tokenizer.bos_id)]
        accepted = inspect.signature(self.model.forward).parameters
        self._name = next((name for name in CACHES if name in accepted), "cache" if "cache" in accepted else None)
        self._options: dict[str, Any] = (
            {"use_cache": True} if "use_cache" in accepted and self._name is not None else {}
        )
        head = output_embedding(self.model)
        reads_head = head is not None and spec.representation == f"module:{name_of(self.model, head)}"
        for name in ("logits_to_keep", "num_logits_to_keep"):  # of transformers before 4.49
            if name in accepted and not (every and reads_head):
                self._options[name] = 1
        self._start = -1
        self._fed = 0
        self._cache: Any = None
        self._was_training = self.model.training
        self.capture = Capture(self.model, spec.representation, spec.layer) if capture else None
        self.model.eval()

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text."""
        self.inputs.extend(int(token) for token in tokens)

    @torch.inference_mode()
    def read(self) -> tuple[torch.Tensor, NDArray[np.float32] | None]:
        """Final logits (v,) float32 for the next token, and the key (1, d).

        Raises NotFiniteError where the model gives NaN.
        """
        start = self.window_start
        if start != self._start or self._name is None:
            self._start, self._fed, self._cache = start, start, self._empty_cache()
        try:
            output = self._pass()
        except (ValueError, RuntimeError, IndexError, TypeError):
            if self._fed == self._start:
                raise
            self._forget_cache()  # some models of some releases want more than their cache
            output = self._pass()
        key = self.keys_read[-1:] if self.capture is not None else None  # (1, d)
        if self._name is not None:
            self._cache, self._fed = getattr(output, self._name, None), len(self.inputs)
            if self._cache is None or type(self._cache).__name__ in FIXED:  # none, or a full one
                self._forget_cache()
        logits = output.logits[0, -1].float()
        if bool(torch.isnan(logits).any()) or not (key is None or np.isfinite(key).all()):
            raise NotFiniteError(
                f"the model gave NaN after {len(self.inputs) - 1} tokens; run it in another type (dtype='float32', in "
                "commands --dtype float32), and if that does not help, its weights are damaged"
            )
        return logits, key

    def _pass(self) -> Any:
        fed = torch.tensor([self.inputs[self._fed :]], dtype=torch.int64, device=self.device)  # (1, T)
        options = self._options if self._name is None else {**self._options, self._name: self._cache}
        # As in the dump, so that the key is the one that the store would have.
        with eager(self.compiled), autocast(self.device, self.dtype):
            return self.model(fed, **options)

    def _forget_cache(self) -> None:
        """Read the window again from now on."""
        self._name, self._cache, self._fed = None, None, self._start
        if "use_cache" in self._options:
            self._options["use_cache"] = False

    @property
    def window_start(self) -> int:
        """First input position of the window that the next pass reads."""
        return plan(len(self.inputs), self.window, self.context)[-1].start

    @property
    def keys_read(self) -> NDArray[np.float32]:
        """Keys of the input positions that the last pass read, (T, d), or of the last alone; see `every`."""
        assert self.capture is not None
        with autocast(self.device, self.dtype):
            return np.asarray(self.capture.keys[0].float().cpu().numpy())

    def _empty_cache(self) -> Any:
        if self._name != "cache":
            return None
        from knnlm.model.transformer import KVCache

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
    dtype: torch.dtype | None = None,
) -> Iterator[GeneratedToken]:
    """Continue a prompt of token ids, a token at a time; the prompt follows the document start, as in the dump.

    A prompt that begins with the document start itself, as chat templates write it, gets no second one. blend: weights
    with a continuous cache of prompt and text, in place of lambda. store: None = the LM alone. settings: default: what
    `tune` saved in the store, else the defaults. dtype: torch.bfloat16 runs the model under autocast; default: as the
    store's keys were made. Ends after `max_tokens`, or before a token in `stop`. Same seed, same text.

    Raises:
        IdentityError: the store belongs to another model, or was made with another arithmetic.
        NotFiniteError: the model gave NaN.
        ValueError: a prompt token that the model does not have.
    """
    from knnlm.model.keys import arithmetic

    if max_tokens < 0:
        raise ValueError(f"max_tokens: expected at least 0, found {max_tokens}")
    tokens = [int(token) for token in prompt]
    vocabulary = int(loaded.tokenizer.vocab_size)
    if any(not 0 <= token < vocabulary for token in tokens):
        raise ValueError(f"prompt: expected token ids from 0 to {vocabulary - 1}; use the model's own tokenizer")
    limit = token_limit(unwrapped(loaded.model))
    check_tokens(loaded.tokenizer, "prompt", np.array(tokens, np.int64), vocabulary if limit is None else limit)
    tokens = tokens[tokens[:1] == [int(loaded.tokenizer.bos_id)] :]
    if store is not None:
        check(store, loaded, keys)
        settings = _filled(store, settings)
    spec = resolve(loaded, keys, store)
    rng = np.random.default_rng(sampling.seed)
    if blend is not None and (blend.theta is None or blend.order is not None):
        raise ValueError("generate: expected a blend with a cache and without an n-gram model, which only scores text")
    cache: ContinuousCache | None = None
    dtype = arithmetic(store, spec, dtype)
    reader = Reader(loaded, spec, store is not None or blend is not None, dtype, every=blend is not None)
    try:
        reader.extend(tokens)
        for _ in range(max_tokens):
            logits, key = reader.read()
            log_p_lm = torch.log_softmax(logits, -1).cpu().numpy()  # (v,)
            log_p = log_p_lm
            if blend is not None and key is not None:
                if cache is None:
                    cache = _cache_of_prompt(loaded, tokens, blend, spec, dtype, reader)
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


def _filled(store: Searchable, settings: Settings | None) -> Settings:
    """Settings with T and k, once for all tokens."""
    if settings is None or settings.temperature is None or settings.k is None:
        given = {} if settings is None else {n: v for n, v in settings.to_dict().items() if n != "threads"}
        return replace(settings_of(store, **given), threads=None if settings is None else settings.threads)
    return settings


def _mixed(log_p_lm: NDArray[Any], store: Searchable, key: NDArray[np.float32], settings: Settings) -> NDArray[Any]:
    found, temperature = _found(store, key, settings)
    return np.asarray(mix_full(log_p_lm[None], found, temperature, settings.lambda_)[0])


def _found(store: Searchable, key: NDArray[np.float32], settings: Settings) -> tuple[Neighbors, float]:
    """Neighbors of a key (1, d), and T."""
    assert settings.k is not None
    assert settings.temperature is not None
    found = store.search(
        key,
        settings.k,
        nprobe=settings.nprobe,
        rerank=settings.rerank,
        exact=settings.exact,
        threads=settings.threads,
    )
    return found, settings.temperature


def _cache_of_prompt(
    loaded: Loaded,
    tokens: Sequence[int],
    blend: Blend,
    spec: KeySpec,
    dtype: torch.dtype | None,
    reader: Reader,
) -> ContinuousCache:
    """The cache after the prompt, with the keys that scoring it would have; `reader` has just read its last window."""
    from knnlm.model.keys import iterate_as
    from knnlm.text.inputs import TokenDocument

    last = reader.keys_read  # (T, d): the input at position t is followed by token t
    cache = ContinuousCache(last.shape[1], blend.size, blend.metric)
    known = plan(len(tokens) + 1, reader.window, reader.context)[-1].score_from
    before = [TokenDocument("", np.asarray(tokens[:known], np.uint32))]
    for chunk in iterate_as(loaded, before, spec, scores=False, key_dtype="float32", dtype=dtype):
        cache.add(chunk.key, chunk.tokens)
    first = len(tokens) + 1 - len(last)  # position of the first key
    cache.add(last[known - first : -1], tokens[known:])
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

    def put(name: str, found: Neighbors, temperature: float) -> None:
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
