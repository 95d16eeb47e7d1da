"""Re-training without raw keys: the model runs over the store's own documents, and all codes are made anew.

The values of a document are its tokens, so that the text need not be given again. A new quantiser is learnt from the
keys of a sample, the documents go through the model in parts (`parts`, `encoding`), and what is made is staged in a
folder of the store that no manifest names. Until one new generation takes all of it in, the store is searched with the
index that it has; ids, values and documents stay. Killed at any moment, the work goes on where it was.
"""

from __future__ import annotations

import filecmp
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from knnlm.build.encode import Encoder, encoded
from knnlm.build.parts import PART_TOKENS, Placed, parts_of, sample_keys, share_of
from knnlm.model.identity import check
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec, key_spec
from knnlm.model.loaded import Loaded
from knnlm.store.builder import StoreBuilder, sampled_keys
from knnlm.store.datastore import Datastore, FormatError, StoreError
from knnlm.store.recall_sample import UNMEASURED, Truth, TruthError
from knnlm.system.journal import PLAN, Staging
from knnlm.system.json_text import to_json
from knnlm.system.log import LOG
from knnlm.system.own_files import is_file, is_folder, remove
from knnlm.text.inputs import TokenDocument

RETRAINING = "retraining"
"""Folder in the store, while it is re-trained, for what waits to become a generation."""

CODEBOOK = "codebook.seg"
LEARNT = "codebook.json"
PUBLISHED = "published"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RetrainResult:
    """What a run did: parts that an earlier run had staged are counted as resumed."""

    tokens: int
    parts: int
    resumed_parts: int
    sample_tokens: int
    generation: int
    seconds: float
    unmeasured: bool = False
    """Whether recall is not known, as a damaged file of an interrupted run had what it is measured against."""


def stored_documents(store: Datastore, vocabulary_size: int) -> Iterator[Placed]:
    """The documents of a store as tokens, in the order of their ids, without those that are deleted.

    Raises ValueError for a value that is no token of a vocabulary of `vocabulary_size`.
    """
    for number, info in enumerate(store.documents()):
        values = store.values(info.start, info.stop)  # (n,)
        if len(values) and int(values.max()) >= vocabulary_size:
            raise ValueError(
                f"document {info.name!r} of {store.path}: expected tokens below {vocabulary_size:,}, found the value "
                f"{int(values.max()):,}: the store was not made from text with this model, re-train it from raw keys"
            )
        name = info.name or f"document {number + 1}"
        yield Placed(info.start, TokenDocument(name, values.astype(np.uint32, copy=False)))


def spec_of(store: Datastore, loaded: Loaded) -> KeySpec:
    """How the keys of a store were made, for making them again with the model that made them.

    Raises:
        StoreError: the store remembers no model or no representation.
        IdentityError: the model or the tokenizer is another.
    """
    spec = key_spec(store)
    if spec is None or "model" not in store.attributes:
        raise StoreError(
            f"{store.path}: expected a store that remembers the model and how its keys were made, found one made from "
            "vectors: its keys cannot be computed again; make it anew with keep_keys (in commands --keys), or from text"
        )
    check(store, loaded)
    return resolve(loaded, spec)


def retrain(
    path: str | Path,
    loaded: Loaded,
    *,
    code: Any = None,
    nlist: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    workers: int = 0,
    load: Callable[[], Loaded] | None = None,
    part_tokens: int = PART_TOKENS,
    progress: Progress | None = None,
    **options: Any,
) -> RetrainResult:
    """Learn a new index for a store made from text, by running its model over its documents again.

    One new generation is published at the end; open readers keep theirs until `refresh`. Other writers are kept out
    meanwhile. An interrupted run leaves the store as it was, and the next one with the same arguments goes on with what
    it staged, to the same bytes; if the store has changed since, that is thrown away. Deleted documents get no codes.
    Takes room for the new codes twice beside the old ones.

    path: the store. loaded: the model that made it. code, nlist, seed, threads: as of `Datastore.build`. workers, load:
    processes that run the model, each with the model that `load` (which must pickle) returns; 0 runs it here.
    part_tokens: tokens of a part at least, what a crash can cost. progress: called with (stage, done, total). options:
    of `iterate` (batch_tokens).

    Raises:
        StoreError: the store remembers no model; another process is writing.
        IdentityError: another model or tokenizer made the store.
        ValueError: no entries, fewer entries than lists, an argument out of range, values that are no tokens.
        FormatError: a staged file was damaged meanwhile.

    Example:
        >>> from knnlm.build.retrain import retrain
        >>> result = retrain("store", knnlm.load_model("model"))  # doctest: +SKIP
    """
    started = time.perf_counter()
    if is_folder(folder := Path(path) / RETRAINING):
        LOG.info(f"{folder}: going on with an interrupted re-training, if the store is as it was then")
    with Datastore.open(path) as store:
        builder = StoreBuilder(store)
        with builder.hold():
            keys = spec_of(store, loaded)
            if len(store) == 0:
                raise ValueError(f"expected entries to index in {store.path}, found none")
            if nlist is not None and len(store) < nlist:
                raise ValueError(
                    f"expected at least as many entries as lists, found {len(store):,} for {nlist:,}: ask for fewer"
                )
            work = _Retraining(store, builder, loaded, keys, {"code": code, "nlist": nlist, "seed": seed}, threads)
            found = work.run(part_tokens, workers, load, progress, options)
        seconds = time.perf_counter() - started
        unmeasured = len(store) > 1 and not store.info()["calibration"]
        if unmeasured:
            LOG.info(UNMEASURED)
        return RetrainResult(len(store), *found, store.generation, seconds, unmeasured)


