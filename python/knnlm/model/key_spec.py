"""Key spec: how keys are made, and how a store says that its own were. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from knnlm.store.attributes import check_attributes
from knnlm.store.protocols import attributes_of

DEFAULT_WINDOW = 2048
"""Longest window unless one is asked for, in tokens; models read up to millions, at a price that grows with it."""


DEFAULT_REPRESENTATION = "ffn-input"


REPRESENTATIONS = (
    DEFAULT_REPRESENTATION,
    "ffn-input-pre-norm",
    "attention-input",
    "attention-input-pre-norm",
    "block-output",
    "normed-output",
)
"""Key representations, the rows of Table 5 of the paper; `module:NAME` is the input of any module by its name."""


AUTOCAST = (None, "bfloat16", "float16")
"""Arithmetic of the model while it makes keys: its own, or the named one under torch's autocast."""


@dataclass(frozen=True)
class KeySpec:
    """How keys are made: representation, layer, window and least context (tokens), type of a stored key, arithmetic.

    autocast: one of `AUTOCAST`; keys of another arithmetic are other keys, so that a store's queries follow the store.
    """

    representation: str = DEFAULT_REPRESENTATION
    layer: int = -1
    window: int | None = None
    context: int | None = None
    key_dtype: str = "float16"
    autocast: str | None = None

    def __post_init__(self) -> None:
        """Refuse an arithmetic that nobody knows."""
        if self.autocast not in AUTOCAST:
            raise ValueError(f"autocast: expected one of {AUTOCAST}, found {self.autocast!r}")

    def resolved(self, model_context: int) -> KeySpec:
        """The same with window (default: the model's context, up to `DEFAULT_WINDOW`) and context (default: half the
        window) filled in.
        """
        window = min(model_context, DEFAULT_WINDOW) if self.window is None else self.window
        return replace(self, window=window, context=window // 2 if self.context is None else self.context)


def key_spec(store: Any) -> KeySpec | None:
    """How a store's keys were made, None where its attributes do not say; ValueError where knnlm did not write them."""
    check_attributes(store)
    attributes = attributes_of(store)
    if "representation" not in attributes:
        return None
    names = ("representation", "layer", "window", "context", "key_dtype", "autocast")
    return KeySpec(**{name: attributes[name] for name in names if name in attributes})


class IdentityError(ValueError):
    """The model, tokenizer or representation is not the one that wrote the store."""
