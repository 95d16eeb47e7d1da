"""pieces.py: long texts have the ids of the whole text whatever the tokenizer is made of, in bounded memory."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, trainers
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers as norm
from tokenizers import pre_tokenizers as pre

from knnlm.text.pieces import LONGEST_PIECE, pieces
from knnlm.text.tokenizer import BackendTokenizer, Tokenizer

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def plain_bytes():
    return pre.ByteLevel(add_prefix_space=False, use_regex=False)


KINDS = {
    "gpt2": (None, pre.ByteLevel(add_prefix_space=False)),
    "gpt2, prefix": (None, pre.ByteLevel(add_prefix_space=True)),
    "gpt4": (None, pre.Sequence([pre.Split(Regex(GPT4), "isolated"), plain_bytes()])),
    "gpt4, NFC": (norm.NFC(), pre.Sequence([pre.Split(Regex(GPT4), "isolated"), plain_bytes()])),
    "lines": (None, pre.Sequence([pre.Split(Regex(r"\n+"), "isolated"), plain_bytes()])),
    "digits, bytes": (None, pre.Sequence([pre.Digits(individual_digits=True), plain_bytes()])),
    "starcoder": (None, pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])),
    "space before": (None, pre.Sequence([pre.Split(" ", "merged_with_previous"), plain_bytes()])),
    "space after": (None, pre.Sequence([pre.Split(" ", "merged_with_next"), plain_bytes()])),
    "space apart": (None, pre.Sequence([pre.Split(" ", "isolated"), plain_bytes()])),
    "space out": (None, pre.Sequence([pre.Split(Regex(r"\s+"), "removed"), plain_bytes()])),
    "space runs": (None, pre.Sequence([pre.Split(Regex(r"\s"), "contiguous"), plain_bytes()])),
    "bloom": (None, pre.Sequence([pre.Split(Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+"), "isolated"), plain_bytes()])),
    "deepseek": (
        None,
        pre.Sequence(
            [
                pre.Split(Regex(r"\p{N}{1,3}"), "isolated"),
                pre.Split(Regex("[一-龥\u3040-ゟ゠-ヿ]+"), "isolated"),
                pre.Split(Regex(DEEPSEEK), "isolated"),
                plain_bytes(),
            ]
        ),
    ),
    "metaspace": (None, pre.Metaspace()),
    "metaspace, first": (None, pre.Metaspace(prepend_scheme="first")),
    "metaspace, whole": (None, pre.Metaspace(split=False)),
    "bert": (norm.BertNormalizer(), pre.BertPreTokenizer()),
    "words": (norm.NFKC(), pre.WhitespaceSplit()),
    "accents": (norm.Sequence([norm.NFKD(), norm.StripAccents(), norm.Lowercase()]), pre.ByteLevel(False)),
    "llama2": (norm.Sequence([norm.Prepend("▁"), norm.Replace(" ", "▁")]), None),
    "gemma": (norm.Replace(" ", "▁"), pre.Split(" ", "merged_with_previous")),
    "stripped": (norm.Strip(), pre.Metaspace()),
    "fewer spaces": (norm.Replace(Regex(" {2,}"), " "), pre.Metaspace()),
    "scripts": (None, pre.Sequence([pre.UnicodeScripts(), plain_bytes()])),
    "punctuation": (None, pre.Sequence([pre.Punctuation(), plain_bytes()])),
    "spaces as marks": (None, pre.CharDelimiterSplit(" ")),
    "nothing": (None, None),
}
UNCUT = {"digits, bytes", "scripts", "nothing"}
"""No place of the kinds that are tried is safe there: they get a text whole."""


def mixed_text(seed: int, characters: int) -> str:
    """Code, prose on one line, scripts and marks of all kinds, control characters."""
    rng = random.Random(seed)
    source = Path(os.__file__).read_text(encoding="utf-8")
    marks = ["don't", "12345", "3.14", " ", "  ", "\n", "\n\n", "\r\n", "\t", "\x1c", ".\x1c", "\u00a0", "\u2028", "_"]
    marks += ["…", "。\n", "漢字", "かな。", "дом", "Σας", "e\u0301", "ไทย", "हिन्दी", "🙂", "\u200d", "(", ").", "!?\n"]
    marks += ["'s", "▁", "x²"]
    parts: list[str] = []
    length = 0
    while length < characters:
        at = rng.randrange(len(source) - 300)
        kind = rng.randrange(4)
        if kind == 0:
            part = source[at : at + 200]
        elif kind == 1:
            part = " ".join(source[at : at + 300].split())
        elif kind == 2:
            part = "".join(rng.choices(marks, k=20))
        else:
            part = "".join(
                chr(rng.choice((rng.randrange(1, 0x2000), rng.randrange(0x3000, 0xD800)))) for _ in range(20)
            )
        parts.append(part)
        length += len(part)
    return "".join(parts)[:characters]


def backend_of(name: str) -> Backend:
    """A tokenizer of a kind whose merges reach over everything that it does not cut; Llama's never over a space."""
    normalizer, pre_tokenizer = KINDS[name]
    trained = Backend(models.BPE(unk_token="<unk>"))
    spaced = name in ("llama2", "gemma", "metaspace, whole")
    if spaced:
        trained.pre_tokenizer = pre.Metaspace()
    else:
        trained.pre_tokenizer = pre_tokenizer or pre.Split("\n", "isolated")
        if normalizer is not None:
            trained.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=["<|endoftext|>", "<unk>"], show_progress=False, limit_alphabet=300,
        max_token_length=16,
    )  # fmt: skip
    trained.train_from_iterator([mixed_text(1, 30_000)], trainer)
    made = Backend(models.BPE())
    if normalizer is not None:
        made.normalizer = normalizer
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    steps = json.loads(made.to_str())
    data = {**json.loads(trained.to_str()), **{part: steps[part] for part in ("normalizer", "pre_tokenizer")}}
    return Backend.from_str(json.dumps(data))


