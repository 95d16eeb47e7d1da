"""Creation: a store opened with its model, or made of texts by one; `KNNLM`'s ways to come into being."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any, Literal

from knnlm.build.presets import preset_of
from knnlm.model.given import given_model
from knnlm.model.key_spec import DEFAULT_REPRESENTATION, KeySpec
from knnlm.option_names import refuse_foreign
from knnlm.store.datastore import Datastore
from knnlm.store.index_choice import check_index_choice
from knnlm.store.opening import as_folder, as_store
from knnlm.store.output_folder import place_of, refuse_existing
from knnlm.store.protocols import Searchable
from knnlm.text.texts import Progress, Reading, texts_of

if TYPE_CHECKING:
    from typing_extensions import Self

OWN = (
    "lambda_", "temperature", "k", "nprobe", "rerank", "exact", "threads", "representation", "layer", "window",
    "context", "autocast", "cache", "ngram",
)  # fmt: skip
"""Options that are of `KNNLM`; all others say how a model is loaded."""


class Creation:
    """How a `KNNLM` comes into being: from a store, from a model, from texts."""

    owns_datastore: bool

    if TYPE_CHECKING:

        def __init__(self, model: Any, datastore: Searchable | None, **settings: Any) -> None: ...

    @classmethod
    def open(
        cls,
        store: str | os.PathLike[str] | Datastore,
        model: Any = None,
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
        device: Any = None,
        dtype: Any = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **model_kwargs: Any,
    ) -> Self:
        """A store with its model: the one that the store remembers, or the given one.

        store: its folder, or a `Datastore`. model: folder, hub name or an object as for `KNNLM`; None = as remembered,
        whose code is never run. tokenizer: of a torch module. lambda_ to ngram: as `KNNLM`. device, dtype (of the
        weights; None = that of the store), revision, trust_remote_code, model_kwargs: as `load_model`. A store that
        was opened here by its path is closed by `close`, or at the end of a `with`.

        Raises:
            FileNotFoundError: no store there. UsageError: the store remembers no model, or it is gone.
            IdentityError: the model or the tokenizer did not write the store.

        Example:
            >>> lm = KNNLM.open("store")  # doctest: +SKIP
            >>> lm.generate("It was a", max_new_tokens=20)  # doctest: +SKIP
        """
        refuse_foreign(cls, "open", model_kwargs)
        opened = as_store(store)
        try:
            load = {"device": device, "dtype": dtype, "revision": revision, "trust_remote_code": trust_remote_code}
            lm = cls(
                given_model(model, tokenizer, opened, **load, **model_kwargs),
                opened,
                lambda_=lambda_,
                temperature=temperature,
                k=k,
                nprobe=nprobe,
                rerank=rerank,
                exact=exact,
                threads=threads,
                representation=representation,
                layer=layer,
                window=window,
                context=context,
                autocast=autocast,
                cache=cache,
                ngram=ngram,
            )
        except BaseException:
            if opened is not store:
                opened.close()
            raise
        lm.owns_datastore = opened is not store
        return lm

    @classmethod
    def from_pretrained(
        cls,
        model: Any,
        store: str | os.PathLike[str] | Datastore | None = None,
        *,
        tokenizer: Any = None,
        **options: Any,
    ) -> Self:
        """A model with a store that it has written, or alone.

        model: folder or hub name, or an object as for `KNNLM`. store: its folder, or a `Datastore`; None = the model
        alone. tokenizer, options: as of `KNNLM.open`: settings, device, dtype and what `from_pretrained` of
        transformers takes.

        Example:
            >>> lm = KNNLM.from_pretrained("gpt2", "store", device="cuda", revision="main")  # doctest: +SKIP
        """
        if model is None:
            raise TypeError(
                "model: expected a folder, a name or a model, found None; KNNLM.open(store) has the store's"
            )
        if store is not None:
            return cls.open(store, model, tokenizer=tokenizer, **options)
        refuse_foreign(cls, "open", options)
        own = {name: options.pop(name) for name in OWN if name in options}
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
        preset: Literal["paper", "small"] | None = None,
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
        autocast: how keys are made, as `KeySpec`. preset: of the index (`build.presets`). code, nlist, seed: as
        `Datastore.build`. threads: of the model and of the search, for each of the workers its own. workers: processes
        that run the model, each with its own copy; needs a model by name. batch_size: windows of a forward pass.
        device, dtype (of the weights), revision, trust_remote_code, model_kwargs: as `load_model`. progress: called
        with (stage, done, total).

        Raises:
            UsageError: something is at `store` and `overwrite` is not given, or is not of knnlm.
            TypeError, ValueError, FileNotFoundError: texts or arguments that cannot be used; nothing was made then.

        Example:
            >>> lm = KNNLM.build("gpt2", "books/", "store")  # doctest: +SKIP
            >>> lm.tune("validation.txt")  # doctest: +SKIP
        """
        from knnlm.build.from_text import build_from_text
        from knnlm.model.keys import batch_tokens_of
        from knnlm.model.load import load_model
        from knnlm.model.threads import torch_threads

        refuse_foreign(cls, "build", model_kwargs)
        path = place_of(as_folder(store))
        if keep_keys not in (True, False, "float16", "float32"):
            raise ValueError(f"keep_keys: expected True, False, 'float16' or 'float32', found {keep_keys!r}")
        given = texts_of(texts, reading, stamped=True)
        index, settings = preset_of(preset, nlist, code)
        check_index_choice(**index, metric=metric, seed=seed, threads=threads)
        load = {"device": device, "dtype": dtype, "revision": revision, "trust_remote_code": trust_remote_code}
        named = isinstance(model, (str, os.PathLike))
        refuse_existing(path, overwrite)
        loaded = given_model(model, tokenizer, **load, **model_kwargs)
        key_dtype = keep_keys if isinstance(keep_keys, str) else "float16" if keep_keys else "float32"
        keys = KeySpec(representation, layer, window, context, key_dtype, autocast)
        with torch_threads(threads):
            build_from_text(
                path,
                loaded,
                given,
                keys=keys,
                overwrite=overwrite,
                keep_keys=bool(keep_keys),
                **index,
                metric=metric,
                tuned=settings,
                seed=seed,
                threads=threads,
                workers=workers,
                load=functools.partial(load_model, model, **load, **model_kwargs) if named else None,
                batch_tokens=batch_tokens_of(batch_size, keys, loaded),
                source=model if named else None,
                progress=progress,
            )
        given.log()
        lm = cls(loaded, Datastore.open(path), threads=threads)
        lm.owns_datastore = True
        return lm
