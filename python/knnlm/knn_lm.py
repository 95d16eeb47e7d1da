"""KNNLM: a language model and a datastore as one model (Khandelwal et al. 2020), with one call for each use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.lifecycle import Lifecycle
from knnlm.lm.blend import blend_of, untuned_cache
from knnlm.lm.explain import Explanation, explain
from knnlm.lm.settings import settings_of
from knnlm.model.given import as_loaded
from knnlm.model.identity import check
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec, key_spec
from knnlm.model.loaded import Loaded
from knnlm.store.protocols import Searchable
from knnlm.text.inputs import as_document, token_ids

JOINED = 8
"""Tokens before a new one that are decoded with it: the white space that joins them is the decoder's to say."""


class KNNLM(Lifecycle):
    """A language model that looks up what followed similar contexts.

    model: what `load_model` returns; or our `TransformerLM` or any Hugging Face causal model, together with `tokenizer`
    (ours, a `tokenizer.json`, or a fast Hugging Face tokenizer). datastore: anything with `search`; None = the LM
    alone.

    Settings that are not given are those that `tune` saved in the store; without them lambda_ = 0.25, T = the store's
    own default temperature, k = min(1024, n). Key representation, layer, window and context are the store's. Raises
    IdentityError if the store was written by another model, tokenizer, representation or arithmetic (`dtype`), and
    warns (UserWarning) of a given window or context that is not the store's.

    cache, ngram: also mix in a continuous cache of the text (Grave et al. 2017) and an n-gram model of the store's
    text, with the weights that `knnlm tune --cache --ngram` saved; lambda_ counts for nothing then. Raises ValueError
    where none were saved. Without a datastore the cache is one by itself: weight lambda_, theta = 1/temperature, by
    default `cache.theta_of` each query. `generate` uses the cache too, not the n-gram; `explain` uses neither.

    Example:
        >>> lm = KNNLM.open("store/")  # doctest: +SKIP
        >>> lm.perplexity("Some text."), lm.generate("Once", max_tokens=5)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        datastore: Searchable | None,
        *,
        tokenizer: Any = None,
        lambda_: float | None = None,
        temperature: float | None = None,
        k: int | None = None,
        nprobe: int | None = None,
        rerank: str | None = None,
        exact: bool | None = None,
        threads: int | None = None,
        representation: str | None = None,
        layer: int | None = None,
        window: int | None = None,
        context: int | None = None,
        cache: bool = False,
        ngram: bool = False,
        dtype: Any = None,
    ) -> None:
        """Check that model and datastore belong together, and settle the settings."""
        if datastore is not None and not isinstance(datastore, Searchable):
            raise TypeError(_no_datastore(datastore))
        self.loaded: Loaded = as_loaded(model, tokenizer)
        self.datastore = datastore
        self.dtype = dtype
        given = {"representation": representation, "layer": layer, "window": window, "context": context}
        spec = key_spec(datastore) or KeySpec()
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self.keys = resolve(self.loaded, replace(spec, **chosen))
        alone = datastore is None and cache and not ngram
        self.blend = untuned_cache(lambda_, temperature) if alone else blend_of(datastore, cache, ngram)
        if datastore is None:
            self.settings = replace(settings_of(()), lambda_=0.0)
            return
        check(datastore, self.loaded, self.keys)
        self.settings = replace(
            settings_of(
                datastore, lambda_=lambda_, temperature=temperature, k=k, nprobe=nprobe, rerank=rerank, exact=exact
            ),
            threads=threads,
        )

    def __repr__(self) -> str:
        """Model, store size and settings."""
        size = 0 if self.datastore is None else len(self.datastore)
        return f"KNNLM({self.loaded.name!r}, {size} entries, {self.settings})"

    def log_probs(self, text: Any, *, exclude: str = "document") -> NDArray[np.floating[Any]]:
        """log p of each token of a text, (L,) nats.

        text: a string, token ids (L,), or a document; ids that begin with the document start are scored without it, as
        every text is read after one. exclude: where the very same text is a document of the store,
        leave out that "document", each token's own "entry", or "none".
        """
        from knnlm.lm.score import mixed_log_p, scored_by
        from knnlm.model.keys import arithmetic, iterate

        document = as_document(text, self.loaded.tokenizer)
        if self.datastore is None and self.blend is not None:
            return self._cache_log_probs(document)
        if self.datastore is None or (self.settings.lambda_ == 0 and self.blend is None):
            chunks = iterate(
                self.loaded,
                [document],
                captures=(),
                window=self.keys.window,
                context=self.keys.context,
                dtype=arithmetic(self.datastore, self.keys, self.dtype),
            )
            return np.concatenate([np.zeros(0, np.float32), *(chunk.log_p for chunk in chunks)])
        cached, settings = scored_by(
            self.loaded,
            [document],
            self.datastore,
            self.settings,
            blend=self.blend,
            keys=self.keys,
            exclude=exclude,
            dtype=self.dtype,
        )
        return mixed_log_p(cached, settings, self.blend)

    def _cache_log_probs(self, document: Any) -> NDArray[np.floating[Any]]:
        """LM and continuous cache, without a store, (L,)."""
        from knnlm.model.keys import arithmetic, iterate_as
        from knnlm.probability.continuous_cache import continuous_cache_log_p
        from knnlm.probability.mixture import mix_components

        assert self.blend is not None
        assert self.blend.theta is not None
        chunks = list(
            iterate_as(
                self.loaded,
                [document],
                self.keys,
                key_dtype="float32",
                dtype=arithmetic(None, self.keys, self.dtype),
            )
        )
        if not any(len(chunk.tokens) for chunk in chunks):
            return np.zeros(0, np.float32)
        keys = np.concatenate([chunk.key for chunk in chunks])  # (L, d)
        cache = continuous_cache_log_p(
            keys, chunks[-1].all_tokens, self.blend.theta, self.blend.size, self.blend.metric
        )
        parts = {"lm": np.concatenate([chunk.log_p for chunk in chunks]), "cache": cache}
        return mix_components(parts, {name: self.blend.weights[name] for name in parts})

    def perplexity(self, text: Any, *, words: bool = False, exclude: str = "document") -> float:
        """Perplexity of a text by token, or by word (white-space words and line ends); NaN for an empty text."""
        log_p = self.log_probs(text, exclude=exclude)
        units = len(log_p)
        if words:
            from knnlm.text.tokenizer import count_words

            read = as_document(text, self.loaded.tokenizer).text
            if read is None:
                raise ValueError("words: expected a text whose words can be counted, found token ids; give the string")
            units = count_words(read)
        with np.errstate(over="ignore"):
            return float(np.exp(-log_p.sum(dtype=np.float64) / units)) if units else float("nan")

    def explain(
        self,
        text: Any,
        *,
        exclude: str = "document",
        start: int = 0,
        stop: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Explanation:
        """Tokens, p_LM, p_kNN and p of each, neighbors, their shares and documents, as arrays.

        start, stop: only these tokens of a long text, for the arrays hold some 32 k bytes a token.
        """
        if self.datastore is None:
            raise ValueError("explain: expected a datastore, found None; there are no neighbors to show")
        if self.blend is not None:
            raise ValueError("explain: expected a KNNLM without cache and ngram, found one; make another one for it")
        return explain(
            self.loaded,
            self.datastore,
            as_document(text, self.loaded.tokenizer),
            self.settings,
            keys=self.keys,
            exclude=exclude,
            start=start,
            stop=stop,
            dtype=self.dtype,
            progress=progress,
        )

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 100,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Collection[int] | None = None,
    ) -> Iterator[str]:
        """As `generate`, in pieces of text as they come."""
        from knnlm.lm.generate import Sampling, generate

        tokenizer = self.loaded.tokenizer
        tokens = token_ids(prompt, tokenizer).tolist()
        # Decoding with the end of the prompt keeps the white space that joins the two.
        ids = tokens[-JOINED:]
        shown = tokenizer.decode(ids).rstrip("\ufffd")  # half a character of the prompt is shown with its rest
        for token in generate(
            self.loaded,
            tokens,
            store=self.datastore,
            settings=self.settings,
            keys=self.keys,
            blend=self.blend,
            max_tokens=max_tokens,
            sampling=Sampling(temperature, top_k, top_p, seed),
            dtype=self.dtype,
            stop=self._stop() if stop is None else stop,
        ):
            ids.append(token.id)
            text = tokenizer.decode(ids)
            if not text.endswith("\ufffd"):  # wait for the rest of a character
                yield text[len(shown) :]
                ids = ids[-JOINED:]
                shown = tokenizer.decode(ids)
        if len(text := tokenizer.decode(ids)) > len(shown):
            yield text[len(shown) :]

    def generate(self, prompt: str | Sequence[int], **options: Any) -> str:
        """Continue a prompt; returns the new text.

        options: max_tokens=100, temperature=0.0 (greedy), top_k, top_p, seed=0, stop (token ids; default: the model's
        own end of text). This temperature reshapes the mixture, not p_kNN.
        """
        return "".join(self.stream(prompt, **options))

    def _stop(self) -> tuple[int, ...]:
        """What the model's own configuration names as end of text; nothing for a model without one."""
        from knnlm.model.modules import unwrapped

        for holder in ("generation_config", "config"):
            end = getattr(getattr(unwrapped(self.loaded.model), holder, None), "eos_token_id", None)
            if end is not None:
                return tuple(end) if isinstance(end, (list, tuple)) else (int(end),)
        return ()


def _no_datastore(found: Any) -> str:
    if isinstance(found, str) or hasattr(found, "__fspath__"):
        return (
            f"datastore: expected a datastore, found a path: KNNLM.open({str(found)!r}) opens it with the model "
            f"that it remembers, KNNLM.from_pretrained(model, {str(found)!r}) with another"
        )
    return (
        f"datastore: expected something with search, metric, dim and a length, or None for the model alone, found a "
        f"{type(found).__name__}"
    )
