"""The trained model of a benchmark: documents to tokens, one scoring pass to a split, a store, and training on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import columns
import numpy as np
from columns import Capture, Chunk, Split
from numpy.typing import NDArray

from knnlm.build.dump import dump
from knnlm.model.identity import describe
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec
from knnlm.model.keys import iterate
from knnlm.model.load import load_model
from knnlm.model.transformer import TransformerLM
from knnlm.store.datastore import Datastore
from knnlm.text.documents import Document
from knnlm.text.tokenizer import count_words
from knnlm.train.loop import TrainConfig, train


@dataclass(frozen=True)
class Encoded:
    """A document with its tokens (L,) and its number of words, line ends counted."""

    name: str
    text: str
    tokens: NDArray[np.uint32]
    words: int
    metadata: dict[str, Any] | None = None


class LanguageModel:
    """A loaded model with one choice of key representation, window and context."""

    def __init__(self, path: str | Path, spec: KeySpec | None = None, bf16: bool = False) -> None:
        self.path = Path(path)
        self.loaded = load_model(path)
        spec = replace(spec or KeySpec(), autocast="bfloat16" if bf16 else None)
        self.spec = resolve(self.loaded, spec)
        self.vocab_size = int(self.loaded.tokenizer.vocab_size)

    @property
    def capture(self) -> Capture:
        """Representation and layer of the keys."""
        return self.spec.representation, self.spec.layer

    def identity(self) -> dict[str, Any]:
        """What cached results depend on."""
        about = describe(self.loaded, self.spec) | {"bf16": self.bf16}
        about["model"].pop("source")
        return {name: value for name, value in about.items() if name not in ("knnlm", "autocast")}

    def about(self) -> dict[str, Any]:
        """Size, settings and training curve for a record."""
        parameters = sum(p.numel() for p in self.loaded.model.parameters())
        text = (
            f"{self.path.name}, {parameters / 1e6:.1f} M parameters, vocabulary {self.vocab_size:,}, keys "
            f"`{self.spec.representation}` of layer {self.spec.layer}, window {self.spec.window} with at least "
            f"{self.spec.context} earlier tokens, {'bf16' if self.bf16 else 'float32'}"
        )
        config = str(getattr(self.loaded.model, "config", ""))
        curve = self.path / "curve.json"
        training = json.loads(curve.read_text()) if curve.is_file() else None
        return self.identity() | {"parameters": parameters, "config": config, "text": text, "training": training}

    def encode(self, documents: Iterable[Document], tokens: int | None = None) -> list[Encoded]:
        """Tokenises whole documents until `tokens` are there; documents without tokens are left out."""
        out: list[Encoded] = []
        total = 0
        for document in documents:
            if tokens is not None and total >= tokens:
                break
            ids = self.loaded.tokenizer.encode(document.text)
            if len(ids):
                out.append(Encoded(document.name, document.text, ids, count_words(document.text), document.metadata))
                total += len(ids)
        return out

    @property
    def bf16(self) -> bool:
        """Whether the model runs under bf16 autocast."""
        return self.spec.autocast == "bfloat16"

    def score(self, documents: Sequence[Encoded], place: Path) -> Split:
        """One pass over the documents with this model's own capture; kept under `place`."""
        return self.score_all(documents, [self.capture], place)[self.capture]

    def score_all(self, documents: Sequence[Encoded], captures: Sequence[Capture], place: Path) -> dict[Capture, Split]:
        """One pass that captures several representations; kept under `place`."""
        content = [(d.name, columns.digest(d.tokens.tolist())) for d in documents]
        return columns.score(
            place / f"split-{columns.digest(self.identity(), list(captures), content)}",
            [d.name for d in documents],
            [d.words for d in documents],
            sum(len(d.tokens) for d in documents),
            captures,
            lambda: self._passes(documents, captures),
        )

    def _passes(self, documents: Sequence[Encoded], captures: Sequence[Capture]) -> Iterator[Chunk]:
        spec = self.spec
        for chunk in iterate(
            self.loaded,
            documents,
            captures=captures,
            window=spec.window,
            context=spec.context,
            key_dtype="float32",
            autocast=spec.autocast,
        ):
            yield chunk.index, chunk.tokens, chunk.log_p, chunk.keys

    def store(self, documents: Sequence[Encoded], path: Path, seed: int) -> tuple[Datastore, dict[str, float]]:
        """Dumps and builds a store with float16 keys, or opens the finished one; and what it cost."""
        done = path.with_name(f"{path.name}-cost.json")
        if not done.exists():
            with self._create(path) as store:
                dumped = dump(self.loaded, documents, store, keys=self.spec)
                started = time.perf_counter()
                store.build(seed=seed)
                build_seconds = time.perf_counter() - started
            done.write_text(json.dumps({"dump_seconds": dumped.seconds, "build_seconds": build_seconds}))
        return Datastore.open(path), json.loads(done.read_text())

    def stores(
        self, documents: Sequence[Encoded], paths: dict[Capture, Path], seed: int | None
    ) -> dict[Capture, Datastore]:
        """One unbuilt store for each capture from a single pass, or the finished ones; built if there is a seed."""
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        done = next(iter(paths.values())).parent / "dumped.json"
        if not done.exists():
            stores = {capture: self._create(path) for capture, path in paths.items()}
            chunks = iterate(
                self.loaded,
                documents,
                captures=list(paths),
                window=self.spec.window,
                context=self.spec.context,
                autocast=self.spec.autocast,
            )
            for chunk in chunks:
                for capture, store in stores.items():
                    store.add(chunk.keys[capture], chunk.tokens, document=chunk.document.name)
            for store in stores.values():
                store.close()
            done.write_text(json.dumps({"tokens": sum(len(d.tokens) for d in documents)}))
        opened = {capture: Datastore.open(path) for capture, path in paths.items()}
        for store in opened.values():
            if seed is not None and not store.is_built:
                store.build(seed=seed)
        return opened

    def _create(self, path: Path) -> Datastore:
        shutil.rmtree(path, ignore_errors=True)  # what an interrupted run left
        path.parent.mkdir(parents=True, exist_ok=True)
        width = next(iter(self.loaded.model.parameters())).shape[1]  # the embedding comes first: (v, d)
        attributes = describe(self.loaded, self.spec, store=path)
        return Datastore.create(
            path, dim=width, keep_keys="float16", max_value=self.vocab_size - 1, attributes=attributes
        )

    def trained_on(
        self,
        documents: Sequence[Document],
        valid: Sequence[Document],
        seconds: float,
        rate: float,
        seed: int,
        place: Path,
    ) -> LanguageModel:
        """The same model after training on other documents for a time; its seconds do not count validation."""
        done = place / "done.json"
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)
            config = TrainConfig(
                max_seconds=seconds, learning_rate=rate, seed=seed, valid_seconds=1e9, save_seconds=1e9
            )
            fresh = load_model(self.path)
            if not isinstance(fresh.model, TransformerLM):
                raise SystemExit(f"expected one of our own models to train on, found {type(fresh.model).__name__}")
            result = train(fresh.model, fresh.tokenizer, documents, valid, place, config, resume=False)
            done.write_text(json.dumps({"steps": result.steps, "seconds": result.seconds, "tokens": result.tokens}))
        return LanguageModel(place, self.spec, self.bf16)


def facts(store: Datastore) -> dict[str, Any]:
    """What a record says of a store: its own account without folder, files and attributes."""
    return {name: value for name, value in store.info().items() if name not in ("path", "attributes", "files")}
