"""The demo: train a small decoder on docstrings, then adapt it to the language reference with a datastore.

    docstrings ── train ──> model ── dump, build ──> store of the docstrings     (in domain)
    language reference ───> model ── dump, build ──> store of the reference      (adapted: no training)
    validation text: λ, T, k          test text: perplexity of the LM and of each kNN-LM

Everything that is shown comes from this run. Next: `result.py` judges and shows it.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knnlm.build.dump import dump
from knnlm.demo.report import write
from knnlm.demo.result import CaseResult, Curve, DemoResult, as_report, versions
from knnlm.demo.samples import PARTS, first_tokens
from knnlm.demo.stdlib_text import Corpus, docstrings, language_reference
from knnlm.evaluate.overlap import overlap_13gram
from knnlm.evaluate.size_curve import SHARES as SIZES
from knnlm.evaluate.size_curve import size_curve
from knnlm.evaluate.tune import Tuned, tune
from knnlm.lm.combiners import fixed
from knnlm.lm.explain import explain
from knnlm.lm.retrieved_text import RetrievedText
from knnlm.lm.retriever import Retriever
from knnlm.lm.score import evaluated, retrieve
from knnlm.lm.scored_text import Evaluation
from knnlm.lm.settings import Settings
from knnlm.model.identity import describe
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec
from knnlm.model.load import LoadedModel, load_model, pick_device
from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.probability.ngram import KneserNey
from knnlm.report.index_progress import index_progress
from knnlm.report.progress import Progress
from knnlm.report.rows import TokenRow, rows
from knnlm.store.datastore import Datastore
from knnlm.store.entries import values_of_documents
from knnlm.system.own_files import is_folder, remove, remove_tree, write_text
from knnlm.text.documents import Document
from knnlm.text.tokenizer import Tokenizer
from knnlm.train.loop import TrainConfig, bf16_is_fast, train


@dataclass(frozen=True)
class DemoSettings:
    """How the demo is run; the defaults take less than four minutes on two cores.

    Attributes:
        steps: of training the model, the same result on every run of a machine; the rest takes about as long again.
        seconds: the most for it, where a machine is slow or busy: fewer steps are taken then, and the report says so.
        scored: test tokens of each case, and validation tokens.
        sizes: parts of the store for the plot of perplexity against its size, on a quarter of the validation tokens.
    """

    steps: int = 900
    seconds: float = 240.0
    seed: int = 0
    scored: int = 8000
    vocab_size: int = 2048
    d_model: int = 192
    n_layers: int = 3
    n_heads: int = 3
    context: int = 128
    batch_tokens: int = 1024
    learning_rate: float = 3e-3
    k: int = 1024
    sizes: Sequence[float] = SIZES
    train_documents: int | None = None  # None: all
    device: str | None = None
    threads: int | None = None


@dataclass
class _Parts:
    """What both cases share."""

    settings: DemoSettings
    loaded: LoadedModel
    ngram: KneserNey
    progress: Progress
    autocast: str | None  # bfloat16 where the machine multiplies it: half the time for all that the model reads


def run(out: Path, settings: DemoSettings, progress: Progress) -> DemoResult:
    """Runs the demo and leaves model, both stores, `demo.json`, `result.json` and `report.html` in the folder `out`.

    Raises:
        FileNotFoundError: this Python carries no sources or no language reference.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    for part in ("model", "store-docstrings", "store-reference"):
        if not is_folder(out / part):  # a link would have it made elsewhere
            remove(out / part)
    # Written first: after a Ctrl-C too, the folder is known to be a demo's, so that --overwrite may clear it.
    write_text(out / "demo.json", json.dumps(asdict(settings), indent=1))
    progress("read", 0, 2)
    corpus = docstrings()
    progress("read", 1, 2)
    reference = language_reference()
    progress("read", 2, 2)
    if settings.train_documents is not None:
        corpus = replace(corpus, train=corpus.train[: settings.train_documents])
        reference = replace(reference, train=reference.train[: settings.train_documents])

    loaded, curve, steps = _train(out / "model", corpus, settings, progress)
    progress("5-gram", 0, 1)
    tokenizer = loaded.tokenizer
    ngram = KneserNey(5).fit([tokenizer.encode(document.text) for document in corpus.train], tokenizer.vocab_size)
    progress("5-gram", 1, 1)
    autocast = "bfloat16" if bf16_is_fast(loaded.device) else None
    parts = _Parts(settings, loaded, ngram, progress, autocast)
    in_domain = _case(
        parts,
        "in domain",
        "Held-out docstrings of the standard library; the store holds the docstrings that the model was trained on.",
        corpus,
        out / "store-docstrings",
    )
    adapted = _case(
        parts,
        "adapted",
        "Held-out topics of the language reference, which the model was not trained on; the store holds other topics.",
        reference,
        out / "store-reference",
    )
    seconds = time.perf_counter() - started
    result = DemoResult(
        in_domain,
        adapted,
        _made(settings, loaded, corpus, reference, curve, steps, seconds),
        seconds,
        report=str(out / "report.html"),
        validation_curve=curve,
        steps=steps,
        steps_asked=settings.steps,
    )
    write(as_report(result), out / "report.html")
    write_text(out / "result.json", json.dumps(result.as_json(), indent=1, ensure_ascii=False))
    return result


