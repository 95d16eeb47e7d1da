"""One pass: text becomes an indexed store; killed at any moment, it goes on where it was.

The quantiser is learnt from the keys of a sample of the text. Then the documents go through the model in parts of a
fixed number of tokens (`parts`); each part is encoded into files of its own, by this process or by a worker
(`encoding`), and committed in document order by this one, which holds the lock from its first look at the store to its
end. A part is computed by itself, so that the store has the same bytes whether it was interrupted or not, and whichever
process computed which part, as long as the model of each runs on as many threads. Raw keys are stored only if they are
to be kept, but for the queries of the truth, until it is finished. Exact neighbors of some keys (`truth`) are kept on
the way: at the end the recall of the codes is measured against them.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from knnlm.build.encode import Encoded, Encoder, encoded
from knnlm.build.parts import PART_TOKENS, Part, Placed, parts_of, placed, sample_keys, share_of
from knnlm.model.forward import NotFiniteError, check_tokens
from knnlm.model.identity import check
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec
from knnlm.model.loaded import Loaded
from knnlm.model.modules import token_limit, unwrapped
from knnlm.store.attributes import described_alike
from knnlm.store.builder import StoreBuilder, sampled_keys
from knnlm.store.datastore import Datastore
from knnlm.store.recall_sample import Truth, TruthError
from knnlm.system.counted import counted
from knnlm.system.json_text import to_json
from knnlm.system.log import LOG
from knnlm.system.own_files import STORE, is_folder, make_folder, read, remove, remove_tree, write_for_good
from knnlm.text.inputs import TokenDocument

PARTS = "parts"
"""Folder in the store, while it is built, for what no manifest names: parts that wait for their turn, and the truth."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class OnePassResult:
    """What a run did: parts that an earlier run had committed are counted as resumed."""

    tokens: int
    parts: int
    resumed_parts: int
    sample_tokens: int
    seconds: float
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Names of documents that are not in the store, as the model gave NaN for them, and why."""
    duplicates: int = 0
    """Documents with the very tokens of an earlier one, each of which is stored."""
    unmeasured: bool = False
    """Whether recall is not known, as a damaged file of an interrupted run had what it is measured against."""


def build_in_one_pass(
    path: str | Path,
    loaded: Loaded,
    documents: Callable[[], Iterable[TokenDocument]],
    *,
    keys: KeySpec,
    dim: int,
    attributes: dict[str, Any],
    code: Any = None,
    nlist: int | None = None,
    metric: Literal["l2", "ip"] = "l2",
    keep_keys: bool = False,
    seed: int = 0,
    threads: int | None = None,
    workers: int = 0,
    load: Callable[[], Loaded] | None = None,
    part_tokens: int = PART_TOKENS,
    progress: Progress | None = None,
    **options: Any,
) -> OnePassResult:
    """Make the store at `path`, or go on with one that an interrupted run of the same text left there.

    The store remembers a digest of the text, names and tokens in order: with another one no run goes on.

    documents: gives the text from its start whenever it is called (to count, for the sample, and to encode); names must
    be unique. attributes: what the store remembers. keep_keys: keep raw keys, in `keys.key_dtype`. workers:
    processes that compute parts, each with the model that `load` (which must pickle) returns; 0 computes them here.
    progress: called with (stage, done, total); "sample" and "model" count the tokens that the model has run over, batch
    by batch, "encode" those that are committed. options: of `iterate` (batch_tokens). The bytes of the store
    depend on the text, the model, its device and threads, and `part_tokens`; on nothing else. A store that was made
    otherwise is replaced only while it is empty and has no index.

    A document with a key that is not finite does not end the build: it is left out at the end, and reported. Its ids
    are not given again.

    Raises:
        NotFiniteError: no key of the sample is finite, or a key of every document is not.
        ValueError: another store with entries or an index at `path`, or an empty one beside files of no store; a text
            without tokens, or with fewer than there are lists.
        StoreError: another process builds or writes there, or `path` holds something that is no store.
        RuntimeError: a worker died or could not load the model.
    """
    started = time.perf_counter()
    keys = resolve(loaded, keys)
    report = progress or (lambda stage, done, total: None)

    limit = token_limit(unwrapped(loaded.model))

    def text() -> Iterator[Placed]:
        for place in placed(documents()):
            if limit is not None:  # found while tokens are counted, not after hours
                name = f"document {place.document.name!r}"
                check_tokens(loaded.tokenizer, name, np.asarray(place.document.tokens), limit)
            yield place

    path = Path(path)
    folder = path / PARTS
    with ExitStack() as stack:
        store = _held(path, stack)
        stops, digest, duplicates = _counted(text(), part_tokens, report)
        total, count = (stops[-1] if stops else 0), len(stops)
        if total == 0:
            raise ValueError("expected text with at least one token, found none")
        if nlist is not None and total < nlist:
            raise ValueError(
                f"expected at least as many tokens as lists, found {total:,} for {counted(nlist, 'list')}: ask "
                "for fewer"
            )
        LOG.debug("to build: %s in %s", counted(total, "token"), counted(count, "part"))
        chosen = {"tokens": total, "text": digest, "part_tokens": part_tokens, "seed": seed, "nlist": nlist}
        chosen["metric"] = metric
        kept: Any = keys.key_dtype if keep_keys else None
        marks = json.loads(to_json({**attributes, "one_pass": {**chosen, "code": code}}, "attributes"))
        if store is None:  # another process may have begun it meanwhile
            store = _held(path, stack)
        if store is not None and described_alike(store.attributes, marks):
            check(store, loaded)  # what is measured of a model differs by its device
        if store is not None and not (described_alike(store.attributes, marks) and store.info()["keep_keys"] == kept):
            _refuse_to_clear(store, path, digest)
            _clear(path)  # nothing that cost much
            stack.close()
            store = None
        if store is None:
            most = int(loaded.tokenizer.vocab_size) - 1
            Datastore.create(path, dim=dim, metric=metric, keep_keys=kept, max_value=most, attributes=marks).close()
            store = _held(path, stack)
            assert store is not None
        sampled = 0
        if not store.is_built:
            remove_tree(folder)
            make_folder(folder)
            wanted = sampled_keys(total, dim, nlist)
            expected = round(total * share_of(wanted, total))
            report("sample", 0, expected)
            sample, ids = sample_keys(
                loaded,
                text,
                keys,
                min(wanted, total),
                total,
                seed,
                True,
                progress=lambda _, passed, __: report("sample", passed, max(passed, expected)),
                **options,
            )
            sampled = len(sample)
            Truth.choose(sample, ids, total, metric).save(folder, 0)
            store.train(sample, expected=total, seed=seed, nlist=nlist, code=code, threads=threads, progress=progress)
            del sample
        resumed = done = _done(store, path, stops)
        failed: list[tuple[str, str]] = []
        unmeasured = False
        truth = None
        if is_folder(folder):
            try:
                truth = Truth.load(folder, done)
            except TruthError:
                truth = Truth.lost(dim, total, metric)
        if truth is None and done < count:
            raise ValueError(f"{path}: expected {folder} of an interrupted build, found none; remove the store")
        if truth is not None:
            for leftover in (file for kind in ("lists", "keys", "found") for file in list(folder.glob(f"{kind}-*"))):
                remove(leftover)
            encoder = Encoder(loaded, keys, store, folder, truth, threads, options, keeps=keep_keys, tolerant=True)
            waiting = islice(parts_of(text(), part_tokens), done, None)

            def passed(tokens: int) -> None:
                report("model", min(total, store.next_id + tokens), total)

            with encoded(encoder, waiting, workers, load, passed) as ready:
                for part, codes in ready:
                    truth = truth.merged(codes.found)
                    truth.save(folder, part.number + 1)
                    if codes.failed:
                        _remember(folder, part, codes.failed)
                    _commit(store, folder, part, codes)
                    Truth.forget(folder, part.number)
                    done = part.number + 1
                    report("encode", part.stop, total)
            if store.next_id != total:
                raise ValueError(
                    f"{path}: expected {counted(total, 'token')}, as counted, found {store.next_id:,}: the text "
                    "changed meanwhile; remove the store"
                )
            failed = [(name, reason) for name, reason, *_ in _failed(folder)]
            if sum(stop - start for *_, start, stop in _failed(folder)) == total:
                raise NotFiniteError(failed[0][1])
            if not failed:
                store.compact(progress=progress)
            truth = _left_out(store, folder, truth)
            unmeasured = len(truth.queries) == 0
            if not (store.info()["calibration"] or unmeasured):
                StoreBuilder(store).calibrate(truth.queries, truth.own, truth.ids, threads, progress)
            if failed:  # at last: it removes the folder, in which what was deleted may be
                store.compact(progress=progress)
        remove_tree(folder)
    seconds = time.perf_counter() - started
    return OnePassResult(total, done, resumed, sampled, seconds, failed, duplicates, unmeasured)


def _done(store: Datastore, path: Path, stops: list[int]) -> int:
    """Parts that the store has: ids tell, which nothing takes back; generations come from other changes, too."""
    if store.next_id == 0:
        return 0
    if store.next_id >= stops[-1]:  # finished, and perhaps added to since
        return len(stops)
    if store.next_id not in stops:
        raise ValueError(
            f"{path}: expected the entries of whole parts of an interrupted build, found {store.next_id:,} ids: "
            "something else was added; remove the store"
        )
    return stops.index(store.next_id) + 1


def _counted(text: Iterable[Placed], part_tokens: int, report: Progress) -> tuple[list[int], str, int]:
    """Tokens up to the end of each part, a digest of names and tokens in their order, and how many documents repeat.

    Of each document 8 bytes are held for that.
    """
    total, stops, seen = 0, [], array("Q")
    digest = hashlib.blake2b(digest_size=16)
    for part in parts_of(text, part_tokens):
        total += part.tokens
        stops.append(total)
        for document in part.documents:
            name = document.name.encode()
            digest.update(struct.pack("<QQ", len(name), len(document.tokens)) + name)
            tokens = np.asarray(document.tokens, "<u4").tobytes()
            digest.update(tokens)
            seen.append(int.from_bytes(hashlib.blake2b(tokens, digest_size=8).digest(), "little"))
        report("count tokens", total, 0)
    report("count tokens", total, total)
    return stops, digest.hexdigest(), len(seen) - len(np.unique(np.frombuffer(seen, np.uint64)))


def _held(path: Path, stack: ExitStack) -> Datastore | None:
    """Open the store at `path` and keep other writers out until the stack is closed; None if there is no store."""
    if not (path.is_dir() and any(path.glob("manifest-*.json"))):
        return None
    store = stack.enter_context(Datastore.open(path))
    stack.enter_context(StoreBuilder(store).hold())
    return store


def _refuse_to_clear(store: Datastore, path: Path, text: str) -> None:
    """Raise ValueError unless a store that was made otherwise is empty and its folder holds nothing else."""
    expected = f"{path}: expected a store of this text and model with these settings to go on with, found "
    if store.is_built:
        same = store.attributes.get("one_pass", {}).get("text") == text
        other = "this text with another model or settings" if same else "another text"
        found = f"an unfinished build of {other}" if is_folder(path / PARTS) else f"a finished store of {other}"
        raise ValueError(
            f"{expected}{found}: put back what it was made of and the same command goes on with it, or remove the "
            f"folder {path} to begin anew"
        )
    if store.next_id:
        raise ValueError(
            f"{expected}one of {counted(len(store), 'entry')} that has no index: Datastore.build (in commands "
            "knnlm build) makes it one; choose another place, or remove it"
        )
    begun = [PARTS] if "one_pass" in store.attributes else []
    foreign = sorted(file.name for file in path.iterdir() if not (file.name in begun or STORE.fullmatch(file.name)))
    if foreign:
        raise ValueError(f"{expected}an empty one beside {', '.join(foreign[:4])}; move what is of no store away")


def _clear(path: Path) -> None:
    """Remove all of an empty store but its lock, which is held; the manifest at last."""
    remove_tree(path / PARTS)
    for file in sorted(path.iterdir(), key=lambda file: file.name.startswith("manifest-")):
        if file.name != "lock":
            remove(file)


FAILED = "failed.json"
"""File of the folder: name, reason, first id and the id after the last of each document that is to be left out."""


def _failed(folder: Path) -> list[tuple[str, str, int, int]]:
    try:
        with read(folder / FAILED) as file:
            return [(str(name), str(reason), int(start), int(stop)) for name, reason, start, stop in json.load(file)]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{folder / FAILED}: expected the documents that an interrupted build leaves out, found a damaged file; "
            "restore it from a copy, or remove the store and build it again"
        ) from error


def _remember(folder: Path, part: Part, failed: list[tuple[str, str]]) -> None:
    """Add documents of a part to those that are to be left out; on disk for good when the call returns."""
    reasons = dict(failed)
    here = [
        (document.name, reasons[document.name], first_id, first_id + len(document.tokens))
        for first_id, document in part.placed
        if document.name in reasons
    ]
    known = {entry[0]: entry for entry in (*_failed(folder), *here)}
    write_for_good(folder / FAILED, json.dumps(list(known.values())).encode())


def _left_out(store: Datastore, folder: Path, truth: Truth) -> Truth:
    """Delete the documents that failed, and forget their entries in the truth."""
    failed = _failed(folder)
    if failed:
        there = {info.name for info in store.documents()}
        if gone := [name for name, *_ in failed if name in there]:
            store.delete(gone)
        truth = truth.without([(start, stop) for *_, start, stop in failed])
    return truth


def _commit(store: Datastore, folder: Path, part: Part, codes: Encoded) -> None:
    """Publish an encoded part."""
    documents = [(d.name, d.metadata, len(d.tokens)) for d in part.documents]
    values = np.concatenate([d.tokens for d in part.documents]).astype(np.uint32, copy=False)  # (n,)
    keys = None if codes.raw is None else np.load(folder / codes.raw, mmap_mode="r")  # (n, d)
    StoreBuilder(store).add_part(folder, codes.files, documents, values, keys)
    if codes.raw is not None:
        del keys  # Windows removes no mapped file
        remove(folder / codes.raw)
