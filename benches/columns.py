"""Per-token log-probabilities of one split, computed once and kept in a work folder, so that a table is cheap to redo.

A split is scored by the language model in one pass (`score`): targets, log p_LM, keys, document borders. Then each
baseline adds a column of log-probabilities over the same tokens; `neighbors` keeps distances and matches (k per
token) instead, because lambda, temperature and k are chosen later.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.lm.retrieved_text import RetrievedText
from knnlm.lm.scored_text import ScoredText
from knnlm.probability.mix import mix
from knnlm.store.temperature import default_temperature

Floats = NDArray[np.float64]
Capture = tuple[str, int]  # key representation, layer
Chunk = tuple[int, NDArray[Any], NDArray[Any], dict[Capture, NDArray[Any]]]  # document, targets, log p_LM, keys

BLOCK = 2048  # queries per search call


@dataclass(kw_only=True)
class Split(ScoredText):
    """One scored split, with its keys in a file (mapped) and a folder for what is found of it; log_p_lm is float64."""

    keys: NDArray[np.float32]  # (n, d)
    folder: Path

    def sums(self, log_p: Floats) -> Floats:
        """Negative log-likelihood summed by document: (n,) to (D,)."""
        return -self.document_sums(log_p)

    @property
    def document_tokens(self) -> NDArray[np.int64]:
        """Tokens of each document (D,)."""
        return np.diff(self.offsets)

    def tokens_by_document(self) -> list[NDArray[np.uint32]]:
        """The tokens cut into documents."""
        return [self.tokens[rows] for rows in self.documents()]

    def by_document(self, column: Callable[[int, slice], Floats]) -> Floats:
        """Joins column(document number, its token slice) -> (L,) over all documents to (n,)."""
        bounds = zip(self.offsets[:-1], self.offsets[1:], strict=True)
        return np.concatenate([column(i, slice(a, b)) for i, (a, b) in enumerate(bounds)])

    def starts(self) -> NDArray[np.bool_]:
        """Marks the first token of each document (n,)."""
        mask = np.zeros(len(self), dtype=bool)
        mask[self.offsets[:-1]] = True
        return mask

    def head(self, documents: int) -> Split:
        """The first documents only; the column folder is shared, because every column is in token order."""
        stop = int(self.offsets[documents])
        return Split(
            names=self.names[:documents],
            offsets=self.offsets[: documents + 1],
            words=self.words[:documents],
            tokens=self.tokens[:stop],
            log_p_lm=self.log_p_lm[:stop],
            keys=self.keys[:stop],
            model_seconds=self.model_seconds * stop / max(1, len(self)),
            folder=self.folder,
        )


def mixed_order(count: int, seed: int) -> NDArray[np.int64]:
    """A fixed random order of documents, so that a prefix of them is a fair sample."""
    return np.random.default_rng(seed).permutation(count)


def documents_within(lengths: Sequence[int] | NDArray[np.int64], tokens: int) -> int:
    """How many leading documents hold at least `tokens` tokens (all, if there are not that many)."""
    return min(len(lengths), int(np.searchsorted(np.cumsum(lengths), tokens)) + 1)


def digest(*parts: Any) -> str:
    """Short name of anything JSON can say, for folders of the work space."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def score(
    folder: Path,
    names: Sequence[str],
    words: Sequence[int],
    tokens: int,
    captures: Sequence[Capture],
    passes: Callable[[], Iterable[Chunk]],
) -> dict[Capture, Split]:
    """Runs the language model over documents once and saves what it gave; a finished folder is only read.

    Args:
        folder: where the arrays lie; its name must change with the model, the documents and the window.
        names: document names in the order of the pass.
        words: words of each document.
        tokens: n, known from the tokenised documents.
        captures: key representations to keep.
        passes: gives the chunks of the documents in order.

    Returns:
        For each capture a split with its keys; everything else is the same.
    """
    done = folder / "split.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        targets, log_p, lengths = np.zeros(tokens, np.uint32), np.zeros(tokens), np.zeros(len(names), np.int64)
        maps: dict[Capture, Any] = {}
        at, started = 0, time.perf_counter()
        for document, chunk_targets, chunk_log_p, chunk_keys in passes():
            stop = at + len(chunk_targets)
            targets[at:stop], log_p[at:stop] = chunk_targets, chunk_log_p
            for capture, keys in chunk_keys.items():
                if capture not in maps:
                    shape = (tokens, keys.shape[1])
                    maps[capture] = np.lib.format.open_memmap(_keys_path(folder, capture), "w+", np.float32, shape)
                maps[capture][at:stop] = keys
            lengths[document] += len(chunk_targets)
            at = stop
        if at != tokens or set(maps) != set(captures):
            raise ValueError(f"expected {tokens} tokens with keys {list(captures)}, found {at} with {list(maps)}")
        for array in maps.values():
            array.flush()
        np.savez(folder / "columns.npz", targets=targets, log_p=log_p, lengths=lengths, words=np.asarray(words))
        done.write_text(json.dumps({"names": list(names), "seconds": time.perf_counter() - started}))
    about, saved = json.loads(done.read_text()), np.load(folder / "columns.npz")
    offsets = np.concatenate([[0], np.cumsum(saved["lengths"])])
    return {
        capture: Split(
            names=about["names"],
            offsets=offsets,
            words=saved["words"],
            tokens=saved["targets"],
            log_p_lm=saved["log_p"],
            keys=np.load(_keys_path(folder, capture), mmap_mode="r"),
            model_seconds=about["seconds"],
            folder=folder,
        )
        for capture in captures
    }


