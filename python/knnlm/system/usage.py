"""Usage: what was asked for does not fit what is there."""

from __future__ import annotations


class UsageError(ValueError):
    """Arguments that do not fit each other, or what is on disk: found before any work, nothing was changed.

    Commands end with exit code 2 for it.
    """
