"""kNN-MT (Khandelwal et al., ICLR 2021): an encoder-decoder whose every step looks into a store of parallel text.

    p(y_i | x, y_<i) = lambda p_kNN + (1 - lambda) p_MT,        p_kNN of the neighbors of the decoder's state

The model's own `generate` searches and decodes; one search a step for all beams of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from knnlm.evaluate.tune import Tuned, save_tuned, tune
from knnlm.hf.attach import attach
from knnlm.hf.hooks import Attached
from knnlm.lm.retrieved_text import RetrievedText
from knnlm.lm.retriever import Retriever
from knnlm.lm.settings import NAMES, settings_of
from knnlm.model.identity import check
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import key_spec
from knnlm.model.of_store import load_for
from knnlm.model.translator import Translator, as_translator, load_translator
from knnlm.mt.build import BuildResult, add_pairs, build_from_pairs
from knnlm.mt.forced import forced
from knnlm.mt.pairs import as_pairs
from knnlm.mt.translate import translate
from knnlm.store.datastore import Datastore
from knnlm.store.opening import as_store

if TYPE_CHECKING:
    from typing_extensions import Self

ROWS = 4096
"""Keys that are searched at a time."""


class KNNMT:
    """A translation model with a store of parallel text; λ, T, k and the search by default as `tune` saved them."""

    def __init__(
        self,
        model: Any,
        store: str | os.PathLike[str] | Datastore,
        *,
        tokenizer: Any = None,
        source_lang: str | None = None,
        target_lang: str | None = None,
        **settings: Any,
    ) -> None:
        """Put a store beside an encoder-decoder of transformers, or beside what `load_translator` gave.

        settings: lambda_, temperature, k, nprobe, rerank, exact, threads.

        Raises:
            IdentityError: another model or tokenizer wrote the store.
            ValueError: a model that is no encoder-decoder.
        """
        self.translator: Translator = as_translator(model, tokenizer, source_lang=source_lang, target_lang=target_lang)
        self._given = settings
        self.datastore = as_store(store)
        self._owns = self.datastore is not store
        try:
            check(self.datastore, self.translator)
            self.settings = settings_of(self.datastore, **settings)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls, store: str | os.PathLike[str] | Datastore, model: Any = None, *, tokenizer: Any = None, **options: Any
    ) -> Self:
        """A store with its model: the one that it remembers, or the given one, by name or as an object."""
        own = {name: options.pop(name) for name in NAMES if name in options}
        opened = as_store(store)
        try:
            found = cls(cls._model(opened, model, options), opened, tokenizer=tokenizer, **own)
        except BaseException:
            if opened is not store:
                opened.close()
            raise
        found._owns = opened is not store
        return found

    @staticmethod
    def _model(opened: Datastore, model: Any, options: dict[str, Any]) -> Any:
        if model is None or isinstance(model, (str, os.PathLike)):
            languages = {name: opened.attributes.get(name) for name in ("source_lang", "target_lang")}
            name = None if model is None else str(model)
            model = load_for(opened, name, load=load_translator, **{**languages, **options})
        return model

    @classmethod
    def build(
        cls, model: Any, pairs: Iterable[Any], store: str | os.PathLike[str], *, tokenizer: Any = None, **options: Any
    ) -> Self:
        """Make an indexed store of parallel text and put it beside its model; options as of `build_from_pairs`.

        pairs: `Pair`, or (source, target). model: folder or hub name, or an object with its tokenizer.
        """
        named = isinstance(model, (str, os.PathLike))
        translator = load_translator(model) if named else as_translator(model, tokenizer)
        build_from_pairs(store, translator, as_pairs(pairs), source=str(model) if named else None, **options)
        return cls.open(store, translator)

    def translate(self, texts: Sequence[str], **options: Any) -> list[str]:
        """Translations of texts with the store, in their order; options and errors as of `mt.translate.translate`."""
        with self.attached():
            return translate(self.translator, texts, **options)

    def translate_alone(self, texts: Sequence[str], **options: Any) -> list[str]:
        """The same by the model without the store."""
        return translate(self.translator, texts, **options)

    def attached(self) -> Attached:
        """The store attached to the model, until the end of a `with`."""
        given = self._given
        return attach(self.translator.model, self.datastore, tokenizer=self.translator.tokenizer.original, **given)

    def tune(self, pairs: Iterable[Any], *, k: int = 1024) -> Tuned:
        """Choose λ, T and k by the likelihood of true translations, and save them in the store.

        pairs: of the domain, none of them in the store.
        """
        retrieved = self.retrieve(pairs, k=k)
        tuned = tune(retrieved)
        save_tuned(self.datastore, tuned)
        self.settings = settings_of(self.datastore, **self._given)
        return tuned

    def retrieve(self, pairs: Iterable[Any], *, k: int = 1024, shuffle_seed: int | None = None) -> RetrievedText:
        """log p_MT of the tokens of true translations, with their neighbors."""
        spec = resolve(self.translator, key_spec(self.datastore))
        retriever = Retriever(self.datastore, self.settings, exclude="none")
        k = min(k, max(1, len(self.datastore)))
        held = [one for one in forced(self.translator, as_pairs(pairs), spec, scores=True) if one.problem is None]
        if not held:
            raise ValueError("pairs: expected at least one that the model can hold, found none")
        keys = np.concatenate([one.keys for one in held])  # (n, d)
        tokens = np.concatenate([one.tokens for one in held])  # (n,)
        found = [retriever.find(keys[at : at + ROWS], k=k) for at in range(0, len(keys), ROWS)]
        ids = np.concatenate([near.ids for near in found])  # (n, k)
        there = ids >= 0
        shuffled = None
        if shuffle_seed is not None:
            values = np.asarray(self.datastore.values(0, self.datastore.next_id))
            others = np.random.default_rng(shuffle_seed).permutation(values)
            shuffled = (others[np.maximum(ids, 0)] == tokens[:, None]) & there
        return RetrievedText(
            tokens=tokens,
            log_p_lm=np.concatenate([one.log_p for one in held]),
            offsets=np.cumsum([0, *(len(one.tokens) for one in held)], dtype=np.int64),
            names=[one.pair.name for one in held],
            distances=np.concatenate([near.distances for near in found]),
            match=(np.concatenate([near.values for near in found]) == tokens[:, None]) & there,
            match_shuffled=shuffled,
            metric=self.datastore.metric,
            default_temperature=self.datastore.default_temperature,
        )

    def add(self, pairs: Iterable[Any]) -> BuildResult:
        """Add pairs to the store."""
        return add_pairs(self.translator, as_pairs(pairs), self.datastore)

    def close(self) -> None:
        """Let go of the store's files if it was opened here."""
        if self._owns:
            self.datastore.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
