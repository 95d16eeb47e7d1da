"""Threads: torch limited to as many as were asked for, while something runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Operations of torch run on `threads` threads while it lasts, then on as many as before; None changes nothing.

    The number is the process's, not the model's: what other Python threads run meanwhile has it, too.
    """
    if threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
