"""KNNLM: a language model and a datastore as one model (Khandelwal et al. 2020), with one call for each use."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from knnlm.build.add import AddResult, add_texts
from knnlm.build.from_text import build_from_text
from knnlm.build.output_folder import refuse_existing
from knnlm.evaluate.evaluate_store import StoreEvaluation, evaluate_store, scored_texts
from knnlm.evaluate.tune import Tuned
from knnlm.evaluate.tune_store import tune_store
from knnlm.lm.blend import blend_of, untuned_cache
from knnlm.lm.explain import Explanation, explain
from knnlm.lm.settings import settings_of
from knnlm.model.given import as_loaded, given_model
from knnlm.model.identity import check
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import DEFAULT_REPRESENTATION, KeySpec, key_spec
from knnlm.model.keys import batch_tokens_of
from knnlm.model.load import load_model
from knnlm.model.loaded import Loaded
from knnlm.store.datastore import Datastore
from knnlm.store.opening import as_folder, as_store
from knnlm.store.protocols import Searchable
from knnlm.text.inputs import as_document, token_ids
from knnlm.text.texts import Progress, Reading, Texts, texts_of

JOINED = 8
"""Tokens before a new one that are decoded with it: the white space that joins them is the decoder's to say."""


class KNNLM:
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
        >>> lm = KNNLM(load_model("model/"), Datastore.open("store/"))  # doctest: +SKIP
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

    def evaluate(
        self,
        texts: Any,
        *,
        reading: Reading | None = None,
        overlap: bool = False,
        progress: Progress | None = None,
        **options: Any,
    ) -> StoreEvaluation:
        """Perplexity of texts with the store and of the model alone, with the paired 95 % interval of the change.

        texts: as of `build`; documents may also be token ids. reading: how paths are read. overlap: also find the share
        of the tokens that lie in a 13-gram of the store. progress: called with (stage, done, total). options: as
        `neighbors_of`: exclude ("document", "entry" or "none": what is left out where the very text is in the store),
        batch_tokens.
        """
        if self.datastore is None:
            raise ValueError("evaluate: expected a datastore, found None; use perplexity(text) for the LM alone")
        given = scored_texts(texts, self.loaded.tokenizer, reading)
        found, blended = evaluate_store(
            self.loaded,
            self.datastore,
            given.tokenised(self.loaded.tokenizer) if isinstance(given, Texts) else given,
            self.settings,
            overlap=overlap,
            scoring=given.counting(progress, "score") if isinstance(given, Texts) else None,
            progress=progress,
            **{"keys": self.keys, "dtype": self.dtype, "blend": self.blend, **options},
        )
        return blended or found

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

    @classmethod
    def open(
        cls,
        store: str | os.PathLike[str] | Datastore,
        model: Any = None,
        *,
        tokenizer: Any = None,
        device: Any = None,
        dtype: Any = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        lambda_: float | None = None,
        temperature: float | None = None,
        k: int | None = None,
        nprobe: int | None = None,
        rerank: str | None = None,
        exact: bool | None = None,
        threads: int | None = None,
        cache: bool = False,
        ngram: bool = False,
        **model_kwargs: Any,
    ) -> KNNLM:
        """A store with its model: the one that the store remembers, or the given one.

        store: its folder, or a `Datastore`. model: folder, hub name or an object as for `KNNLM`; None = as remembered,
        whose code is never run. device, dtype (of the weights; None = that of the store), revision, trust_remote_code,
        model_kwargs: as `load_model`. Others: as `KNNLM`.

        Raises:
            FileNotFoundError: no store there. UsageError: the store remembers no model, or it is gone.
            IdentityError: the model or the tokenizer did not write the store.

        Example:
            >>> lm = KNNLM.open("store")  # doctest: +SKIP
            >>> lm.generate("It was a", max_tokens=20)  # doctest: +SKIP
        """
        opened = as_store(store)
        load = {"device": device, "dtype": dtype, "revision": revision, "trust_remote_code": trust_remote_code}
        loaded = given_model(model, tokenizer, opened, **load, **model_kwargs)
        return cls(
            loaded,
            opened,
            lambda_=lambda_,
            temperature=temperature,
            k=k,
            nprobe=nprobe,
            rerank=rerank,
            exact=exact,
            threads=threads,
            cache=cache,
            ngram=ngram,
        )

    @classmethod
    def from_pretrained(
        cls, model: Any, store: str | os.PathLike[str] | Datastore | None = None, **options: Any
    ) -> KNNLM:
        """A model with a store that it has written, or alone.

        model: folder or hub name, or an object as for `KNNLM`. store: its folder, or a `Datastore`; None = the model
        alone. options: as of `KNNLM.open`: device, dtype, revision, trust_remote_code, settings of the mixture, and
        what `from_pretrained` of transformers takes.

        Example:
            >>> lm = KNNLM.from_pretrained("gpt2", "store", device="cuda", revision="main")  # doctest: +SKIP
        """
        if model is None:
            raise TypeError(
                "model: expected a folder, a name or a model, found None; KNNLM.open(store) has the store's"
            )
        if store is not None:
            return cls.open(store, model, **options)
        tokenizer = options.pop("tokenizer", None)
        own = {name: options.pop(name) for name in ("lambda_", "temperature", "cache") if name in options}
        return cls(given_model(model, tokenizer, **options), None, **own)

    @classmethod
    def build(
        cls,
        model: Any,
        texts: Any,
        store: str | os.PathLike[str],
        *,
        tokenizer: Any = None,
        reading: Reading | None = None,
        overwrite: bool = False,
        keep_keys: bool | str = False,
        representation: str = DEFAULT_REPRESENTATION,
        layer: int = -1,
        window: int | None = None,
        context: int | None = None,
        autocast: str | None = None,
        metric: Literal["l2", "ip"] = "l2",
        code: Literal["small", "flat"] | tuple[int, int] | None = None,
        nlist: int | None = None,
        seed: int = 0,
        threads: int | None = None,
        workers: int = 0,
        batch_size: int | None = None,
        device: Any = None,
        dtype: Any = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        progress: Progress | None = None,
        **model_kwargs: Any,
    ) -> KNNLM:
        """Run a model over texts and make an indexed store of them, as `knnlm build` does; returns both as one.

        The store appears whole or not at all. An interrupted build goes on where it was when the same call is made
        again; until then it is `.NAME.building` beside the store.

        model: folder, hub name or an object as for `KNNLM`. texts: a path (file, folder, glob, hf:NAME), several as
        `Path` objects, or an iterable of strings, (name, text) or documents, see `texts_of`. reading: how paths are
        read. overwrite: replace a store that is there, once the new one is whole. keep_keys: also store raw keys, as
        "float16" (True) or "float32", for exact search and for another index. representation, layer, window, context,
        autocast: how keys are made, as `KeySpec`. code, nlist, seed, threads: as `Datastore.build`. workers: processes
        that run the model, each with its own copy; needs a model by name. batch_size: windows of a forward pass.
        device, dtype (of the weights), revision, trust_remote_code, model_kwargs: as `load_model`. progress: called
        with (stage, done, total).

        Raises:
            UsageError: something is at `store` and `overwrite` is not given, or is not of knnlm.
            TypeError, ValueError, FileNotFoundError: texts or arguments that cannot be used.

        Example:
            >>> lm = KNNLM.build("gpt2", "books/", "store")  # doctest: +SKIP
            >>> lm.tune("validation.txt")  # doctest: +SKIP
        """
        path = as_folder(store)
        given = texts_of(texts, reading, stamped=True)
        load = {"device": device, "dtype": dtype, "revision": revision, "trust_remote_code": trust_remote_code}
        named = isinstance(model, (str, os.PathLike))
        refuse_existing(path, overwrite)
        loaded = given_model(model, tokenizer, **load, **model_kwargs)
        key_dtype = keep_keys if isinstance(keep_keys, str) else "float16" if keep_keys else "float32"
        keys = KeySpec(representation, layer, window, context, key_dtype, autocast)
        build_from_text(
            path,
            loaded,
            given,
            keys=keys,
            overwrite=overwrite,
            keep_keys=bool(keep_keys),
            code=code,
            nlist=nlist,
            metric=metric,
            seed=seed,
            threads=threads,
            workers=workers,
            load=functools.partial(load_model, model, **load, **model_kwargs) if named else None,
            batch_tokens=batch_tokens_of(batch_size, keys, loaded),
            source=model if named else None,
            progress=progress,
        )
        given.log()
        return cls(loaded, Datastore.open(path), threads=threads)

    def tune(
        self,
        texts: Any,
        *,
        reading: Reading | None = None,
        k: int = 1024,
        temperature: float | None = None,
        nprobe: int | None = None,
        rerank: str | None = None,
        exact: bool = False,
        cache: bool = False,
        ngram: bool = False,
        progress: Progress | None = None,
    ) -> Tuned:
        """Choose λ, T and k on validation texts, save them in the store, and use them from now on.

        texts: as of `build`; they must not be in the store: where one is, its own entries are left out. k: most
        neighbors to consider. temperature: fixes T. nprobe, rerank, exact: how the store is searched, saved as well.
        cache, ngram: also choose and save the weights of a continuous cache and a 5-gram model of the store, for
        `KNNLM.open(store, cache=True)`. progress: called with (stage, done, total).

        Returns the chosen settings, the perplexity with them and of the model alone, and curves around them.
        """
        store = self._own_store("tune")
        given = texts_of(texts, reading)
        found = tune_store(
            self.loaded,
            store,
            lambda: given.tokenised(self.loaded.tokenizer),
            k=k,
            temperature=temperature,
            nprobe=nprobe,
            rerank=rerank,
            exact=exact,
            cache=cache,
            ngram=ngram,
            keys=self.keys,
            dtype=self.dtype,
            threads=self.settings.threads,
            overlap=False,
            scoring=given.counting(progress, "score"),
            progress=progress,
        )
        given.log()
        if found.unsaved is not None:
            raise found.unsaved
        self.settings = replace(settings_of(store), threads=self.settings.threads)
        return found.tuned

    def add(
        self,
        texts: Any,
        *,
        reading: Reading | None = None,
        keep_removed: bool = False,
        dry_run: bool = False,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> AddResult:
        """Bring the store up to date with texts, as `knnlm add` does: one change, whole or not at all.

        texts: as of `build`. Of paths, what is new is added, what has changed is replaced, and what was there before
        and is gone is deleted (not with keep_removed). Of texts that are given, one with the name of a document that
        was given before takes its place, one without a name is always new, and nothing is deleted. dry_run: only say
        what would be done. batch_size: windows of a forward pass. progress: called with (stage, done, total).
        """
        store = self._own_store("add")
        given = texts_of(texts, reading)
        done = add_texts(
            store,
            given,
            lambda: self.loaded,
            keep_removed=keep_removed,
            dry_run=dry_run,
            batch_tokens=batch_tokens_of(batch_size, self.keys, self.loaded),
            threads=self.settings.threads,
            progress=progress,
        )
        given.log()
        return done

    def _own_store(self, what: str) -> Datastore:
        if not isinstance(self.datastore, Datastore):
            found = "None" if self.datastore is None else f"a {type(self.datastore).__name__}"
            raise TypeError(f"{what}: expected a KNNLM with a Datastore, which can be changed, found one with {found}")
        return self.datastore

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
        return f"datastore: expected a datastore, found a path: give Datastore.open({str(found)!r})"
    return (
        f"datastore: expected something with search, metric, dim and a length, or None for the model alone, found a "
        f"{type(found).__name__}"
    )
