"""Windows: how a long document is cut so that each token is scored once, with enough context."""

from __future__ import annotations

from typing import NamedTuple


class Window(NamedTuple):
    """Input positions start:stop are fed together; those from score_from on are scored and give keys."""

    start: int
    stop: int
    score_from: int


def check_window(window: int, context: int, model_context: int | None = None) -> None:
    """Raise ValueError unless 0 <= context < window <= model_context."""
    if window < 1 or not 0 <= context < window:
        raise ValueError(
            f"window and context: expected 0 <= context < window, found context {context} and window {window}; "
            "window - context tokens are scored per window"
        )
    if model_context is not None and window > model_context:
        raise ValueError(
            f"window: the model reads at most {model_context} tokens, found {window}; use a smaller window"
        )


def plan(length: int, window: int, context: int) -> list[Window]:
    """Windows over a document's `length` input positions [bos, w_0, ..., w_{L-2}]; position t predicts w_t.

    Every position is scored exactly once, in order, and sees at least `context` earlier tokens of its document, or all
    there are; no window is longer than `window`. A window's start does not depend on `length`, so what a token's key
    sees does not change when the document grows. Raises ValueError if not 0 <= context < window.
    """
    check_window(window, context)
    windows = []
    start, scored = 0, 0
    while scored < length:
        stop = min(length, start + window)
        windows.append(Window(start, stop, scored))
        scored = stop
        start = scored - context
    return windows