def _train(folder: Path, corpus: Corpus, settings: DemoSettings, progress: Progress) -> tuple[LoadedModel, Curve, int]:
    progress("tokenizer", 0, 1)
    tokenizer = Tokenizer.train_bpe((document.text for document in corpus.train), settings.vocab_size)
    progress("tokenizer", 1, 1)
    torch.manual_seed(settings.seed)
    model = TransformerLM(
        TransformerConfig(
            tokenizer.vocab_size,
            settings.d_model,
            settings.n_layers,
            settings.n_heads,
            context=settings.context,
            dropout=0.0,  # the model sees its text about once
        )
    ).to(pick_device(settings.device))
    config = TrainConfig(
        max_steps=settings.steps,
        max_seconds=settings.seconds,
        batch_tokens=settings.batch_tokens,
        optimizer="muon",  # the budget is short
        learning_rate=settings.learning_rate,
        valid_steps=max(1, settings.steps // 5),
        valid_tokens=settings.scored,
        seed=settings.seed,
    )
    valid = first_tokens(corpus.valid, tokenizer, settings.scored)
    progress.track("tokenise", unit="characters")
    progress.track("train", unit="steps")
    result = train(model, tokenizer, corpus.train, valid, folder, config, resume=False, progress=progress)
    if result.interrupted:
        raise KeyboardInterrupt
    curve = Curve([point["seconds"] for point in result.curve], [point["valid_perplexity"] for point in result.curve])
    return load_model(folder, settings.device), curve, result.steps


def _case(parts: _Parts, name: str, text: str, corpus: Corpus, path: Path) -> CaseResult:
    settings, loaded = parts.settings, parts.loaded
    valid = first_tokens(corpus.valid, loaded.tokenizer, settings.scored)
    test = first_tokens(corpus.test, loaded.tokenizer, settings.scored)
    seconds: dict[str, float] = {}
    store = _fill(parts, name, corpus.train, path, seconds)
    with store:
        started = time.perf_counter()
        cached = _neighbors(parts, f"{name}: validation", valid, store, shuffle_seed=settings.seed)
        tuned = tune(cached)
        tuned_shuffled = tune(cached.shuffled())
        store.set_attributes({**store.attributes, "tuned": {**tuned.to_dict(), "rerank": "none"}})
        curves = {
            key: Curve(curve.x, curve.perplexity, tuned.lm_perplexity, tuned.tokens)
            for key, curve in tuned.curves.items()
        }
        curves["size"] = _size_curve(parts, name, corpus, store, tuned)
        seconds["tune and plots"] = time.perf_counter() - started

        started = time.perf_counter()
        found = _neighbors(parts, f"{name}: test, quantised", test, store, shuffle_seed=settings.seed)
        found_exact = _neighbors(parts, f"{name}: test, exact", test, store, exact=True)
        scores = {
            "exact": evaluated(found_exact, fixed(_settings(tuned))),
            "quantised": evaluated(found, fixed(_settings(tuned))),
            "shuffled": evaluated(found.shuffled(), fixed(_settings(tuned_shuffled))),
        }
        ngram, ngram_speed = _ngram(parts, test)
        seconds["test"] = time.perf_counter() - started
        info = store.info()
        held = list(values_of_documents(store))
        result = CaseResult(
            name=name,
            text=text,
            entries=len(store),
            store_documents=len(held),
            tokens=scores["quantised"].tokens,
            documents=len(test),
            perplexity={
                "lm": scores["quantised"].lm_perplexity,
                **{key: evaluation.perplexity for key, evaluation in scores.items()},
                "ngram": ngram,
            },
            tokens_per_second={
                "lm": found.tokens.size / found.model_seconds,
                **{key: _speed(evaluation) for key, evaluation in scores.items()},
                "ngram": ngram_speed,
            },
            lambda_=tuned.lambda_,
            temperature=tuned.temperature,
            k=tuned.k,
            bytes_per_entry=bytes_per_entry(info),
            overlap=overlap_13gram([loaded.tokenizer.encode(document.text) for document in test], held),
            valid_lm=tuned.lm_perplexity,
            curves=curves,
            seconds=seconds,
            examples=_examples(parts, name, test, store, tuned),
        )
    return result


def _fill(parts: _Parts, name: str, documents: Sequence[Document], path: Path, seconds: dict[str, float]) -> Datastore:
    """Dumps the documents to a new store and indexes it."""
    loaded, settings = parts.loaded, parts.settings
    # A quarter of the window as least context runs the model over 4/3 of the text, half of it over twice the text.
    keys = resolve(loaded, KeySpec(context=settings.context // 4, autocast=parts.autocast))
    store = Datastore.create(
        path,
        dim=settings.d_model,
        keep_keys="float16",
        max_value=loaded.tokenizer.vocab_size - 1,
        attributes=describe(loaded, keys, store=path),
        overwrite=True,
    )
    total = sum(len(loaded.tokenizer.encode(document.text)) for document in documents)
    try:
        written = dump(
            loaded,
            documents,
            store,
            keys=keys,
            progress=_named(parts, f"{name}: keys"),
            total=total,
        )
        seconds["dump"] = written.seconds
        started = time.perf_counter()
        store.build(
            seed=settings.seed, threads=settings.threads, progress=index_progress(parts.progress, f"{name}: index")
        )
        seconds["build"] = time.perf_counter() - started
    except BaseException:  # Ctrl-C above all: half a store is worth nothing
        store.discard()
        store.close()
        remove_tree(path)
        raise
    return store


def _neighbors(
    parts: _Parts,
    stage: str,
    documents: Sequence[Document],
    store: Any,
    exact: bool = False,
    shuffle_seed: int | None = None,
) -> RetrievedText:
    total = sum(len(parts.loaded.tokenizer.encode(document.text)) for document in documents)
    settings = Settings(
        k=min(parts.settings.k, len(store)),
        rerank=None if exact else "none",  # raw keys are kept for the exact row, and not used otherwise
        exact=exact,
        threads=parts.settings.threads,
    )
    retriever, progress = Retriever(store, settings), _named(parts, stage)
    return retrieve(parts.loaded, documents, retriever, shuffle_seed=shuffle_seed, progress=progress, total=total)


def _named(parts: _Parts, name: str) -> Callable[[str, int, int], None]:
    task = parts.progress.track(name, unit="tok")
    return lambda _, done, total: task.update(done, total)


def _settings(tuned: Tuned) -> Settings:
    return Settings(tuned.lambda_, tuned.temperature, tuned.k)


def _speed(evaluation: Evaluation) -> float:
    return evaluation.tokens_per_second


def _size_curve(parts: _Parts, name: str, corpus: Corpus, store: Datastore, tuned: Tuned) -> Curve:
    """Validation perplexity with the first part of the entries, which are in random order of documents."""
    documents = first_tokens(corpus.valid, parts.loaded.tokenizer, parts.settings.scored // 4)
    settings = replace(_settings(tuned), rerank="none", threads=parts.settings.threads)
    found = size_curve(
        parts.loaded,
        documents,
        store,
        settings,
        shares=parts.settings.sizes,
        progress=_named(parts, f"{name}: store sizes"),
    )
    return Curve(found.x, found.perplexity, found.fixed["lm_perplexity"], int(found.fixed["tokens"]))


def _ngram(parts: _Parts, documents: Sequence[Document]) -> tuple[float, float]:
    """Perplexity and tokens per second of the 5-gram model."""
    started = time.perf_counter()
    log_p = np.concatenate([parts.ngram.log_probs(parts.loaded.tokenizer.encode(d.text)) for d in documents])
    return float(np.exp(-log_p.mean())), len(log_p) / (time.perf_counter() - started)


def _examples(
    parts: _Parts, name: str, test: Sequence[Document], store: Datastore, tuned: Tuned, count: int = 4
) -> list[TokenRow]:
    """A few tokens that the store predicts and the model does not, and last one where the store misleads."""
    settings = replace(_settings(tuned), rerank="none", threads=parts.settings.threads)
    decode = parts.loaded.tokenizer.decode
    documents = sorted(test[:PARTS], key=lambda document: -len(document.text))[:4]
    task = parts.progress.track(f"{name}: examples", len(documents))
    found: list[tuple[float, int, int]] = []  # gain, document, position
    explained = []
    for index, document in enumerate(documents):
        explanation = explain(parts.loaded, Retriever(store, settings), fixed(settings), document)
        explained.append(explanation)
        gain = explanation.p - explanation.p_lm  # (L,)
        texts = [decode([int(token)]) for token in explanation.tokens]
        # A piece of a character or white space shows a reader nothing.
        shown = ["\ufffd" not in text and any(c.isalpha() for c in text) for text in texts]
        found += [(float(gain[t]), index, t) for t in np.flatnonzero(shown).tolist()]
        task.advance()
    chosen: list[tuple[int, int]] = []
    tokens: set[int] = set()
    for _, index, position in sorted(found, reverse=True):
        token = int(explained[index].tokens[position])
        if token not in tokens and sum(other == index for other, _ in chosen) < 2 and len(chosen) < count:
            tokens.add(token)
            chosen.append((index, position))
    if found:
        chosen.append(min(found)[1:])
    return [
        row
        for index, position in chosen
        for row in rows(explained[index], parts.loaded.tokenizer, [position], left=24, right=6)
    ]


def bytes_per_entry(info: Mapping[str, Any]) -> dict[str, float]:
    """Bytes of a store per entry: what a search by codes touches, the rest (raw keys, values, documents), the total."""
    total, touched = float(info["bytes_per_entry"]), float(info["search_bytes_per_entry"])
    return {"codes and lists": touched, "raw keys, values, documents": total - touched, "total": total}


def _made(
    settings: DemoSettings,
    loaded: LoadedModel,
    corpus: Corpus,
    reference: Corpus,
    curve: Curve,
    steps: int,
    seconds: float,
) -> dict[str, dict[str, str]]:
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    budget = f"{steps} steps"
    if steps < settings.steps:
        budget += f" of {settings.steps}, as many as {settings.seconds:.0f} s allowed"
    validation = ", ".join(f"{x:.0f} s: {y:.1f}" for x, y in itertools.islice(zip(curve.x, curve.y, strict=True), 12))

    def text(part: Corpus) -> str:
        return ", ".join(f"{name} {count:,}" for name, count in part.characters().items())

    return {
        "Text": {
            "docstrings, characters": text(corpus),
            "language reference, characters": text(reference),
            "splits": "by module and by topic; text that occurs twice is kept once",
        },
        "Model": {
            "size": f"{parameters:,} parameters: {settings.n_layers} layers, d {settings.d_model}, "
            f"vocabulary {loaded.tokenizer.vocab_size}, context {settings.context}",
            "training": f"{budget}, validation perplexity after {validation}",
            "device": f"{loaded.device}, {'bfloat16' if bf16_is_fast(loaded.device) else 'float32'}",
        },
        "Settings": {
            "seed": str(settings.seed),
            "key": "input of the last feed-forward block, float16",
            "λ, T, k": "chosen on the validation text with quantised keys; the shuffled store has its own",
            "whole demo": f"{seconds:.0f} s",
        },
        "Versions": versions(),
    }
