"""KNNLM: a language model and a datastore as one model (Khandelwal et al. 2020), with one call for each use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.creation import Creation
from knnlm.lm.combiners import running_text
from knnlm.lm.explain import Explanation, explain
from knnlm.lm.retriever import Retriever
from knnlm.model.given import as_loaded
from knnlm.model.identity import check
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec, key_spec
from knnlm.model.threads import torch_threads
from knnlm.option_names import refuse_foreign
from knnlm.probability.fixed import Fixed
from knnlm.store.protocols import Searchable
from knnlm.system.counted import counted
from knnlm.system.name_of_file import warn_of_name
from knnlm.text.inputs import as_document, token_ids
from knnlm.upkeep import Upkeep

JOINED = 8
"""Tokens before a new one that are decoded with it: the white space that joins them is the decoder's to say."""


class KNNLM(Creation, Upkeep):
    """A language model that looks up what followed similar contexts.

    model: what `load_model` returns; or our `TransformerLM` or any Hugging Face causal model, together with `tokenizer`
    (ours, a `tokenizer.json`, or a fast Hugging Face tokenizer). datastore: anything with `search`; None = the LM
    alone.

    Settings that are not given are those that `tune` saved in the store; without them lambda_ = 0.25, T = the store's
    own default temperature, k = min(1024, n). They and the store's documents follow what is added, tuned or replaced by
    this object; `settle` takes in what others have changed. threads: of the model and of the search; None = all cores.
    Key representation, layer, window, context and autocast (the arithmetic of the model, as in `KeySpec`) are the
    store's. Raises IdentityError if the store was written by another model, tokenizer, representation or arithmetic,
    and warns (UserWarning) of a given window or context that is not the store's; ValueError for settings of a search
    where there is no datastore.

    cache, ngram: also mix in a continuous cache of the text (Grave et al. 2017) and an n-gram model of the store's
    text, with the weights that `knnlm tune --cache --ngram` saved; lambda_ counts for nothing then. Raises ValueError
    where none were saved. Without a datastore the cache is one by itself: weight lambda_, theta = 1/temperature, by
    default `continuous_cache.theta_of` each query.

    Example:
        >>> lm = KNNLM.open("store/")  # doctest: +SKIP
        >>> lm.perplexity("Some text."), lm.generate("Once", max_new_tokens=5)  # doctest: +SKIP
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
        autocast: str | None = None,
        cache: bool = False,
        ngram: bool = False,
    ) -> None:
        """Check that model and datastore belong together, and settle the settings."""
        if datastore is not None and not isinstance(datastore, Searchable):
            raise TypeError(_no_datastore(datastore))
        self.loaded = as_loaded(model, tokenizer)
        self.datastore = datastore
        made = {
            "representation": representation,
            "layer": layer,
            "window": window,
            "context": context,
            "autocast": autocast,
        }
        chosen: dict[str, Any] = {name: value for name, value in made.items() if value is not None}
        self.keys = resolve(self.loaded, replace(key_spec(datastore) or KeySpec(), **chosen))
        if datastore is not None:
            check(datastore, self.loaded, self.keys)
        self._given = {
            "lambda_": lambda_,
            "temperature": temperature,
            "k": k,
            "nprobe": nprobe,
            "rerank": rerank,
            "exact": exact,
            "threads": threads,
        }
        self._blend = {"cache": cache, "ngram": ngram}
        self.settle()

    def __repr__(self) -> str:
        """Model, store size and settings."""
        size = counted(0 if self.datastore is None else len(self.datastore), "entry")
        return f"KNNLM({self.loaded.name!r}, {size}, {self.settings})"

    def log_probs(self, text: Any, *, exclude: str = "document") -> NDArray[np.floating[Any]]:
        """log p of each token of a text, (L,) nats.

        text: a string (the text itself: `evaluate` is what reads files), token ids (L,), or a document; ids that begin
        with the document start are scored without it, as every text is read after one. exclude: where the very same
        text is a document of the store, leave out that "document", each token's own "entry", or "none".

        Warns (UserWarning) of a string that is the path of a file; so do `perplexity`, `explain` and `generate`.
        """
        from knnlm.lm.stretches import stretches

        warn_of_name(text)
        parts: list[NDArray[np.floating[Any]]] = [np.zeros(0, np.float32)]
        with torch_threads(self.settings.threads):
            for stretch in stretches(
                self.loaded,
                [as_document(text, self.loaded.tokenizer)],
                None if self._alone else self._retriever(exclude),
                keys=self.keys,
                features=self.combiner.features,
                running=running_text(self.combiner, self.datastore, int(self.loaded.tokenizer.vocab_size)),
                tolerant=False,
            ):
                found, features = stretch.neighbors, stretch.features
                parts.append(self.combiner.log_p(stretch.log_p_lm, found, features, stretch.tokens))
        return np.concatenate(parts)

    @property
    def _alone(self) -> bool:
        """Whether neighbors would weigh nothing."""
        return isinstance(self.combiner, Fixed) and self.combiner.lambda_ == 0

    def _retriever(self, exclude: str) -> Retriever | None:
        if self.retriever is None or exclude == self.retriever.exclude:
            return self.retriever
        return Retriever(self.retriever.store, self.settings, exclude)

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
        warn_of_name(text)
        retriever = self._retriever(exclude)
        if retriever is None:
            raise ValueError("explain: expected a datastore, found None; there are no neighbors to show")
        with torch_threads(self.settings.threads):
            return explain(
                self.loaded,
                retriever,
                self.combiner,
                as_document(text, self.loaded.tokenizer),
                keys=self.keys,
                start=start,
                stop=stop,
                progress=progress,
            )

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = 100,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Collection[int] | None = None,
    ) -> Iterator[str]:
        """As `generate`, in pieces of text as they come."""
        from knnlm.lm.generate import generate
        from knnlm.lm.sampler import Sampling

        warn_of_name(prompt, "prompt")
        tokenizer = self.loaded.tokenizer
        tokens = token_ids(prompt, tokenizer).tolist()
        # Decoding with the end of the prompt keeps the white space that joins the two.
        ids = tokens[-JOINED:]
        shown = tokenizer.decode(ids).rstrip("\ufffd")  # half a character of the prompt is shown with its rest
        generated = generate(
            self.loaded,
            tokens,
            None if self._alone else self.retriever,
            None if self._alone else self.combiner,
            keys=self.keys,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(do_sample, temperature, top_k, top_p, seed),
            stop=self._stop() if stop is None else stop,
        )
        while True:
            with torch_threads(self.settings.threads):  # not while the caller has the pieces
                token = next(generated, None)
            if token is None:
                break
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

        options: max_new_tokens=100, do_sample=False (the likeliest token each time) and with it temperature=1.0, top_k
        and top_p; seed=0; stop (token ids; default: the model's own end of text). This temperature reshapes the
        mixture, not p_kNN.
        """
        refuse_foreign(type(self), "stream", options)
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
