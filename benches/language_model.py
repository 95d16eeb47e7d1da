"""The trained model of a benchmark: documents to tokens, one scoring pass to a split, a store, and training on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import columns
import numpy as np
from columns import Capture, Chunk, Split
from numpy.typing import NDArray

from knnlm.documents import Document
from knnlm.models import load_model
from knnlm.tokens import count_words


@dataclass(frozen=True)
class Encoded:
    """A document with its tokens (L,) and its number of words."""

    document: Document
    tokens: NDArray[np.uint32]
    words: int


class LanguageModel:
    """A loaded model with one choice of key representation, window and context."""

    def __init__(
        self,
        path: str | Path,
        representation: str = "ffn-input",
        layer: int = -1,
        window: int | None = None,
        context: int | None = None,
        loaded: Any = None,
    ) -> None:
        self.path = path
        self.loaded = load_model(path) if loaded is None else loaded
        self.capture: Capture = (representation, layer)
        self.context = self.loaded.context // 2 if context is None else context
        self.window = self.loaded.context - self.context if window is None else window
        self.vocab_size = int(self.loaded.tokenizer.vocab_size)

    def identity(self) -> dict[str, Any]:
        """What cached results depend on."""
        return {
            "model": self.loaded.fingerprint,
            "tokenizer": self.loaded.tokenizer.fingerprint,
            "capture": self.capture,
            "window": self.window,
            "context": self.context,
        }

    def describe(self) -> dict[str, Any]:
        """Size and settings for a record."""
        parameters = sum(p.numel() for p in self.loaded.model.parameters())
        text = (
            f"{Path(self.path).name}, {parameters / 1e6:.1f} M parameters, vocabulary {self.vocab_size:,}, keys "
            f"{self.capture[0]} of layer {self.capture[1]}, window {self.window}, context at least {self.context}"
        )
        config = str(getattr(self.loaded.model, "config", ""))
        return self.identity() | {"name": Path(self.path).name, "parameters": parameters, "config": config, "text": text}

    def encode(self, documents: Sequence[Document], tokens: int | None = None) -> list[Encoded]:
        """Tokenises whole documents until `tokens` are there; documents without tokens are left out."""
        out: list[Encoded] = []
        total = 0
        for document in documents:
            if tokens is not None and total >= tokens:
                break
            ids = self.loaded.tokenizer.encode(document.text)
            if len(ids):
                out.append(Encoded(document, ids, count_words(document.text)))
                total += len(ids)
        return out

    def score(self, documents: Sequence[Encoded], place: Path) -> Split:
        """One pass over the documents with this model's own capture; kept under `place`."""
        return self.score_all(documents, [self.capture], place)[self.capture]

    def score_all(
        self, documents: Sequence[Encoded], captures: Sequence[Capture], place: Path
    ) -> dict[Capture, Split]:
        """One pass that captures several representations; kept under `place`."""
        content = [(d.document.name, columns.digest(d.tokens.tolist())) for d in documents]
        return columns.score(
            place / f"split-{columns.digest(self.identity(), list(captures), content)}",
            [d.document.name for d in documents],
            [d.words for d in documents],
            sum(len(d.tokens) for d in documents),
            captures,
            lambda: self.passes(documents, captures),
        )

    def passes(self, documents: Sequence[Encoded], captures: Sequence[Capture]) -> Iterator[Chunk]:
        """(document number, targets (m,), log p_LM (m,), {capture: keys (m, d)}) in corpus order."""
        raise NotImplementedError
