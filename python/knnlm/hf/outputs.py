"""Outputs: the logits of a model's answer, whatever it is wrapped in, and which of its positions they are of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def logits_of(output: Any, has_loss: bool) -> Tensor:
    """The logits (B, T, v) of an output: its attribute, or with `return_dict=False` the first element that is no loss.

    Raises TypeError for an output without.
    """
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)):
        logits = output[int(has_loss)] if len(output) > int(has_loss) else None
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        raise TypeError(
            f"expected a model whose output has logits (B, T, v), found {type(output).__name__}: attach to the causal "
            "language model itself"
        )
    return logits


def with_logits(output: Any, logits: Tensor, loss: Tensor | None) -> Any:
    """The same output with other logits, and another loss where there is one."""
    if isinstance(output, (tuple, list)):
        rest = list(output)
        rest[int(loss is not None)] = logits
        if loss is not None:
            rest[0] = loss
        return tuple(rest)
    output.logits = logits  # sets the entry, too
    if loss is not None:
        output.loss = loss
    return output


def loss_of(model: Any, logits: Tensor, labels: Tensor, options: Mapping[str, Any]) -> Tensor:
    """The loss of log-probabilities (B, T, v) by the model's own function, which shifts, weighs and counts as it does.

    options: those of the model's forward, of which the function takes `num_items_in_batch` and the like.
    """
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    known = {name: options[name] for name in ("num_items_in_batch", "ignore_index", "shift_labels") if name in options}
    if getattr(model.config, "is_encoder_decoder", False):  # its labels are not shifted
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.reshape(-1).to(logits.device))
    function = getattr(model, "loss_function", None)
    if function is not None:
        found: Tensor = function(logits=logits, labels=labels, vocab_size=config.vocab_size, **known)
        return found
    shifted = labels[:, 1:].reshape(-1).to(logits.device)
    return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), shifted)


def kept(x: Tensor, count: int, options: Mapping[str, Any]) -> Tensor:
    """Of x (B, T, …) the positions whose logits a model has computed, `count` of them: those of `logits_to_keep`."""
    which = options.get("logits_to_keep", options.get("num_logits_to_keep"))
    if isinstance(which, Tensor) and which.dim() == 1 and len(which) == count:
        return x[:, which.to(x.device)]
    return x[:, x.shape[1] - count :]


def read(mask: Any, length: int) -> Tensor | None:
    """Which of the last `length` positions are text, (B, length) bool, by an attention mask (B, T); None: all."""
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] < length:
        return None
    return mask[:, mask.shape[1] - length :].bool()
