"""Keys: documents stream through the model in windows; out come tokens, their log-probabilities and their keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knnlm.capture import Capture, CaptureName
from knnlm.identity import IdentityError, KeySpec, Loaded
from knnlm.windows import Window, check_window, plan

LOGIT_ROWS = 256
"""Positions whose logits are held in float32 at a time."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TokenDocument:
    """A document that is tokens already."""

    name: str
    tokens: NDArray[np.uint32]
    metadata: dict[str, Any] | None = None
    text: str | None = None


@dataclass
class Chunk:
    """A run of consecutive tokens of one document, in corpus order.

    tokens: (m,) uint32, the values.  keys: (m, d) per capture.  log_p: (m,) float32, log p_LM of each, or NaN.
    features: what was asked for, (m,) float32 each: "entropy" (nats) and "max" (largest log-probability) of p_LM.
    all_tokens: (L,) of the whole document.
    """

    document: Any
    index: int
    start: int
    tokens: NDArray[np.uint32]
    log_p: NDArray[np.float32]
    keys: dict[CaptureName, NDArray[Any]]
    features: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    last: bool = False
    all_tokens: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))

    @property
    def key(self) -> NDArray[Any]:
        """The keys of a single capture, (m, d)."""
        (only,) = self.keys.values()
        return only


@dataclass
class _Job:
    document: Any
    index: int
    tokens: NDArray[np.uint32]
    window: Window
    last: bool
    result: tuple[NDArray[Any], dict[str, NDArray[Any]], dict[CaptureName, NDArray[Any]]] | None = None

    @property
    def head(self) -> int:
        """Positions at the start of the window that are context only."""
        return self.window.score_from - self.window.start


def iterate(
    loaded: Loaded,
    documents: Iterable[Any],
    *,
    captures: Sequence[CaptureName] = (("ffn-input", -1),),
    window: int | None = None,
    context: int | None = None,
    key_dtype: str = "float16",
    batch_tokens: int | None = None,
    pool_batches: int = 8,
    features: Sequence[str] = (),
    scores: bool = True,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    total: int = 0,
) -> Iterator[Chunk]:
    """Score documents and capture their keys; chunks come in corpus order, a long document in several.

    documents: objects with `name`, `metadata` and `text` (or `tokens`, (L,) integers); context never crosses their
    borders, and an empty one gives nothing. window, context: tokens; defaults: the model's context, and half of that.
    captures: none, one or several (representation, layer), all from one forward pass. batch_tokens: positions per
    forward pass; default: `batch_size`. pool_batches: so many batches are run before their chunks come. scores: whether
    log p_LM is wanted; without it the model stops at the last key, before its head. dtype: torch.bfloat16 runs the
    model under autocast. progress(stage, done, total) counts tokens, after each forward pass. Memory: one pool of
    batches, whatever the corpus holds.
    Raises ValueError for a window that the model cannot read and for keys that float16 cannot hold.
    """
    window, context = _windows(loaded, window, context)
    if key_dtype not in ("float16", "float32"):
        raise ValueError(f"key_dtype: expected float16 or float32, found {key_dtype!r}")
    if unknown := set(features) - {"entropy", "max"}:
        raise ValueError(f"features: expected 'entropy' or 'max', found {sorted(unknown)}")
    batch_tokens = batch_size(loaded, window) if batch_tokens is None else batch_tokens
    if not scores and (features or not captures):
        raise ValueError("scores=False gives keys only: expected captures and no features")
    run = _Runner(loaded, captures, key_dtype, features, dtype, scores)
    done = 0

    def passed(tokens: int) -> None:
        nonlocal done
        done += tokens
        if progress is not None:
            progress("model", done, total)

    with run:
        pool: list[_Job] = []
        waiting = 0
        for job in _jobs(loaded, documents, window, context):
            pool.append(job)
            waiting += job.window.stop - job.window.start
            if waiting >= pool_batches * batch_tokens:
                yield from run.pool(pool, batch_tokens, passed)
                pool, waiting = [], 0
        yield from run.pool(pool, batch_tokens, passed)


def iterate_as(loaded: Loaded, documents: Iterable[Any], spec: KeySpec, **options: Any) -> Iterator[Chunk]:
    """`iterate` with keys made as a resolved `spec` says; options of `iterate` stand above it."""
    made = {
        "captures": [(spec.representation, spec.layer)],
        "window": spec.window,
        "context": spec.context,
        "key_dtype": spec.key_dtype,
    }
    return iterate(loaded, documents, **(made | options))


