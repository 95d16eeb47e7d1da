"""Head: log-probabilities from final logits, a bounded number of which exists at a time.

The logits of one window of a model with a large vocabulary are gigabytes, its hidden states are not. So the body runs
once, and the rest of the model, from the output embedding to the last cap, scale or bias, over a few positions at a
time. Where nothing follows the output embedding it is called on these positions. Where something does, the model's own
forward is run with its body replaced by the part of the body's output, so that nobody's formula is written down here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from knnlm.model.modules import output_embedding

LOGITS = 1 << 27
"""Logits that are computed at once: half a gigabyte in float32."""

LOGIT_ROWS = 256
"""Positions whose logits are held in float32 at a time."""


class HeadReachedError(Exception):
    """Leaves a forward pass where the output embedding would begin."""


class BodyOutput(NamedTuple):
    """What the body left: input of the output embedding (B, T, d), and the body's whole output, for a replay."""

    hidden: Tensor
    output: Any


class ChunkedHead:
    """Final logits of a model, some positions at a time, after one pass through its body.

    Made by `chunked_head`, which has tried it out. Not for several threads at once: hooks and the replaced body are the
    model's.
    """

    def __init__(self, model: nn.Module, head: nn.Module, body: nn.Module | None) -> None:
        """body: None = nothing follows the output embedding."""
        self.model, self.head, self.body = model, head, body

    def read(self, input_ids: Tensor, **options: Any) -> BodyOutput:
        """Run the body over ids (B, T), with all hooks of its modules; the output embedding is not run."""
        kept: dict[str, Any] = {}

        def reached(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept["hidden"] = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
            raise HeadReachedError

        handles: list[Any] = [self.head.register_forward_pre_hook(reached, with_kwargs=True)]
        if self.body is not None:
            handles.append(self.body.register_forward_hook(lambda _, __, output: kept.update(output=output)))
        try:
            self.model(input_ids, **options)
        except HeadReachedError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return BodyOutput(kept["hidden"], kept.get("output"))

    def logits(self, read: BodyOutput, positions: Tensor, size: int) -> Iterator[Tensor]:
        """Final logits (n, v) of flat positions (N,) in the batch of `read`, at most `size` positions at a time."""
        for chosen in torch.split(positions, size):
            if self.body is None:
                yield self.head(_picked(read.hidden, chosen))[0]
            else:
                yield self._replayed(read.output, chosen)

    def _replayed(self, output: Any, chosen: Tensor) -> Tensor:
        part = _with_first(output, chosen)
        body: Any = self.body
        own = body.__dict__.get("forward")  # that of an instance, as other libraries set it
        body.forward = lambda *_, **__: part
        try:
            logits: Tensor = self.model(torch.zeros((1, len(chosen)), dtype=torch.int64, device=chosen.device)).logits
        finally:
            if own is None:
                del body.forward
            else:
                body.forward = own
        return logits[0]


@torch.inference_mode()
def chunked_head(model: nn.Module) -> ChunkedHead | None:
    """The chunked head of a model, tried on a few tokens; None where its logits would not be those of the model."""
    head = output_embedding(model)
    weight = getattr(head, "weight", None)
    if head is None or not isinstance(weight, Tensor):
        return None
    device, v = weight.device, weight.shape[0]
    ids = torch.arange(5, device=device)[None] % v  # (1, 5)
    body = getattr(model, "base_model", None)
    if not isinstance(body, nn.Module) or body is model:
        body = max((child for child in model.children() if child is not head), key=_parameters, default=None)
    positions = torch.arange(5, device=device)
    try:
        expected = model(ids).logits[0].float()  # (5, v)
    except Exception:
        return None  # it fails where it is used, with its own message
    for candidate in (None, body):
        found = ChunkedHead(model, head, candidate)
        try:
            read = found.read(ids)
            (logits,) = found.logits(read, positions, len(positions))
            (some,) = found.logits(read, positions[3:], len(positions))
        except Exception:  # a model of a kind that nobody thought of: its logits are taken as it gives them
            continue
        # All positions at once are the same sums: equal to the last bit, or something follows that was left out.
        # Some of them are equal up to rounding, or what follows looks at other positions.
        slack = 64 * torch.finfo(logits.dtype).eps * max(1.0, float(expected.abs().max()))
        if torch.equal(logits.float(), expected) and float((some.float() - expected[3:]).abs().max()) <= slack:
            return found
    return None


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _picked(hidden: Tensor, chosen: Tensor) -> Tensor:
    """(B, T, d) or (B T, d) at flat positions: (1, n, d)."""
    return hidden.reshape(-1, hidden.shape[-1])[chosen][None]


def _with_first(output: Any, chosen: Tensor) -> Any:
    """A body's output, whose first tensor (B, T, d) holds the chosen positions only, (1, n, d)."""
    if isinstance(output, Tensor):
        return _picked(output, chosen)
    if isinstance(output, tuple):
        return (_picked(output[0], chosen), *output[1:])
    part = copy.copy(output)
    name = next(iter(part.keys()))
    part[name] = _picked(part[name], chosen)
    return part


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