@pytest.mark.parametrize("name", KINDS)
def test_pieces_have_the_ids_of_the_whole_text(name, monkeypatch):
    monkeypatch.setattr("knnlm.text.tokenizer.PIECE", 100)
    backend = backend_of(name)
    tokenizer = BackendTokenizer(backend)
    text = mixed_text(2, 20_000)
    whole = backend.encode(text, add_special_tokens=False)
    assert np.array_equal(tokenizer.encode(text), whole.ids)
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert np.array_equal(ids, whole.ids)
    if name != "stripped":  # its offsets leave out what each piece loses
        assert np.array_equal(offsets, whole.offsets)
    parts = list(tokenizer._pieces(text))
    assert "".join(parts) == text
    assert (len(parts) == 1) == (name in UNCUT)


def test_a_model_that_merges_over_spaces_gets_its_text_whole(monkeypatch):
    monkeypatch.setattr("knnlm.text.tokenizer.PIECE", 100)
    backend = Backend(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre.Split("\n", "removed")
    backend.normalizer = norm.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=["</s>", "<unk>"], show_progress=False)
    backend.train_from_iterator(["the cat sat on the mat\n" * 20], trainer)
    assert any("▁" in token.lstrip("▁") for token in backend.get_vocab())
    backend = Backend.from_str(json.dumps({**json.loads(backend.to_str()), "pre_tokenizer": None}))
    text = "on the mat the cat sat " * 50
    assert np.array_equal(BackendTokenizer(backend).encode(text), backend.encode(text).ids)


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("of the", normalized=False),
        AddedToken("cat", lstrip=True, rstrip=True),
        AddedToken("mat\n"),
        AddedToken("the ", single_word=True),
        AddedToken("  "),
    ],
)
def test_added_tokens_that_reach_over_a_space_are_whole(token, monkeypatch):
    monkeypatch.setattr("knnlm.text.tokenizer.PIECE", 40)
    backend = backend_of("gpt2")
    backend.add_tokens([token])
    text = "the cat of the mat\nof the  cat cat the the mat\n\nof the " * 30
    assert np.array_equal(BackendTokenizer(backend).encode(text), backend.encode(text).ids)


class Watched:
    """A tokenizer that notes how much it is given at once."""

    def __init__(self, backend):
        self._backend, self.given = backend, []

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def encode_batch_fast(self, batch, **options):
        self.given.append([len(text.encode()) for text in batch])
        return self._backend.encode_batch_fast(batch, **options)


@pytest.mark.parametrize("text", ["ab" * 700_000, "word " * 300_000, "漢" * 1_100_000])
def test_what_is_encoded_at_once_is_bounded_whatever_the_text(text, monkeypatch):
    monkeypatch.setattr("knnlm.text.tokenizer.AT_ONCE", 1 << 18)
    tokenizer = Tokenizer.train_bpe(["ab word 漢"], 260)
    tokenizer._backend = watched = Watched(tokenizer._backend)
    assert len(tokenizer.encode(text)) > 1000
    assert sum(map(sum, watched.given)) == len(text.encode())
    longest = LONGEST_PIECE * len("漢".encode())
    assert all(sum(batch) <= (1 << 18) or len(batch) == 1 for batch in watched.given)
    assert max(map(max, watched.given)) <= longest


def test_a_text_that_cannot_be_cut_is_bounded_as_well(monkeypatch):
    monkeypatch.setattr("knnlm.text.tokenizer.PIECE", 100)
    monkeypatch.setattr("knnlm.text.tokenizer.LONGEST_WHOLE", 3000)
    tokenizer = BackendTokenizer(backend_of("digits, bytes"))
    text = mixed_text(3, 10_000)
    parts = list(tokenizer._pieces(text))
    assert "".join(parts) == text
    assert 1000 < max(map(len, parts)) <= 3000


@given(st.text(max_size=300), st.integers(1, 20), st.integers(20, 60))
@settings(deadline=None, max_examples=50)
def test_pieces_joined_are_the_text(text, length, longest):
    for cut in ({}, {"cut": None}):
        found = list(pieces(text, length=length, longest=longest, **cut))
        assert "".join(found) == text
        assert all(0 < len(piece) <= longest for piece in found)


def test_a_piece_without_a_place_ends_before_white_space():
    text = "1 2 3 4 5 6 7 8 9"
    assert list(pieces(text, None, 4, 8)) == ["1 2 3 4", " 5 6 7 8", " 9"]
    assert list(pieces("abcdefghij", None, 4, 8)) == ["abcdefgh", "ij"]
