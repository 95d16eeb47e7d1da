"""Upkeep: what a `KNNLM` does with its store over time: tuned, evaluated, changed, indexed anew, closed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from knnlm.build.presets import preset_of
from knnlm.evaluate.evaluate_store import StoreEvaluation, evaluate_store, scored_texts
from knnlm.evaluate.tune import Tuned
from knnlm.evaluate.tune_store import tune_store
from knnlm.lm.combiners import combiner_of, untuned_cache
from knnlm.lm.retriever import Retriever
from knnlm.lm.settings import Settings, settings_of
from knnlm.model.key_spec import KeySpec
from knnlm.model.loaded import Loaded
from knnlm.model.threads import torch_threads
from knnlm.probability.combiner import Combiner
from knnlm.store.datastore import Datastore
from knnlm.store.protocols import Searchable
from knnlm.system.counted import counted
from knnlm.system.log import LOG
from knnlm.system.name_of_file import warn_of_name
from knnlm.text.texts import Progress, Reading, Texts, as_text, texts_of

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from knnlm.build.add import AddResult


class Upkeep:
    """A store and what is used of it: settings, retriever and combiner follow every change."""

    loaded: Loaded
    datastore: Searchable | None
    owns_datastore: bool = False
    keys: KeySpec
    settings: Settings
    retriever: Retriever | None
    combiner: Combiner
    _given: dict[str, Any]
    _blend: dict[str, bool]

    def settle(self) -> None:
        """Take settings from the store as it is now, beneath those that were given; after a change by others, too.

        Raises ValueError for what needs a store where there is none, or was not tuned.
        """
        store, given = self.datastore, self._given
        if store is not None:
            self.settings = settings_of(store, **given)
            self.retriever = Retriever(store, self.settings)
            self.combiner = combiner_of(store, self.settings, **self._blend)
            return
        alone = self._blend["cache"] and not self._blend["ngram"]
        of_store = [name for name, value in given.items() if value is not None and name != "threads"]
        if alone:  # its weight is lambda_, and theta 1/temperature
            of_store = [name for name in of_store if name not in ("lambda_", "temperature")]
        if of_store:
            raise ValueError(f"{of_store[0]}: expected it with a datastore, found none: there is nothing to search")
        self.settings = replace(settings_of(()), lambda_=0.0, threads=given["threads"])
        self.retriever = None
        self.combiner = (
            untuned_cache(given["lambda_"], given["temperature"])
            if alone
            else combiner_of(None, self.settings, **self._blend)
        )

    def tune(
        self,
        texts: Any,
        *,
        reading: Reading | None = None,
        k: int = 1024,
        temperature: float | None = None,
        nprobe: int | None = None,
        rerank: str | None = None,
        exact: bool | None = None,
        cache: bool | None = None,
        ngram: bool | None = None,
        progress: Progress | None = None,
    ) -> Tuned:
        """Choose λ, T and k on validation texts, save them in the store, and use them from now on.

        texts: as of `build`; they must not be in the store: where one is, its own entries are left out. k: most
        neighbors to consider. temperature: fixes T. nprobe, rerank, exact: how the store is searched, saved as well;
        None = as this object was told to, else the store's defaults. cache, ngram: also choose and save the weights of
        a continuous cache and a 5-gram model of the store, for `KNNLM.open(store, cache=True)`; None = if this object
        mixes them in. progress: called with (stage, done, total).

        Returns the chosen settings, the perplexity with them and of the model alone, and curves around them.
        """
        store = self._own_store("tune")
        given = texts_of(texts, reading)
        said = {"nprobe": nprobe, "rerank": rerank, "exact": exact}
        search: dict[str, Any] = {name: self._given[name] if value is None else value for name, value in said.items()}
        cache, ngram = (
            self._blend[name] if value is None else value for name, value in (("cache", cache), ("ngram", ngram))
        )
        with torch_threads(self.settings.threads):
            found = tune_store(
                self.loaded,
                store,
                lambda: given.tokenised(self.loaded.tokenizer),
                k=k,
                temperature=temperature,
                nprobe=search["nprobe"],
                rerank=search["rerank"],
                exact=bool(search["exact"]),
                cache=cache,
                ngram=ngram,
                keys=self.keys,
                threads=self.settings.threads,
                overlap=False,
                scoring=given.counting(progress, "score"),
                progress=progress,
            )
        given.log()
        if found.excluded:
            LOG.warning(
                f"of this text the store has {counted(found.excluded, 'document')}: their own entries were left out"
            )
        if found.unsaved is not None:
            raise found.unsaved
        self._given |= {**search, "lambda_": None, "temperature": None, "k": None}
        self._blend = {"cache": cache and self._blend["cache"], "ngram": ngram and self._blend["ngram"]}
        self.settle()
        return found.tuned

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
        with torch_threads(self.settings.threads):
            found = evaluate_store(
                self.loaded,
                given.tokenised(self.loaded.tokenizer) if isinstance(given, Texts) else given,
                Retriever(self.datastore, self.settings, exclude),
                {"p": self.combiner},
                overlap=overlap,
                scoring=given.counting(progress, "score") if isinstance(given, Texts) else None,
                progress=progress,
                keys=self.keys,
                batch_tokens=batch_tokens_of(batch_size, self.keys, self.loaded),
            )
        if isinstance(given, Texts):
            given.log()
        if found["p"].excluded_documents:
            LOG.warning(
                f"of this text the store has {counted(found['p'].excluded_documents, 'document')} (exclude={exclude!r})"
            )
        return found["p"]

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
        with torch_threads(self.settings.threads):
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
        self.settle()
        return done

    def replace(self, document: str, text: Any) -> tuple[int, int]:
        """Put a text in the place of a document, as `knnlm replace` does, at once; returns entries before and after.

        document: its name. text: a string (the text itself; of a path there is a warning), or a document, whose
        metadata stand above those that the store has. Raises ValueError where there is no such document. (`delete` is
        the datastore's: `lm.datastore.delete(names)`.)
        """
        from knnlm.build.replace import replace_document

        warn_of_name(text, "the new text")
        store = self._own_store("replace")
        with torch_threads(self.settings.threads):
            changed = replace_document(
                store, document, as_text(text), lambda: self.loaded, threads=self.settings.threads
            )
        self.settle()
        return changed

    def index(
        self,
        *,
        retrain: bool = False,
        preset: Literal["paper", "small"] | None = None,
        code: Literal["small", "flat"] | tuple[int, int] | None = None,
        nlist: int | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Index what is in no list of the store yet, or with `retrain` learn lists and codes anew, as `knnlm build`.

        A new index is learnt from raw keys, or where they are not kept by running the model over the stored documents;
        then an interrupted run goes on where it was. preset, code, nlist: as of `build`. seed: None = that of the
        index, or 0. batch_size: windows of a forward pass. progress: called with (stage, done, total).

        Raises:
            UsageError: an index of all entries is there and none is to be learnt again; more lists than entries.
            ValueError: no entries; neither the raw keys nor the model that a new index takes.
        """
        from knnlm.build.index import index_store
        from knnlm.model.keys import batch_tokens_of

        store = self._own_store("index")
        index, settings = preset_of(preset, nlist, code)
        store.commit()
        with torch_threads(self.settings.threads):
            index_store(
                Path(store.path),
                lambda: self.loaded,
                again=retrain,
                **index,
                seed=seed,
                settings=settings,
                threads=self.settings.threads,
                batch_tokens=batch_tokens_of(batch_size, self.keys, self.loaded),
                progress=progress,
            )
        store.refresh()
        self.settle()

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the model and a copy of the store to one folder that can be copied anywhere; returns the store's path.

        `KNNLM.open(path)` and every command find the model beside it, with the settings that were tuned. What was added
        to the store is committed first. The model that was written is loaded once, to see that it is the right one.

        Raises:
            UsageError: something is at `folder`.
            ValueError: a store of no model; an adapter that is not merged into its model.

        Example:
            >>> path = lm.save_pretrained("shared")  # doctest: +SKIP
            >>> KNNLM.open("shared/store")  # doctest: +SKIP
        """
        from knnlm.build.save import save_pretrained

        store = self._own_store("save_pretrained")
        store.commit()
        return save_pretrained(self.loaded, store, Path(folder))

    def close(self) -> None:
        """Let go of the store's files if it was opened here, by its path. Closing twice is fine."""
        if self.owns_datastore and isinstance(self.datastore, Datastore):
            self.datastore.close()

    def __enter__(self) -> Self:
        """Itself; `with KNNLM.open(...) as lm:` closes at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _own_store(self, what: str) -> Datastore:
        if not isinstance(self.datastore, Datastore):
            found = "None" if self.datastore is None else f"a {type(self.datastore).__name__}"
            raise TypeError(f"{what}: expected a KNNLM with a Datastore, which can be changed, found one with {found}")
        return self.datastore