def _keys_path(folder: Path, capture: Capture) -> Path:
    return folder / f"keys-{capture[0]}{capture[1]}.npy"


def neighbors(store: Any, split: Split, k: int, name: str, shuffled: NDArray[Any], **options: Any) -> RetrievedText:
    """Searches the store for every token of a split; distances and matches are kept in the split's folder, mapped.

    Args:
        store: a datastore.
        split: queries and targets.
        k: neighbors per token.
        name: of the kept result; must change with the store and with the options.
        shuffled: (len(store),) the values in a random order: the same store without its meaning.
        options: for `search`, such as exact=True.
    """
    folder = split.folder / f"{name}-{k}-{len(split)}"
    done, parts = folder / "found.json", ("distances", "match", "match_shuffled")
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        distances, match, wrong = (
            np.lib.format.open_memmap(folder / f"{part}.npy", "w+", dtype, (len(split), k))
            for part, dtype in zip(parts, (np.float32, bool, bool), strict=True)
        )
        seconds = 0.0
        for start in range(0, len(split), BLOCK):
            rows = slice(start, min(start + BLOCK, len(split)))
            queries, targets = np.ascontiguousarray(split.keys[rows]), split.tokens[rows, None]
            started = time.perf_counter()
            found = store.search(queries, k, **options)
            seconds += time.perf_counter() - started
            distances[rows] = found.distances
            match[rows] = (found.values == targets) & found.found
            wrong[rows] = (shuffled[np.maximum(found.ids, 0)] == targets) & found.found
            if seconds > 60 and start // BLOCK % 8 == 0:
                log(f"{name}: {rows.stop:,} of {len(split):,} tokens searched, {rows.stop / seconds:,.0f} a second")
        for array in (distances, match, wrong):
            array.flush()
        about = {"seconds": seconds, "temperature": default_temperature(store)}
        done.write_text(json.dumps(about))
    about = json.loads(done.read_text())
    distances, match, wrong = (np.load(folder / f"{part}.npy", mmap_mode="r") for part in parts)
    return RetrievedText(
        log_p_lm=split.log_p_lm.astype(np.float32),
        distances=distances,
        match=match,
        tokens=split.tokens,
        metric=store.metric,
        offsets=split.offsets,
        match_shuffled=wrong,
        default_temperature=about["temperature"],
        search_seconds=about["seconds"],
    )


def head(cached: RetrievedText, split: Split) -> RetrievedText:
    """The neighbors of a shorter split: its documents are the first ones."""
    n = len(split)
    wrong = cached.match_shuffled
    return dataclasses.replace(
        cached,
        log_p_lm=cached.log_p_lm[:n],
        distances=cached.distances[:n],
        match=cached.match[:n],
        tokens=split.tokens,
        hits=None,
        match_shuffled=None if wrong is None else wrong[:n],
        offsets=split.offsets,
        search_seconds=cached.search_seconds * n / max(1, len(cached)),
    )


def interpolated(log_p_lm: Any, log_p_knn: Any, lambda_: float) -> Floats:
    """log p of targets under LM and p_kNN, (n,)."""
    parts, weights = {"lm": log_p_lm, "knn": log_p_knn}, {"lm": 1 - lambda_, "knn": lambda_}
    return np.asarray(mix(parts, weights), np.float64)


def log(message: str) -> None:
    """Progress on stderr, so that stdout is the table."""
    print(f"[{time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)
