"""A text that is the path of a file: it is taken as a text, and a warning says how to score the file."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from tiny_lm import texts, tiny

from knnlm import KNNLM
from knnlm.build.dump import dump
from knnlm.reference import BruteForceStore
from knnlm.system.name_of_file import warn_of_name


@pytest.fixture(scope="module")
def lm():
    loaded = tiny()
    store = BruteForceStore(16)
    dump(loaded, texts(), store)
    return KNNLM(loaded, store)


@pytest.mark.parametrize("use", ["perplexity", "log_probs", "explain", "generate"])
def test_the_path_of_a_file_is_taken_as_text_with_a_warning(lm, use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("heldout.txt").write_text("abcd")
    says = r"found the path of a file, 'heldout\.txt', which is taken as the text"
    with pytest.warns(UserWarning, match=says) as said:
        getattr(lm, use)("heldout.txt")
    (one,) = said
    assert one.filename == __file__, "the line of the caller"
    advice = "read the file" if use == "generate" else r"call lm.evaluate('heldout.txt') (in commands knnlm eval STORE"
    assert advice in str(one.message)
    assert lm.evaluate("heldout.txt").tokens == 4


def test_other_texts_pass_in_silence(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("heldout.txt").write_text("abcd")
    Path("folder").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in ("no file.", "heldout.txt\n", "folder", "", "a" * 5000, "a\0b", "a\ud800", [1, 2], None):
            warn_of_name(text)
        lm.perplexity("abcd")
