"""Training a `TransformerLM` on documents, for a number of steps or of seconds.

    each epoch: cut [bos] + document into crops of `context` tokens at a random phase, batch crops of like length
    each step:  bf16 forward, cross-entropy (sampled, then full), AdamW, clipped gradient, cosine learning rate
    now and then: validation perplexity; the best weights go to model.safetensors, everything to training.safetensors

Contexts never cross a document. All randomness comes from (seed, epoch) and torch's generator, whose state is saved:
with a budget of steps a run that was killed and resumed ends with the same bits as one that was not. With a budget of
seconds the time spent so far is saved, and the schedule follows the clock. Next: `model/load.py` loads the folder.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
import numpy.typing as npt
import torch

from knnlm.model.checkpoint import STATE_FILE, TOKENIZER_FILE, load_state, save_model, save_state
from knnlm.model.transformer import TransformerLM
from knnlm.probability.weights import perplexity_of
from knnlm.system.counted import counted
from knnlm.system.log import LOG
from knnlm.system.making import make_with_parents
from knnlm.system.own_files import write_text
from knnlm.text.documents import Document
from knnlm.text.tokenizer import Tokenizer
from knnlm.train.cross_entropy import IGNORE, cross_entropy, sampled_cross_entropy
from knnlm.train.muon import Muon

GRACE = 0.1
"""Part of a budget of seconds that a run may take to come up to speed, before its schedule follows the clock."""

ProgressCallback = Callable[[str, int, int], None]
Crop = tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]  # inputs (t,), targets (t,)


@dataclass(frozen=True)
class TrainConfig:
    """How to train. One of ``max_steps`` and ``max_seconds`` is needed; whichever comes first ends the run."""

    max_steps: int | None = None
    max_seconds: float | None = None
    batch_tokens: int = 4096  # tokens of one step
    optimizer: str = "adamw"  # or "muon", for short runs: it needs a third of the steps
    learning_rate: float = 1e-3  # at the top of the schedule
    final_rate: float = 0.02  # of learning_rate, at the end of the cosine
    warmup: float = 0.03  # part of the budget with a rising learning rate
    weight_decay: float = 0.1  # on matrices only
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0  # largest norm of the gradient
    sampled_head: int = 0  # > 0: sampled softmax with so many frequent types counted exactly
    sampled_rest: int = 0  # types drawn from the others
    full_softmax: float = 0.15  # last part of the budget that uses the whole vocabulary after all
    bf16: bool | None = None  # None: on a GPU, and on a CPU that multiplies bf16 in hardware
    seed: int = 0
    valid_steps: int | None = None  # validate each so many steps
    valid_seconds: float = 240.0  # or, without valid_steps, each so many seconds
    valid_tokens: int = 40_000  # tokens scored while training; the end scores all
    save_seconds: float = 120.0  # between saves of the resumable state

    def __post_init__(self) -> None:
        """Refuse a run without end or without steps."""
        if self.max_steps is None and self.max_seconds is None:
            raise ValueError("expected max_steps or max_seconds, found neither: the training would never end")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer: expected adamw or muon, found {self.optimizer!r}")
        if self.batch_tokens < 1 or self.learning_rate <= 0 or self.valid_steps == 0:
            raise ValueError(f"batch_tokens, learning_rate and valid_steps must be positive, found {self}")
        if self.sampled_head > 0 and self.sampled_rest < 1:
            raise ValueError("sampled_rest must be positive with sampled_head: without rare types the loss is biased")


@dataclass
class TrainResult:
    """What a run did; ``curve`` has one dict per validation."""

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0  # tokens trained on, repeats counted
    best: float = math.inf  # validation perplexity of model.safetensors, on valid_tokens tokens
    interrupted: bool = False
    curve: list[dict[str, float]] = field(default_factory=list)


def crops(tokens: npt.NDArray[np.uint32], bos_id: int, context: int, phase: int = 0) -> Iterator[Crop]:
    """Cut one document into inputs and targets of at most ``context`` tokens; the first crop has ``phase`` fewer."""
    fed = np.concatenate([np.array([bos_id], dtype=np.uint32), tokens])
    start, stop = 0, context - phase
    while start < len(tokens):
        yield fed[start : min(stop, len(tokens))], fed[start + 1 : stop + 1]
        start, stop = stop, stop + context


def batches(parts: Sequence[Crop], batch_tokens: int, rng: np.random.Generator | None = None) -> list[list[Crop]]:
    """Group crops of like length so that a padded batch has at most ``batch_tokens`` tokens, in random order."""
    order = np.arange(len(parts)) if rng is None else rng.permutation(len(parts))
    ranked = sorted(order, key=lambda i: -len(parts[i][0]))  # stable: crops of full length keep their random order
    groups: list[list[Crop]] = []
    room = 0
    for i in ranked:
        if room == 0:
            groups.append([])
            room = max(1, batch_tokens // len(parts[i][0]))
        groups[-1].append(parts[i])
        room -= 1
    return groups if rng is None else [groups[i] for i in rng.permutation(len(groups))]


def collate(group: Sequence[Crop], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded inputs and targets, ``(B, T)`` int64 each; padding is `IGNORE` in the targets."""
    width = max(len(x) for x, _ in group)
    inputs = np.zeros((len(group), width), dtype=np.int64)
    targets = np.full((len(group), width), IGNORE, dtype=np.int64)
    for row, (x, y) in enumerate(group):
        inputs[row, : len(x)], targets[row, : len(y)] = x, y
    return torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)  # (B, T)


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cpu":
        asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # private: a torch without it counts as without
        return callable(asked) and bool(asked())
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


