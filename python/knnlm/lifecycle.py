"""Lifecycle: a store is built, opened, tuned, evaluated and kept up to date with its model, as the commands do it."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from knnlm.evaluate.evaluate_store import StoreEvaluation, evaluate_store, scored_texts
from knnlm.evaluate.tune import Tuned
from knnlm.evaluate.tune_store import tune_store
from knnlm.lm.combiners import combiner_of
from knnlm.lm.retriever import Retriever
from knnlm.lm.settings import Settings, settings_of
from knnlm.model.given import given_model
from knnlm.model.key_spec import DEFAULT_REPRESENTATION, KeySpec
from knnlm.model.loaded import Loaded
from knnlm.probability.blend import Blend
from knnlm.probability.combiner import Combiner
from knnlm.store.datastore import Datastore
from knnlm.store.opening import as_folder, as_store
from knnlm.store.output_folder import place_of, refuse_existing
from knnlm.store.protocols import Searchable
from knnlm.text.texts import Progress, Reading, Texts, texts_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from knnlm.build.add import AddResult


class Lifecycle:
    """What `KNNLM` does with its store over time."""

    loaded: Loaded
    datastore: Searchable | None
    settings: Settings
    keys: KeySpec
    retriever: Retriever | None
    combiner: Combiner
    dtype: Any

    if TYPE_CHECKING:

        def __init__(self, model: Any, datastore: Searchable | None, **settings: Any) -> None: ...

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
    ) -> Self:
        """A store with its model: the one that the store remembers, or the given one.

        store: its folder, or a `Datastore`. model: folder, hub name or an object as for `KNNLM`; None = as remembered,
        whose code is never run. device, dtype (of the weights; None = that of the store), revision, trust_remote_code,
        model_kwargs: as `load_model`. Others: as `KNNLM`.

        Raises:
            FileNotFoundError: no store there. UsageError: the store remembers no model, or it is gone.
            IdentityError: the model or the tokenizer did not write the store.

        Example:
            >>> lm = KNNLM.open("store")  # doctest: +SKIP
            >>> lm.generate("It was a", max_new_tokens=20)  # doctest: +SKIP
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
    ) -> Self:
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
    ) -> Self:
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
        from knnlm.build.from_text import build_from_text
        from knnlm.model.keys import batch_tokens_of
        from knnlm.model.load import load_model

        path = place_of(as_folder(store))
        if keep_keys not in (True, False, "float16", "float32"):
            raise ValueError(f"keep_keys: expected True, False, 'float16' or 'float32', found {keep_keys!r}")
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
        self.retriever = Retriever(store, self.settings)
        had = set(self.combiner.features) if isinstance(self.combiner, Blend) else set()
        blended = {"cache": cache and bool(had - {"ngram"}), "ngram": ngram and "ngram" in had}  # as it was made with
        self.combiner = combiner_of(store, self.settings, **blended)
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
        from knnlm.build.add import add_texts
        from knnlm.model.keys import batch_tokens_of

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

    def evaluate(
        self,
        texts: Any,
        *,
        reading: Reading | None = None,
        exclude: str = "document",
        overlap: bool = False,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> StoreEvaluation:
        """Perplexity of texts with the store and of the model alone, with the paired 95 % interval of the change.

        texts: as of `build`; documents may also be token ids. reading: how paths are read. exclude: where the very text
        is in the store, leave out that "document", each token's own "entry", or "none". overlap: also find the share of
        the tokens that lie in a 13-gram of the store. batch_size: windows of a forward pass. progress: called with
        (stage, done, total).
        """
        from knnlm.model.keys import batch_tokens_of

        if self.datastore is None:
            raise ValueError("evaluate: expected a datastore, found None; use perplexity(text) for the LM alone")
        given = scored_texts(texts, self.loaded.tokenizer, reading)
        found = evaluate_store(
            self.loaded,
            given.tokenised(self.loaded.tokenizer) if isinstance(given, Texts) else given,
            Retriever(self.datastore, self.settings, exclude),
            {"p": self.combiner},
            overlap=overlap,
            scoring=given.counting(progress, "score") if isinstance(given, Texts) else None,
            progress=progress,
            keys=self.keys,
            dtype=self.dtype,
            batch_tokens=batch_tokens_of(batch_size, self.keys, self.loaded),
        )
        if isinstance(given, Texts):
            given.log()
        return found["p"]