class _Retraining:
    """A store that is held, and what is staged for it."""

    def __init__(
        self,
        store: Datastore,
        builder: StoreBuilder,
        loaded: Loaded,
        keys: KeySpec,
        index: dict[str, Any],
        threads: int | None,
    ) -> None:
        self.store, self.builder, self.loaded, self.keys = store, builder, loaded, keys
        self.index, self.threads = index, threads
        self.folder = Path(store.path) / RETRAINING
        self.staging = Staging(self.folder)

    def documents(self) -> Iterator[Placed]:
        """What the model runs over."""
        return stored_documents(self.store, int(self.loaded.tokenizer.vocab_size))

    def run(
        self,
        part_tokens: int,
        workers: int,
        load: Callable[[], Loaded] | None,
        progress: Progress | None,
        options: dict[str, Any],
    ) -> tuple[int, int, int]:
        """Stage what is missing and publish; parts, those of them that were there, tokens of the sample."""
        chosen = {**self.index, "part_tokens": part_tokens, "options": {k: str(v) for k, v in sorted(options.items())}}
        made_by = {"model": self.loaded.fingerprint, "keys": asdict(self.keys)}
        plan = json.loads(to_json({"generation": self.store.generation, **chosen, **made_by}, "plan"))
        if self._is_published(plan):
            done = len(self._records())
            self.staging.remove()
            return done, done, 0
        records, truth, sampled = self._resumed(plan)
        resumed = len(records)
        if truth is None:
            self.staging.begin(plan)
            truth, sampled = self._learn(progress, options)
            records = []
        for path in (*self.folder.glob("lists-*"), *self.folder.glob("found-*")):
            if not any(path.name == files["file"] for record in records for files in record):
                remove(path)
        total = len(self.store)
        codebook = self.staging.read(LEARNT)["codebook"]
        encoder = Encoder(
            self.loaded, self.keys, self.store, self.folder, truth, self.threads, options, codebook=codebook
        )
        done = sum(files["live"] for record in records for files in record)
        waiting = islice(parts_of(self.documents(), part_tokens), len(records), None)

        def passed(tokens: int) -> None:
            if progress is not None:
                progress("model", min(total, done + tokens), total)

        with encoded(encoder, waiting, workers, load, passed) as ready:
            for part, codes in ready:
                truth = truth.merged(codes.found)
                truth.save(self.folder, part.number + 1)
                records.append(codes.files)
                self.staging.write(_record(part.number), records[-1])
                Truth.forget(self.folder, part.number)
                done += part.tokens
                if progress is not None:
                    progress("encode", done, total)
        self._publish(codebook, [files for record in records for files in record], truth, progress)
        self.staging.write(PLAN, {**plan, PUBLISHED: self.store.generation})
        self.staging.remove()
        return len(records), resumed, sampled

    def _records(self) -> list[Any]:
        """What is staged of the first parts."""
        found = (self.staging.read(_record(number)) for number in count())
        return list(takewhile(lambda record: record is not None, found))

    def _resumed(self, plan: Any) -> tuple[list[Any], Truth | None, int]:
        """Parts, truth and size of the sample that an interrupted run of the same plan left."""
        learnt = self.staging.read(LEARNT)
        if self.staging.plan() != plan or learnt is None:
            return [], None, 0
        records = self._records()
        try:
            truth = Truth.load(self.folder, len(records))
        except TruthError:
            truth = Truth.lost(self.store.dim, len(self.store), self.store.metric)
        return records, truth, int(learnt["sampled"])

    def _is_published(self, plan: Any) -> bool:
        """Whether an interrupted run of the same plan had published, and had only its folder left to remove.

        It says so in its plan, unless it was killed just before: then the store has its codebook.
        """
        now = self.store.generation
        before = {**plan, "generation": now - 1}
        found = self.staging.plan()
        if found != before:
            return bool(found == {**before, PUBLISHED: now})
        staged, published = self.folder / CODEBOOK, Path(self.store.path) / f"codebook-{now:08}.seg"
        return is_file(staged) and published.is_file() and filecmp.cmp(staged, published, shallow=False)

    def _learn(self, progress: Progress | None, options: dict[str, Any]) -> tuple[Truth, int]:
        """Stage a codebook and the queries of the truth, both from a sample of the keys."""
        total, seed = len(self.store), self.index["seed"]
        wanted = sampled_keys(total, self.store.dim, self.index["nlist"])
        expected = round(total * share_of(wanted, total))

        def passed(_: str, tokens: int, __: int) -> None:
            if progress is not None:
                progress("sample", tokens, max(tokens, expected))

        passed("sample", 0, 0)
        sample, ids = sample_keys(
            self.loaded, self.documents, self.keys, wanted, total, seed, progress=passed, **options
        )
        truth = Truth.choose(sample, ids, total, self.store.metric)
        truth.save(self.folder, 0)
        codebook = self.builder.stage_codebook(
            self.folder, CODEBOOK, sample, total, self.threads, progress, **self.index
        )
        self.staging.write(LEARNT, {"codebook": codebook, "sampled": len(sample)})
        return truth, len(sample)

    def _publish(self, codebook: Any, lists: list[Any], truth: Truth, progress: Progress | None) -> None:
        try:
            self.builder.reindex(
                self.folder, codebook, lists, truth.queries, truth.own, truth.ids, self.threads, progress
            )
        except FormatError as error:
            raise FormatError(f"{error}. The store is as it was; remove {self.folder} and start again") from error


def _record(number: int) -> str:
    return f"part-{number:08}.json"