@torch.no_grad()
def validate(
    model: TransformerLM, documents: Sequence[npt.NDArray[np.uint32]], bos_id: int, limit: int | None, bf16: bool
) -> float:
    """Perplexity over crops of ``context`` tokens, each token once; of about ``limit`` tokens spread over the text."""
    device = next(model.parameters()).device
    parts = [crop for tokens in documents for crop in crops(tokens, bos_id, model.config.context)]
    total = sum(len(x) for x, _ in parts)
    if limit is not None and total > limit:
        parts = parts[:: math.ceil(total / limit)]
    was_training = model.training
    model.eval()
    loss, count = 0.0, 0
    for group in batches(parts, 8192):
        inputs, targets = collate(group, device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            hidden = model.hidden(inputs).flatten(0, 1)
        n = int((targets != IGNORE).sum())
        if bf16:
            hidden = hidden.bfloat16()
        loss += float(cross_entropy(hidden, model.lm_head.weight, targets.flatten())) * n
        count += n
    model.train(was_training)
    return perplexity_of(-loss / max(count, 1))


def make_optimizer(model: TransformerLM, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, only matrices decay; or Muon on the matrices of the blocks."""
    if config.optimizer == "muon":
        hidden = [p for p in model.blocks.parameters() if p.dim() == 2]
        others = [p for p in model.parameters() if all(p is not q for q in hidden)]
        bf16 = bf16_is_fast(hidden[0].device) if config.bf16 is None else config.bf16
        return Muon(hidden, others, lr=config.learning_rate, bf16=bf16)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def learning_rate(config: TrainConfig, done: float) -> float:
    """Linear warm-up, then a cosine down to ``final_rate``; ``done`` is the used part of the budget."""
    if done < config.warmup:
        return config.learning_rate * max(done / config.warmup, 1e-3)
    along = min((done - config.warmup) / max(1 - config.warmup, 1e-9), 1.0)
    floor = config.final_rate
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * along)))


def _encode(
    tokenizer: Tokenizer, documents: Sequence[Document], progress: ProgressCallback | None
) -> list[npt.NDArray[np.uint32]]:
    done, total = 0, sum(len(document.text) for document in documents)
    encoded = []
    for document in documents:
        encoded.append(tokenizer.encode(document.text))
        done += len(document.text)
        if progress is not None:
            progress("tokenise", done, total)
    return encoded


class _Run:
    """The state of one training run and its step."""

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: Tokenizer,
        train_docs: Sequence[Document],
        valid_docs: Sequence[Document],
        out_dir: Path,
        config: TrainConfig,
        progress: ProgressCallback | None = None,
    ) -> None:
        self.model, self.tokenizer, self.out_dir, self.config = model, tokenizer, out_dir, config
        self.device = next(model.parameters()).device
        self.bf16 = bf16_is_fast(self.device) if config.bf16 is None else config.bf16
        self.train_tokens = _encode(tokenizer, train_docs, progress)
        self.valid_tokens = _encode(tokenizer, valid_docs, None)
        if not any(len(t) for t in self.train_tokens) or not any(len(t) for t in self.valid_tokens):
            raise ValueError(
                "expected at least one token to train on and one to validate on, found none; check the input"
            )
        self.optimizer = make_optimizer(model, config)
        LOG.debug(
            "training %s on %s of %s, validation on %s; %s, %s",
            counted(sum(parameter.numel() for parameter in model.parameters()), "parameter"),
            counted(sum(map(len, self.train_tokens)), "token"),
            counted(len(train_docs), "document"),
            counted(sum(map(len, self.valid_tokens)), "token"),
            self.device,
            "bfloat16" if self.bf16 else "float32",
        )
        self.result = TrainResult()
        self.epoch, self.position = 0, 0  # position: batches done in this epoch
        self.last_valid = 0.0
        self.recent: list[float] = []
        self.on_valid: Callable[[dict[str, float]], None] | None = None
        self.started = time.monotonic()
        torch.manual_seed(config.seed)

    @property
    def seconds(self) -> float:
        """Time spent, earlier runs included."""
        return self.result.seconds + time.monotonic() - self.started

    @property
    def done(self) -> float:
        """The used part of the budget, 0 to 1.

        Of both budgets the steps rule, so that a run is the same on every machine that is fast enough; the clock does
        where it is ahead of them, once a tenth of it is used.
        """
        steps = self.result.steps / self.config.max_steps if self.config.max_steps is not None else 0.0
        clock = self.seconds / self.config.max_seconds if self.config.max_seconds is not None else 0.0
        return steps if self.config.max_steps is not None and clock < GRACE else max(steps, clock)

    def epoch_batches(self) -> list[list[Crop]]:
        """The batches of this epoch, a function of seed and epoch alone."""
        rng = np.random.default_rng([self.config.seed, self.epoch])
        context, bos = self.model.config.context, self.tokenizer.bos_id
        parts = [c for t in self.train_tokens for c in crops(t, bos, context, int(rng.integers(context)))]
        return batches(parts, self.config.batch_tokens, rng)

    def step(self, group: Sequence[Crop], done: float) -> None:
        """One update."""
        config, model = self.config, self.model
        inputs, targets = collate(group, self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            hidden = model.hidden(inputs).flatten(0, 1)  # (B·T, d)
        if self.bf16:
            hidden = hidden.bfloat16()
        weight, flat = model.lm_head.weight, targets.flatten()
        if config.sampled_head and done < 1 - config.full_softmax:
            loss = sampled_cross_entropy(hidden, weight, flat, config.sampled_head, config.sampled_rest)
        else:
            loss = cross_entropy(hidden, weight, flat)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate(config, done)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        self.optimizer.step()
        self.result.steps += 1
        self.result.tokens += int((targets != IGNORE).sum())
        self.recent.append(float(loss.detach()))

    def validate(self) -> None:
        """Note one point of the curve and keep the weights if they are the best so far."""
        perplexity = validate(self.model, self.valid_tokens, self.tokenizer.bos_id, self.config.valid_tokens, self.bf16)
        result = self.result
        train = math.exp(min(sum(self.recent) / max(len(self.recent), 1), 50.0))
        self.recent.clear()
        result.curve.append(
            {
                "step": result.steps,
                "seconds": round(self.seconds, 1),
                "tokens": result.tokens,
                "epoch": self.epoch,
                "learning_rate": learning_rate(self.config, self.done),
                "train_perplexity": round(train, 3),
                "valid_perplexity": round(perplexity, 3),
            }
        )
        if perplexity < result.best:
            result.best = perplexity
            save_model(self.out_dir, self.model, self.tokenizer)
        self.last_valid = self.seconds
        write_text(self.out_dir / "curve.json", json.dumps({"config": asdict(self.config), **asdict(result)}, indent=1))
        if self.on_valid is not None:
            self.on_valid(result.curve[-1])

    def save(self) -> None:
        """Write all that resuming needs."""
        state = asdict(self.result) | {"seconds": self.seconds, "epoch": self.epoch, "position": self.position}
        state |= {"recent": self.recent, "last_valid": self.last_valid}
        state |= {"sizes": asdict(self.model.config), "config": asdict(self.config)}
        if not (self.out_dir / TOKENIZER_FILE).is_file():  # which the first validation writes with the model
            write_text(self.out_dir / TOKENIZER_FILE, self.tokenizer.to_json())
        save_state(self.out_dir, self.model, self.optimizer, state)

    def restore(self) -> None:
        """Go back to the saved state."""
        state = load_state(self.out_dir, self.model, self.optimizer)
        self.epoch, self.position = state.pop("epoch"), state.pop("position")
        self.recent, self.last_valid = state.pop("recent"), state.pop("last_valid")
        for begun in ("sizes", "config"):  # of `read_begun`
            state.pop(begun, None)
        self.result = TrainResult(**(state | {"interrupted": False}))
        self.started = time.monotonic()


class _StopRequest:
    """Ctrl-C asks to stop after the step in progress, so that no half step is saved; the second one interrupts."""

    def __init__(self) -> None:
        self.asked = False
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._previous = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def restore(self) -> None:
        """Give Ctrl-C its former meaning back."""
        if self._main:
            signal.signal(signal.SIGINT, self._previous)


def train(
    model: TransformerLM,
    tokenizer: Tokenizer,
    train_docs: Sequence[Document],
    valid_docs: Sequence[Document],
    out_dir: str | Path,
    config: TrainConfig,
    resume: bool = True,
    progress: ProgressCallback | None = None,
    on_valid: Callable[[dict[str, float]], None] | None = None,
) -> TrainResult:
    """Train ``model`` and leave the best weights in ``out_dir``, ready for `load_model`.

    ``progress(stage, done, total)`` counts characters while the text is tokenised, then steps, or seconds where only
    ``max_seconds`` is set. With ``resume`` a state
    found in ``out_dir`` is continued; its budget counts the time or steps spent before. Ctrl-C ends the step, saves
    the state and returns with ``interrupted`` set; where no validation was reached yet, the weights of that step are
    left to use, and ``best`` stays infinite. ``on_valid(point)`` gets each new point of the curve. Afterwards ``model``
    holds the last weights, not the best ones.
    """
    out_dir = Path(out_dir)
    make_with_parents(out_dir)
    run = _Run(model, tokenizer, train_docs, valid_docs, out_dir, config, progress)
    if resume and (out_dir / STATE_FILE).is_file():
        run.restore()
    model.train()
    last_save = time.monotonic()
    stop = _StopRequest()
    try:
        run.on_valid = on_valid
        while run.done < 1.0 and not stop.asked:
            for group in run.epoch_batches()[run.position :]:
                if (done := run.done) >= 1.0 or stop.asked:
                    break
                run.step(group, done)
                run.position += 1
                if progress is not None:
                    by_steps = config.max_steps is not None
                    total = config.max_steps if config.max_steps is not None else int(config.max_seconds or 0)
                    progress("train", min(run.result.steps if by_steps else int(run.seconds), total), total)
                if config.valid_steps is not None:
                    due = run.result.steps % config.valid_steps == 0
                else:
                    due = run.seconds - run.last_valid >= config.valid_seconds
                if due:
                    run.validate()
                if due or time.monotonic() - last_save >= config.save_seconds:
                    run.save()
                    last_save = time.monotonic()
            else:
                run.epoch, run.position = run.epoch + 1, 0
        if not stop.asked and (not run.result.curve or run.result.curve[-1]["step"] != run.result.steps):
            run.validate()
    except KeyboardInterrupt:  # a second Ctrl-C, or one in another thread or in `progress`
        stop.asked = True
    finally:
        stop.restore()
    run.result.interrupted = stop.asked
    run.save()
    if stop.asked and run.result.steps and math.isinf(run.result.best):
        save_model(run.out_dir, run.model, run.tokenizer)  # better than none; the first validation replaces them
    run.result.seconds = run.seconds
    return run.result
