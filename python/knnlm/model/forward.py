"""Forward passes: batches of windows go through the model; out come scores and keys, back in corpus order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knnlm.model.capture import Capture, CaptureName
from knnlm.model.head import LOGITS, ChunkedHead, chunked_head, target_log_p
from knnlm.model.loaded import Loaded
from knnlm.model.modules import autocast, device_of, eager, is_compiled, token_limit, unwrapped
from knnlm.model.windows import Window

TOO_LARGE = "a key is not finite: float16 ends at 65504; keep float32 (key_dtype='float32', in commands --keys float32)"


class NotFiniteError(ValueError):
    """The model gave NaN, or a key that its type cannot hold, for a document that the message names."""


@dataclass
class Chunk:
    """A run of consecutive tokens of one document, in corpus order.

    tokens: (m,) uint32, the values.  keys: (m, d) per capture.  log_p: (m,) float32, log p_LM of each, or NaN.
    features: what was asked for, (m,) float32 each: "entropy" (nats) and "max" (largest log-probability) of p_LM.
    all_tokens: (L,) of the whole document.  bad: why these scores or keys cannot be used, if they cannot; then they are
    as the model gave them.
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
    bad: str | None = None

    @property
    def key(self) -> NDArray[Any]:
        """The keys of a single capture, (m, d)."""
        (only,) = self.keys.values()
        return only


@dataclass
class Job:
    """A window of a document, and what the model said of it."""

    document: Any
    index: int
    tokens: NDArray[np.uint32]
    window: Window
    last: bool
    result: tuple[NDArray[Any], dict[str, NDArray[Any]], dict[CaptureName, NDArray[Any]]] | None = None
    bad: str | None = None

    @property
    def scored(self) -> int:
        """Tokens that are scored."""
        return self.window.stop - self.window.score_from

    @property
    def head(self) -> int:
        """Positions at the start of the window that are context only."""
        return self.window.score_from - self.window.start


def check_tokens(tokenizer: Any, where: str, tokens: NDArray[Any], limit: int) -> None:
    """Raise ValueError where a text, called `where`, has a token that a model of `limit` tokens does not have."""
    if not len(tokens) or int(tokens.max()) < limit:
        return
    token = int(tokens[int(np.argmax(tokens >= limit))])
    known = token < int(tokenizer.vocab_size)
    named = f"{token} ({tokenizer.token_text(token)!r})" if known else str(token)
    raise ValueError(
        f"{where}: token {named} is outside the model's vocabulary of {limit:,}: "
        + (
            "the tokenizer has tokens that the model was not given an embedding for; leave this text out, or take the "
            "model that belongs to the tokenizer"
            if known
            else "use the model's own tokenizer"
        )
    )


