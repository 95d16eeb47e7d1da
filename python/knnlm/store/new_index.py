"""New index: how a store that has outgrown its index gets another one, by what it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def needs_model(info: Mapping[str, Any]) -> bool:
    """Whether a new index takes running the model: raw keys of some entries are not kept. info: of the store."""
    return bool(info["entries_with_keys"] < info["n"])


def advice(info: Mapping[str, Any]) -> str:
    """How a store gets a new index, by what it has: raw keys, a model, or neither; for people."""
    command = f"knnlm build {info['path']} --retrain learns a new index"
    if not needs_model(info):
        return f"{command}, from the raw keys"
    if "model" in (info.get("attributes") or {}):
        return f"{command}, by running the model over the stored documents"
    return "a new index needs raw keys, which this store does not keep: make it again with keep_keys"
