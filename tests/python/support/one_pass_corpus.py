"""Text, model and build that the tests of the one pass share."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from tiny_lm import LETTERS, tiny

from knnlm.build.one_pass import build_in_one_pass
from knnlm.model.key_spec import KeySpec
from knnlm.text.inputs import TokenDocument

DIM = 32


def documents():
    rng = np.random.default_rng(0)
    return [
        TokenDocument(f"doc {i}", rng.integers(1, len(LETTERS), 40 + i).astype(np.uint32), {"i": i}) for i in range(40)
    ]


def hashes(path):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(path).iterdir() if p.name != "lock"}


def hashes_of_all(path):
    files = (p for p in Path(path).rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.name != "lock"}


def build(path, loaded, documents=documents, **options):
    keys = KeySpec(window=24, key_dtype="float32").resolved(loaded.context)
    chosen = {"keys": keys, "dim": DIM, "attributes": {"a": 1}, "part_tokens": 300, "nlist": 8, **options}
    return build_in_one_pass(path, loaded, documents, **chosen)


def load_tiny():
    """The model, for worker processes."""
    torch.set_num_threads(1)
    return tiny(d=DIM)


class KilledError(Exception):
    """Stands for the end of the process."""