class Runner:
    """The model, its hooks, and batches of windows of similar length."""

    def __init__(
        self,
        loaded: Loaded,
        captures: Sequence[CaptureName],
        key_dtype: str,
        features: Sequence[str],
        autocast: str | None,
        scores: bool,
        tolerant: bool,
    ) -> None:
        self.scores, self.tolerant = scores, tolerant
        self.model, self.tokenizer = unwrapped(loaded.model), loaded.tokenizer
        self.device, self.compiled = device_of(self.model), is_compiled(self.model)
        self.bos = int(loaded.tokenizer.bos_id)
        self.captures, self.features, self.autocast = list(captures), tuple(features), autocast
        self.key_dtype = torch.float16 if key_dtype == "float16" else torch.float32
        self.capture = Capture(self.model, self.captures) if self.captures else None
        self.was_training = self.model.training
        accepted = inspect.signature(self.model.forward).parameters
        # A module by its name may be one that reads only the positions that are kept.
        named = any(name.startswith("module:") for name, _ in self.captures)
        self.skips_logits = "logits_to_keep" in accepted and not named
        self.options = {"use_cache": False} if "use_cache" in accepted else {}
        self.vocabulary = token_limit(self.model) or int(loaded.tokenizer.vocab_size)
        self.token_bytes = 0  # of keys and scores, once a batch has shown it
        self._chunked: ChunkedHead | None = None
        self._tried = False

    def __enter__(self) -> Runner:
        self.model.eval()
        return self

    def __exit__(self, *_: object) -> None:
        if self.capture is not None:
            self.capture.close()
        self.model.train(self.was_training)

    def pool(self, jobs: list[Job], batch_tokens: int, passed: Callable[[int], None]) -> Iterator[Chunk]:
        """Run a pool of windows, those with the same unscored head and of similar length together; results in order.

        passed: told the number of scored tokens after each batch.
        """
        order = sorted(jobs, key=lambda job: (job.head, job.window.start - job.window.stop))
        at = 0
        while at < len(order):
            longest = order[at].window.stop - order[at].window.start
            batch = order[at : at + self._rows(longest, batch_tokens)]
            batch = [job for job in batch if job.head == batch[0].head]
            self._batch(batch, longest)
            passed(sum(job.scored for job in batch))
            at += len(batch)
        at = 0
        while at < len(jobs):
            stop = at + 1
            while stop < len(jobs) and jobs[stop].index == jobs[at].index:
                stop += 1
            yield self._join(jobs[at:stop])
            at = stop

    def _join(self, run: list[Job]) -> Chunk:
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
            next((job.bad for job in run if job.bad is not None), None),
        )

    def _rows(self, longest: int, batch_tokens: int) -> int:
        """Windows of a batch."""
        rows = max(1, batch_tokens // longest)
        if self.scores and rows * longest * self.vocabulary > LOGITS and self._head() is None:
            rows = max(1, LOGITS // (longest * self.vocabulary))
        return rows

    def _head(self) -> ChunkedHead | None:
        """The head in chunks, tried when it is first wanted; None where this model has to give all logits at once."""
        if not self._tried:
            with self._arithmetic():
                self._tried, self._chunked = True, chunked_head(self.model)
        return self._chunked

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        with eager(self.compiled), autocast(self.device, self.autocast):
            yield

    @torch.inference_mode()
    def _batch(self, batch: list[Job], longest: int) -> None:
        inputs = np.full((len(batch), longest), self.bos, np.int64)  # padded on the right, which nothing attends to
        for row, job in enumerate(batch):
            start, stop, _ = job.window
            fed = job.tokens[max(0, start - 1) : stop - 1]
            inputs[row, stop - start - len(fed) : stop - start] = fed
        ids = torch.from_numpy(inputs).to(self.device)  # (B, T)
        with self._arithmetic():
            pieces = self._pass(ids, batch, longest)
            keys = self.capture.by_name if self.capture is not None else {}  # (B, T, d) each
            for name, key in keys.items():
                if key.shape[:2] != ids.shape:
                    raise ValueError(
                        f"{name[0]}: expected a module that reads one vector a position, {tuple(ids.shape)}, found "
                        f"{tuple(key.shape[:2])}; choose another module for the keys"
                    )
            stored = {name: key[:, batch[0].head :].to(self.key_dtype) for name, key in keys.items()}
            log_p, extra = self._scored(pieces, batch)
        for job, reason in self._bad(batch, log_p, keys, stored):
            job.bad = f"document {job.document.name!r}: {reason}"
            if not self.tolerant:
                raise NotFiniteError(job.bad)
        on_host = {name: key.cpu().numpy() for name, key in stored.items()}
        at = 0
        for row, job in enumerate(batch):
            span, at = slice(at, at + job.scored), at + job.scored
            own = {name: key[row, : job.scored] for name, key in on_host.items()}
            job.result = (log_p[span], {name: column[span] for name, column in extra.items()}, own)
        widths = [key.shape[-1] * key.itemsize for key in on_host.values()]
        self.token_bytes = sum(widths) + 4 * (1 + len(self.features))

    def _pass(self, ids: Tensor, batch: list[Job], longest: int) -> Iterator[Tensor] | None:
        """Run the model; the logits (n, v) of the scored positions, window by window, are computed as they are taken.

        Whatever is captured is there when this returns. None where no scores are wanted.
        """
        if not self.scores:
            assert self.capture is not None
            self.capture.run(self.model, ids, **self.options)
            return None
        head = batch[0].head
        chunked = self._head() if len(batch) * (longest - head) * self.vocabulary > LOGITS else None
        if chunked is not None:
            read = chunked.read(ids, **self.options)
            rows = [longest * row + head + np.arange(job.scored) for row, job in enumerate(batch)]
            positions = torch.from_numpy(np.concatenate(rows)).to(self.device)  # (N,)
            return chunked.logits(read, positions, max(1, LOGITS // self.vocabulary))
        # The output embedding is the dearest matrix of a small model: spare it the positions that are context only.
        options = {"logits_to_keep": longest - head} if head and self.skips_logits else {}
        logits = self.model(ids, **options, **self.options).logits  # (B, T', v)
        first = head - (longest - logits.shape[1])
        return (logits[row, first : first + job.scored] for row, job in enumerate(batch))

    def _scored(
        self, pieces: Iterator[Tensor] | None, batch: list[Job]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """log p of the targets of all windows, (N,), and the features; NaN where nothing is scored."""
        targets = np.concatenate([job.tokens[job.window.score_from : job.window.stop] for job in batch])
        if pieces is None:
            return np.full(len(targets), np.nan, np.float32), {}
        wanted = torch.from_numpy(targets.astype(np.int64)).to(self.device)
        log_p: list[Tensor] = []
        extra: dict[str, list[Tensor]] = {name: [] for name in self.features}
        at = 0
        for logits in pieces:  # (n, v)
            if not log_p:
                for job in batch:
                    read = job.tokens[job.window.start : job.window.stop]
                    check_tokens(self.tokenizer, f"document {job.document.name!r}", read, logits.shape[-1])
            own, more = target_log_p(logits, wanted[at : at + len(logits)], self.features)
            log_p.append(own)
            for name, column in more.items():
                extra[name].append(column)
            at += len(logits)
        # One copy from the device for the whole batch.
        return torch.cat(log_p).cpu().numpy(), {name: torch.cat(c).cpu().numpy() for name, c in extra.items()}

    def _bad(
        self,
        batch: list[Job],
        log_p: NDArray[np.float32],
        keys: dict[CaptureName, Tensor],
        stored: dict[CaptureName, Tensor],
    ) -> Iterator[tuple[Job, str]]:
        """Windows with a score or a key that is not finite, and why; keys as captured, and as they are to be stored."""
        broken = np.isnan(log_p) if self.scores else np.zeros(len(log_p), bool)
        if not broken.any() and all(bool(torch.isfinite(key).all()) for key in stored.values()):
            return
        at = 0
        for row, job in enumerate(batch):
            span, at = slice(at, at + job.scored), at + job.scored
            if broken[span].any():
                yield job, self._reason("NaN as the probability", job, int(np.argmax(broken[span])))
                continue
            for name, key in stored.items():
                wrong = ~torch.isfinite(key[row, : job.scored]).all(-1)  # (m,)
                if bool(wrong.any()):
                    first = int(wrong.int().argmax())
                    if bool(torch.isfinite(keys[name][row, job.head + first]).all()):
                        yield job, TOO_LARGE
                    else:
                        yield job, self._reason("NaN or Inf as the key", job, first)
                    break

    def _reason(self, what: str, job: Job, at: int) -> str:
        return (
            f"the model gave {what} of token {job.window.score_from + at}; run it in another type (dtype='float32', in "
            "commands --dtype float32), and if that does not help, its weights are damaged"
        )
