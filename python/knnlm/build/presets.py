"""Presets: named choices of an index, and of how a store with it is searched until it is tuned."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {"paper": {"nlist": 4096, "code": (64, 8)}, "small": {"code": "small"}}
"""Arguments of the index by name; "paper" is that of Khandelwal et al. 2020: IVF4096, PQ 64 × 8 bit."""

_SETTINGS = {"paper": {"lambda_": 0.25, "temperature": 1.0, "k": 1024, "nprobe": 32, "rerank": "none"}}
"""Settings by name; the paper's λ is for WikiText-103, `tune` finds yours."""


def preset_of(
    name: str | None, nlist: int | None = None, code: Any = None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The index of a preset, what is given above it, and the settings that the store is to remember, if it has any.

    Raises ValueError for another name.
    """
    if name is not None and name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, found {name!r}")
    index = {"nlist": None, "code": None} | PRESETS.get(name or "", {})
    settings = _SETTINGS.get(name or "")
    return (
        {"nlist": index["nlist"] if nlist is None else nlist, "code": index["code"] if code is None else code},
        None if settings is None else {**settings, "preset": name},
    )
