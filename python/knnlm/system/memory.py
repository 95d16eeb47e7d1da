"""How much memory there is, so that what cannot fit is refused and does not end the process."""

from __future__ import annotations

import os
from pathlib import Path

from knnlm.system.counted import counted

LARGE = 1 << 26
"""Bytes that are taken without a look at how much memory there is."""


def refuse_answer(queries: int, k: int, n: int, slot: int) -> None:
    """Raise ValueError for an answer of `slot` bytes a neighbor that does not fit into memory. n: entries."""
    wanted = queries * k * slot
    if wanted <= LARGE or (free := available()) is None or wanted <= free:
        return
    do = f"ask for k = {max(n, 1):,}, all that the store has" if k > n else "ask for a smaller k"
    raise ValueError(
        f"k: expected an answer that memory can hold, found k = {k:,} for {counted(queries, 'query')}, which takes "
        f"{wanted / 1e9:,.1f} GB where {free / 1e9:,.1f} GB are free; {do}, or fewer queries at once"
    )


def available() -> int | None:
    """Bytes that this process can still take, by the machine and by its control group; None where nobody says.

    Linux gives out more memory than it has, and ends the process that uses it.
    """
    found = [free for free in (_of_machine(), _of_group()) if free is not None]
    return min(found) if found else None


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _of_group() -> int | None:
    """Of the control groups (version 2) that this process is in, the one with the least; page cache counts as free."""
    try:
        name = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    free: list[int] = []
    group = Path("/sys/fs/cgroup") / name.strip("/")
    for folder in (group, *group.parents):
        try:
            most = (folder / "memory.max").read_text().strip()
            if most != "max":
                cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / "memory.current").read_text()) - int(cached.get("inactive_file", 0))
                free.append(max(0, int(most) - used))
        except (OSError, ValueError):
            continue
    return min(free) if free else None
