"""Generate text from the mixture: the sampler sees log p of what a combiner makes of LM, store and running text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from knnlm.lm.combiners import running_text
from knnlm.lm.reader import Reader
from knnlm.lm.retriever import Retriever
from knnlm.lm.running_text import RunningText
from knnlm.lm.sampler import GREEDY, Sampling, draw
from knnlm.lm.stretches import OF_THE_MODEL
from knnlm.model.forward import check_tokens
from knnlm.model.identity import check
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec
from knnlm.model.loaded import Loaded
from knnlm.model.modules import token_limit, unwrapped
from knnlm.model.windows import plan
from knnlm.probability.combiner import Combiner, Feature


class GeneratedToken(NamedTuple):
    """A token that was chosen, and its log-probabilities under the mixture and under the LM (nats)."""

    id: int
    log_p: float
    log_p_lm: float


def generate(
    loaded: Loaded,
    prompt: Sequence[int] | NDArray[Any],
    retriever: Retriever | None = None,
    combiner: Combiner | None = None,
    *,
    keys: KeySpec | None = None,
    max_new_tokens: int = 100,
    sampling: Sampling = GREEDY,
    stop: Collection[int] = (),
) -> Iterator[GeneratedToken]:
    """Continue a prompt of token ids, a token at a time; the prompt follows the document start, as in the dump.

    A prompt that begins with the document start itself, as chat templates write it, gets no second one. combiner: what
    mixes neighbors, and a cache and an n-gram model's view of prompt and text; None = the LM alone. keys: default: as
    the store's were made. Ends after `max_new_tokens`, or before a token in `stop`. Same seed, same text.

    Raises:
        IdentityError: the store belongs to another model, or was made with another arithmetic.
        NotFiniteError: the model gave NaN.
        ValueError: a prompt token that the model does not have.
    """
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens: expected at least 0, found {max_new_tokens}")
    tokens = _checked_prompt(loaded, prompt)
    vocabulary = int(loaded.tokenizer.vocab_size)
    store = None if retriever is None else retriever.store
    if store is not None:
        check(store, loaded, keys)
    spec = resolve(loaded, keys, store)
    rng = np.random.default_rng(sampling.seed)
    running = RunningText() if combiner is None else running_text(combiner, store, vocabulary)
    looked_at = combiner is not None and (retriever is not None or running.needs_keys)
    reader = Reader(loaded, spec, looked_at, every=running.needs_keys)
    try:
        reader.extend(tokens)
        for count in range(max_new_tokens):
            logits, key = reader.read()
            log_p = log_p_lm = torch.log_softmax(logits, -1).cpu().numpy()  # (v,)
            if combiner is not None:
                if count == 0:
                    _read_prompt(loaded, tokens, spec, reader, running)
                found = None if retriever is None else retriever.find(key)  # type: ignore[arg-type]
                features = running.next(key, len(log_p_lm)) | _of_the_model(combiner, log_p_lm)
                log_p = combiner.log_p(log_p_lm[None], found, features)[0]
            token = draw(log_p, sampling, rng)
            if token in stop:
                return
            yield GeneratedToken(token, float(log_p[token]), float(log_p_lm[token]))
            running.add(key, [token])
            reader.extend([token])
    finally:
        reader.close()


def _checked_prompt(loaded: Loaded, prompt: Sequence[int] | NDArray[Any]) -> list[int]:
    """Its tokens without a document start. Raises ValueError for one that the model does not have."""
    tokens = [int(token) for token in prompt]
    vocabulary = int(loaded.tokenizer.vocab_size)
    if any(not 0 <= token < vocabulary for token in tokens):
        raise ValueError(f"prompt: expected token ids from 0 to {vocabulary - 1}; use the model's own tokenizer")
    limit = token_limit(unwrapped(loaded.model))
    check_tokens(loaded.tokenizer, "prompt", np.array(tokens, np.int64), vocabulary if limit is None else limit)
    return tokens[tokens[:1] == [int(loaded.tokenizer.bos_id)] :]


def _of_the_model(combiner: Combiner, log_p_lm: NDArray[np.float32]) -> dict[str, Feature]:
    """Features of p_LM that a combiner names, (1,) each, as `model.head` gives them for a text that is scored."""
    wanted = set(combiner.features) & set(OF_THE_MODEL)
    found: dict[str, Feature] = {}
    if "entropy" in wanted:
        p = np.exp(log_p_lm)
        found["entropy"] = -np.sum(p * log_p_lm, where=p > 0, keepdims=True)
    if "max" in wanted:
        found["max"] = log_p_lm.max(keepdims=True)
    return found


def _read_prompt(
    loaded: Loaded,
    tokens: Sequence[int],
    spec: KeySpec,
    reader: Reader,
    running: RunningText,
) -> None:
    """Read a prompt into the running text, with the keys that scoring it would have; `reader` has just read its end."""
    from knnlm.model.keys import iterate_as
    from knnlm.text.inputs import TokenDocument

    if not running.needs_keys:
        running.add(None, tokens)
        return
    last = reader.keys_read  # (T, d): the input at position t is followed by token t
    known = plan(len(tokens) + 1, reader.window, reader.context)[-1].score_from
    before = [TokenDocument("", np.asarray(tokens[:known], np.uint32))]
    for chunk in iterate_as(loaded, before, spec, scores=False, key_dtype="float32"):
        running.add(chunk.key, chunk.tokens)
    first = len(tokens) + 1 - len(last)  # position of the first key
    running.add(last[known - first : -1], tokens[known:])
