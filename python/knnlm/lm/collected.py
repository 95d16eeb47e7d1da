"""Collected: what a pass over documents keeps of each stretch, without the documents that fail on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.lm.retriever import Retriever
from knnlm.lm.stretches import Stretch
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec
from knnlm.model.loaded import Loaded
from knnlm.system.growing_array import GrowingArray


class Collected:
    """Columns of a text, by token, and its documents; `fields` are those of a `ScoredText`."""

    def __init__(
        self,
        loaded: Loaded,
        retriever: Retriever | None,
        keys: KeySpec | None,
        progress: Callable[[str, int, int], None] | None,
        total: int,
    ) -> None:
        self._loaded, self._retriever, self._keys = loaded, retriever, keys
        self._progress, self._total, self._done = progress, total, 0
        self._columns: dict[str, GrowingArray] = {}
        self._names: list[str] = []
        self._words: list[int] = []
        self._lengths: list[int] = []
        self._excluded = 0
        self._failed: list[tuple[str, str]] = []
        self._model_seconds = self._search_seconds = 0.0

    def each(self, stretches: Iterable[Stretch]) -> Iterator[Stretch]:
        """Stretches to take columns of; those of documents that fail are not among them, and what was kept goes.

        The time that the caller takes for one counts as that of the search. Raises NotFiniteError where the first
        document fails at once, or all do.
        """
        from knnlm.model.forward import NotFiniteError

        document = -1
        for stretch in stretches:
            self._model_seconds += stretch.model_seconds
            self._search_seconds += stretch.search_seconds
            if stretch.bad is not None:
                if not sum(self._lengths):
                    raise NotFiniteError(stretch.bad)
                self._failed.append((stretch.document.name, stretch.bad))
                if stretch.index == document:
                    self._forget_last(bool(stretch.copies))
                continue
            if stretch.index != document:
                document = stretch.index
                self._names.append(stretch.document.name)
                self._lengths.append(0)
                self._words.append(words_of(stretch.document))
                self._excluded += bool(stretch.copies)
            self._lengths[-1] += len(stretch.tokens)
            began = time.perf_counter()
            yield stretch
            self._search_seconds += time.perf_counter() - began
            self.add({"tokens": stretch.tokens, "log_p_lm": stretch.log_p_lm})
            self.add({f"features.{name}": column for name, column in stretch.features.items()})
            self._done += len(stretch.tokens)
            if self._progress is not None:
                self._progress("score", self._done, self._total)
        if self._failed and not sum(self._lengths):
            raise NotFiniteError(self._failed[0][1])

    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Append columns (m, ...) of the stretch at hand."""
        for name, column in columns.items():
            self._columns.setdefault(name, GrowingArray()).append(column)

    def _forget_last(self, excluded: bool) -> None:
        """Drop what was kept of the last document."""
        self._names.pop(), self._words.pop(), self._lengths.pop()
        self._excluded -= excluded
        for column in self._columns.values():
            column.truncate(sum(self._lengths))

    def fields(self) -> dict[str, Any]:
        """All that was kept, by the names of `ScoredText` and of the columns."""
        joined = {name: column.finish() for name, column in self._columns.items()}
        groups = {
            group: {n.removeprefix(f"{group}."): joined.pop(n) for n in list(joined) if n.startswith(f"{group}.")}
            for group in ("features", "log_p")
        }
        joined.setdefault("tokens", np.zeros(0, np.uint32))
        joined.setdefault("log_p_lm", np.zeros(0, np.float32))
        store = None if self._retriever is None else self._retriever.store
        settings: dict[str, Any] = {"model": self._loaded.name, **asdict(resolve(self._loaded, self._keys, store))}
        if self._retriever is not None:
            s = self._retriever.settings
            settings |= {"k": self._retriever.k, "nprobe": s.nprobe, "rerank": s.rerank, "exact": s.exact}
            settings |= {"exclude": self._retriever.exclude, "store_size": len(self._retriever.store)}
        return {
            **joined,
            **groups,
            "offsets": np.cumsum([0, *self._lengths]).astype(np.int64),
            "words": np.array(self._words, np.int64),
            "names": self._names,
            "failed": self._failed,
            "settings": settings,
            "excluded_documents": self._excluded,
            "model_seconds": self._model_seconds,
            "search_seconds": self._search_seconds,
        }


def words_of(document: Any) -> int:
    """Words of a document; one that came as tokens has no words to count."""
    text = getattr(document, "text", None)
    if text is None:
        return 0
    from knnlm.text.tokenizer import count_words

    return int(count_words(text))
