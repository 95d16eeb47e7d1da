"""What a model computes: log-probabilities of fixed tokens, which tell what the fingerprint of weights cannot.

The same weights give other keys under another configuration (attention heads, rotary base, buffers, code of a model's
own), and nothing complains. The numbers are compared, not their hash: another device, release or attention kernel moves
them by less than `tolerance`. A difference is judged by what it does, its cause is looked for in the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from knnlm.model.keys import iterate
from knnlm.model.loaded import Loaded
from knnlm.model.modules import config_of, token_limit, unwrapped
from knnlm.model.suitable import text_config
from knnlm.text.inputs import TokenDocument

LENGTH = 64
"""Tokens that are scored, and then again: what a model says of the second run depends on their places, too."""

_TOLERANCE = {"float32": 0.004, "float64": 0.004}
_TOLERANCE_OF_16_BITS = 0.05
"""A decoder of 135 million weights moves by .000002 in float32 and .016 in bfloat16 under another attention kernel; by
.007, .012, .09 and .4 with 10 times the epsilon of its norms, 1.1 and 2 times the rotary base, another activation."""

BEYOND = ("window", "rope", "chunk")
"""Parts of names of settings that may matter beyond 2 · `LENGTH` tokens alone."""

_NOT_COMPUTED = {
    "architectures",
    "attn_implementation",
    "dtype",
    "model_type",
    "name_or_path",
    "problem_type",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_cache",
}
_MOST_SETTINGS = 200


def probe_of(loaded: Loaded) -> list[float] | None:
    """log p of 2 · `LENGTH` tokens, nats, in the model's own arithmetic; None where it cannot be asked.

    That is where one is not finite, or the model refuses these tokens: it may read less at a time than anybody knows.
    """
    limit = token_limit(unwrapped(loaded.model)) or int(loaded.tokenizer.vocab_size)
    tokens = (np.arange(LENGTH) * 7919 + 1) % limit  # a prime steps through all of a vocabulary
    document = TokenDocument("probe", np.tile(tokens, 2).astype(np.uint32))
    try:
        chunks = list(iterate(loaded, [document], captures=(), tolerant=True))
    except Exception:  # a model's own; what its text makes of it, the work itself will tell
        return None
    log_p = [float(x) for chunk in chunks for x in chunk.log_p]
    return [float(f"{x:.6g}") for x in log_p] if log_p and all(map(math.isfinite, log_p)) else None


def distance(stored: Sequence[float], found: Sequence[float]) -> float:
    """Mean absolute difference of two probes by the standard deviation of the first; infinite for other lengths."""
    if len(stored) == 0 or len(stored) != len(found):
        return math.inf
    return float(np.abs(np.subtract(stored, found)).mean() / max(float(np.std(stored)), 1e-3))


def tolerance(dtype: str | None) -> float:
    """The largest distance that devices, kernels and releases make, for weights of a type."""
    return _TOLERANCE.get(dtype or "", _TOLERANCE_OF_16_BITS)


def settings_of_model(model: Any) -> dict[str, Any]:
    """What a model's configuration says of its computation: names (with dots for parts of parts) and single values."""
    config = config_of(unwrapped(model))
    config = text_config(config)
    to_dict = getattr(config, "to_dict", None)
    whole = to_dict() if callable(to_dict) else getattr(config, "__dict__", {})
    flat = _flat(whole) if isinstance(whole, Mapping) else {}
    return dict(sorted(flat.items())[:_MOST_SETTINGS])


def _flat(settings: Mapping[Any, Any], front: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if not isinstance(name, str) or name.startswith("_") or name in _NOT_COMPUTED or name.endswith("_token_id"):
            continue
        if isinstance(value, Mapping) and not front and len(value) <= 16:
            flat.update(_flat(value, f"{name}."))
        elif (
            value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
        ):
            flat[front + name] = value
    return flat


def what_differs(stored: Mapping[str, Any] | None, model: Any, parts: Sequence[str] = ("",)) -> str:
    """The settings of which a store remembers other values, as "num_attention_heads 2 (now 4)"; "" for none.

    parts: only those with one of these in their name.
    """
    found = settings_of_model(model)
    named = {name: value for name, value in (stored or {}).items() if any(part in name for part in parts)}
    both = [(name, value, found[name]) for name, value in named.items() if name in found]
    return ", ".join(f"{name} {was!r} (now {now!r})" for name, was, now in both if was != now)
