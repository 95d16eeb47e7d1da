"""Log: what the package has to say beside its results, through the logger "knnlm"; commands show it as their notes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from knnlm.system.counted import counted

LOG = logging.getLogger("knnlm")

FAILED_SHOWN = 8
"""Documents that failed and are named; the rest is counted."""


def log_failed(failed: Sequence[tuple[str, str]]) -> None:
    """Says which documents were left out because the model gave NaN for them."""
    for _, reason in failed[:FAILED_SHOWN]:
        LOG.warning(f"left out: {reason}")
    if len(failed) > FAILED_SHOWN:
        LOG.warning(f"left out: {counted(len(failed) - FAILED_SHOWN, 'document')} more, for the like")
