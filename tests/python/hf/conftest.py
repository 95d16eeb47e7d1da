"""A tokenizer, a model and a store that it has written."""

from pathlib import Path

import pytest
import torch
from hf_attach import model_of
from hf_folders import TEXT, fast, tokenizer

from knnlm import KNNLM


@pytest.fixture(scope="module")
def words():
    return fast(tokenizer("bytes", size=300))


@pytest.fixture(scope="module")
def model(words):
    return model_of(words)


@pytest.fixture(scope="module")
def store(words, model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("hf") / "store"
    KNNLM.build(model, [("a", TEXT), ("b", "naïve Café 中文 the cat")], path, tokenizer=words, keep_keys="float32")
    return path


@pytest.fixture
def ids(words):
    rows = [words(text)["input_ids"][:6] for text in ("the cat sat on the mat and", "and the dog sat on the cat")]
    return torch.tensor(rows)