def batch_size(loaded: Loaded, window: int) -> int:
    """Positions of a forward pass whose logits stay near half a gigabyte; at least one window."""
    return max(window, min(4096, 2**27 // int(loaded.tokenizer.vocab_size)))


def _windows(loaded: Loaded, window: int | None, context: int | None) -> tuple[int, int]:
    spec = KeySpec(window=window, context=context).resolved(loaded.context)
    assert spec.window is not None
    assert spec.context is not None
    check_window(spec.window, spec.context, loaded.context)
    return spec.window, spec.context


def arithmetic(store: Any, spec: KeySpec, dtype: torch.dtype | None) -> torch.dtype | None:
    """The autocast type that a model runs under to make keys like those of `store`: its `KeySpec` says which.

    dtype: what the caller wants, None = what the spec says. Raises IdentityError where a store states another one.
    """
    name = spec.autocast if dtype is None else str(dtype).removeprefix("torch.")
    attributes = getattr(store, "attributes", None) or {}
    if "autocast" in attributes and attributes["autocast"] != name:
        raise IdentityError(
            f"expected the arithmetic of the store's keys, autocast={attributes['autocast']!r}, found {name!r}: leave "
            "dtype out, or dump the store again with KeySpec(autocast=…)"
        )
    found: torch.dtype | None = None if name is None else getattr(torch, name)
    return found


def document_tokens(loaded: Loaded, document: Any) -> NDArray[np.uint32]:
    """The tokens of a document, (L,) uint32: its own, or its text encoded."""
    tokens = getattr(document, "tokens", None)
    return np.asarray(loaded.tokenizer.encode(document.text) if tokens is None else tokens, np.uint32)


def _jobs(loaded: Loaded, documents: Iterable[Any], window: int, context: int) -> Iterator[_Job]:
    for index, document in enumerate(documents):
        tokens = document_tokens(loaded, document)
        windows = plan(len(tokens), window, context)
        for w in windows:
            yield _Job(document, index, tokens, w, w is windows[-1])


class _Runner:
    """The model, its hooks, and batches of windows of similar length."""

    def __init__(
        self,
        loaded: Loaded,
        captures: Sequence[CaptureName],
        key_dtype: str,
        features: Sequence[str],
        dtype: torch.dtype | None,
        scores: bool,
    ) -> None:
        self.scores = scores
        self.model = loaded.model
        self.device = next(self.model.parameters()).device
        self.bos = int(loaded.tokenizer.bos_id)
        self.captures, self.features, self.dtype = list(captures), tuple(features), dtype
        self.key_dtype = torch.float16 if key_dtype == "float16" else torch.float32
        self.capture = Capture(self.model, self.captures) if self.captures else None
        self.was_training = self.model.training
        self.skips_logits = "logits_to_keep" in inspect.signature(self.model.forward).parameters

    def __enter__(self) -> _Runner:
        self.model.eval()
        return self

    def __exit__(self, *_: object) -> None:
        if self.capture is not None:
            self.capture.close()
        self.model.train(self.was_training)

    def pool(self, jobs: list[_Job], batch_tokens: int, passed: Callable[[int], None]) -> Iterator[Chunk]:
        """Run a pool of windows, those with the same unscored head and of similar length together; results in order.

        passed: told the number of scored tokens after each batch.
        """
        order = sorted(jobs, key=lambda job: (job.head, job.window.start - job.window.stop))
        at = 0
        while at < len(order):
            longest = order[at].window.stop - order[at].window.start
            batch = order[at : at + max(1, batch_tokens // longest)]
            batch = [job for job in batch if job.head == batch[0].head]
            self._batch(batch, longest)
            passed(sum(job.window.stop - job.window.score_from for job in batch))
            at += len(batch)
        at = 0
        while at < len(jobs):
            stop = at + 1
            while stop < len(jobs) and jobs[stop].index == jobs[at].index:
                stop += 1
            yield self._join(jobs[at:stop])
            at = stop

    def _join(self, run: list[_Job]) -> Chunk:
        results = [job.result for job in run if job.result is not None]
        first, last = run[0].window.score_from, run[-1].window.stop
        for job in run:
            job.result = None
        return Chunk(
            run[0].document,
            run[0].index,
            first,
            run[0].tokens[first:last],
            np.concatenate([r[0] for r in results]),
            {name: np.concatenate([r[2][name] for r in results]) for name in self.captures},
            {name: np.concatenate([r[1][name] for r in results]) for name in self.features},
            run[-1].last,
            run[0].tokens,
        )

    @torch.inference_mode()
    def _batch(self, batch: list[_Job], longest: int) -> None:
        inputs = np.full((len(batch), longest), self.bos, np.int64)  # padded on the right, which nothing attends to
        for row, job in enumerate(batch):
            start, stop, _ = job.window
            fed = job.tokens[max(0, start - 1) : stop - 1]
            inputs[row, stop - start - len(fed) : stop - start] = fed
        head = batch[0].head
        # The output embedding is the dearest matrix of a small model: spare it the positions that are context only.
        options = {"logits_to_keep": longest - head} if head and self.skips_logits else {}
        autocast = nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)
        ids = torch.from_numpy(inputs).to(self.device)  # (B, T)
        logits: Tensor | None = None
        with autocast:
            if self.scores or self.capture is None:
                logits = self.model(ids, **options).logits  # (B, T', v)
            else:
                self.capture.run(self.model, ids)
            keys = self.capture.by_name if self.capture is not None else {}  # (B, T, d) each
        skipped = 0 if logits is None else longest - logits.shape[1]
        stored = {name: self._to_numpy(key[:, head:], batch) for name, key in keys.items()}
        scored: list[tuple[Tensor, dict[str, Tensor]]] = []
        for row, job in enumerate(batch):
            start, stop, score_from = job.window
            targets = job.tokens[score_from:stop].astype(np.int64)
            if logits is None:
                scored.append((torch.full((len(targets),), torch.nan), {}))
                continue
            if targets.max() >= logits.shape[-1]:
                raise ValueError(
                    f"document {job.document.name!r}: token {targets.max()} is outside the model's vocabulary of "
                    f"{logits.shape[-1]}; use the model's own tokenizer"
                )
            rows = logits[row, score_from - start - skipped : stop - start - skipped]
            scored.append(target_log_p(rows, torch.from_numpy(targets).to(self.device), self.features))
        # One copy from the device for the whole batch.
        log_p = torch.cat([own for own, _ in scored]).cpu().numpy()
        extra = {name: torch.cat([own[name] for _, own in scored]).cpu().numpy() for name in self.features}
        at = 0
        for row, job in enumerate(batch):
            start, stop, score_from = job.window
            span, at = slice(at, at + stop - score_from), at + stop - score_from
            own = {name: key[row, : stop - score_from] for name, key in stored.items()}
            job.result = (log_p[span], {name: column[span] for name, column in extra.items()}, own)

    def _to_numpy(self, key: Tensor, batch: list[_Job]) -> NDArray[Any]:
        stored = key.to(self.key_dtype)
        if not bool(torch.isfinite(stored).all()):
            why = "the model gave NaN or Inf" if not bool(torch.isfinite(key).all()) else "float16 ends at 65504"
            names = ", ".join(sorted({repr(job.document.name) for job in batch})[:4])
            raise ValueError(
                f"a key is not finite ({why}) in one of {names}; keep float32 (key_dtype='float32', in commands "
                "--keys float32)"
            )
        return stored.cpu().numpy()


def target_log_p(logits: Tensor, targets: Tensor, features: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
    """log softmax at the targets, float32, without the whole (m, v) in float32.

    logits: (m, v), targets: (m,) int64. Returns (m,) and the asked features, (m,) each.
    """
    parts: list[Tensor] = []
    extra: dict[str, list[Tensor]] = {name: [] for name in features}
    for rows, wanted in zip(torch.split(logits, LOGIT_ROWS), torch.split(targets, LOGIT_ROWS), strict=True):
        x = rows.float()  # (r, v)
        total = x.logsumexp(-1)
        parts.append(x.gather(-1, wanted[:, None])[:, 0] - total)
        if "max" in extra:
            extra["max"].append(x.amax(-1) - total)
        if "entropy" in extra:
            log_p = x - total[:, None]
            extra["entropy"].append(-(log_p.exp() * log_p).sum(-1))
    empty = logits.new_zeros(0, dtype=torch.float32)
    return torch.cat(parts or [empty]), {name: torch.cat(v or [empty]) for name, v in extra.items()}
