"""Loaded: a model with its tokenizer, whoever loaded it. No torch."""

from __future__ import annotations

from typing import Any, Protocol


class Loaded(Protocol):
    """A model with its tokenizer, as `load_model` gives it."""

    @property
    def model(self) -> Any:
        """The module."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the weights."""
        ...

    @property
    def context(self) -> int:
        """Longest input, tokens."""
        ...

    @property
    def name(self) -> str:
        """What to call it."""
        ...
