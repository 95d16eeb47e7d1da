"""tokens.py: words, byte-level BPE and foreign tokenizers, with the laws that hold for all of them."""

import json
import random

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm.text.pieces import pieces
from knnlm.text.tokenizer import BackendTokenizer, Tokenizer, count_words

TEXT = (
    " = Title = \n \n The cat sat on the mat , the cat <unk> . \n 3 @.@ 5 cats don't naïvely \t run — 日本語\n\n\nend"
)


@pytest.fixture(scope="module")
def bpe():
    return Tokenizer.train_bpe([TEXT] * 3, 330)


@pytest.fixture(scope="module")
def words():
    return Tokenizer.train_words([TEXT])


def test_words_follow_the_wikitext_protocol(words):
    ids = words.encode(" the cat \n \n unseen mat\n")
    assert [words.token_text(i) for i in ids] == ["the", "cat", "\\n", "\\n", "<unk>", "mat", "\\n"]
    assert ids.dtype == np.uint32
    assert words.bos_id == words.encode("\n")[0]
    assert len(ids) == count_words(" the cat \n \n unseen mat\n") == 7


def test_words_are_in_order_of_frequency_then_of_spelling():
    tokenizer = Tokenizer.train_words(["b b b a a c\nd\n"])
    assert [tokenizer.token_text(i) for i in range(tokenizer.vocab_size)] == ["b", "\\n", "a", "c", "d", "<unk>"]


def test_word_vocabulary_can_be_cut_by_count_and_by_size():
    texts = ["b b b a a c\nd\n"]
    assert Tokenizer.train_words(texts, min_count=2).vocab_size == 4  # b, a, <eos>, <unk>
    small = Tokenizer.train_words(texts, vocab_size=3)
    assert small.vocab_size == 3
    assert [small.token_text(i) for i in small.encode("b a\n")] == ["b", "<unk>", "\\n"]
    with pytest.raises(ValueError, match="found vocab_size 1"):
        Tokenizer.train_words(texts, vocab_size=1)


def test_word_decoding_is_inverse_up_to_white_space(words):
    assert words.decode(words.encode(TEXT)).split("\n") == [" ".join(line.split()) for line in TEXT.split("\n")]


def test_bpe_loses_nothing(bpe):
    for text in (TEXT, "unseen \U0001f600 \x00\x07 text", "", " ", "\n"):
        assert bpe.decode(bpe.encode(text)) == text
    assert bpe.vocab_size > 257
    assert bpe.token_text(bpe.bos_id) == "<|endoftext|>"


def test_training_is_deterministic():
    assert Tokenizer.train_bpe([TEXT], 300).fingerprint == Tokenizer.train_bpe([TEXT], 300).fingerprint
    assert Tokenizer.train_bpe([TEXT], 300).fingerprint != Tokenizer.train_bpe([TEXT], 301).fingerprint


def test_bpe_needs_room_for_all_bytes():
    with pytest.raises(ValueError, match="found vocab_size 256"):
        Tokenizer.train_bpe([TEXT], 256)


def test_special_tokens_in_a_text_are_only_text(bpe):
    text = "a<|endoftext|>b"
    ids = bpe.encode(text)
    assert bpe.bos_id not in ids
    assert bpe.decode(ids) == text


def test_every_byte_token_is_printable(bpe, words):
    for tokenizer in (bpe, words):
        shown = [tokenizer.token_text(i) for i in range(tokenizer.vocab_size)]
        assert all(text.isprintable() and text for text in shown)
    assert "<0xFF>" in [bpe.token_text(i) for i in range(bpe.vocab_size)]


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_save_and_load_give_the_same_tokenizer(kind, request, tmp_path):
    tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path)
    tokenizer.save(tmp_path / "own_name.json")
    for path in (tmp_path, tmp_path / "tokenizer.json", tmp_path / "own_name.json"):
        loaded = Tokenizer.load(path)
        assert type(loaded) is type(tokenizer)
        assert (loaded.fingerprint, loaded.vocab_size, loaded.bos_id) == (
            tokenizer.fingerprint,
            tokenizer.vocab_size,
            tokenizer.bos_id,
        )
        assert np.array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "found list"),
        ('{"format": "knnlm-words-9", "words": []}', "knnlm-words-9"),
        ('{"format": "knnlm-words-1", "words": [1]}', "list of words"),
        ('{"format": "knnlm-words-1", "words": ["a", "a", "<eos>", "<unk>"]}', "damaged"),
        ('{"format": "knnlm-words-1", "words": ["a"]}', "damaged"),
        ('{"model": 3}', "Hugging Face tokenizer"),
    ],
)
def test_a_damaged_file_is_a_value_error(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(tmp_path)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a tokenizer at .*tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_foreign_tokenizer_without_end_mark_is_refused(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"<\|endoftext\|>.*found none"):
        Tokenizer.load(tmp_path)


def test_offsets_cover_what_was_encoded(bpe, words):
    for tokenizer in (bpe, words):
        ids, offsets = tokenizer.encode_with_offsets(TEXT)
        assert np.array_equal(ids, tokenizer.encode(TEXT))
        assert offsets.shape == (len(ids), 2)
        assert (np.diff(offsets[:, 0]) >= 0).all()
    shown = [TEXT[a:b] for a, b in words.encode_with_offsets(TEXT)[1]]
    assert shown == TEXT.replace("\n", " \0 ").replace("\0", "\n").split(" ") or "\n" in shown
    assert [s for s in shown if s != "\n"] == TEXT.split()
    assert words.encode_with_offsets("")[1].shape == bpe.encode_with_offsets("")[1].shape == (0, 2)


def long_text(characters):
    rng = random.Random(0)
    parts = [
        "word",
        "The",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        ".",
        "...",
        "don't",
        "12345",
        "é",
        "日本",
        "\u00a0",
        "!?\n",
        "x y",
    ]
    text = "".join(rng.choice(parts) + rng.choice(["", " "]) for _ in range(characters // 3))
    return text[:characters]


def llama3_like():
    """A backend with the split rule of GPT-4 and Llama 3, trained on the test text."""
    rule = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(rule), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.train_from_iterator(
        [long_text(5000)],
        tokenizers.trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return backend


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "words"])
def test_a_long_text_has_the_ids_of_the_text_encoded_at_once(kind):
    text = long_text(150_000)
    if kind == "words":
        tokenizer = Tokenizer.train_words([text[:50_000]])
        whole = [tokenizer.encode(w)[0] for w in text.replace("\n", " <eos> ").split()]
    else:
        backend = (
            llama3_like()
            if kind == "llama3"
            else tokenizers.Tokenizer.from_str(Tokenizer.train_bpe([text[:50_000]], 400).to_json())
        )
        whole = backend.encode(text).ids
        tokenizer = BackendTokenizer(backend)
        assert tokenizer._cutting.places is not None
    assert np.array_equal(tokenizer.encode(text), whole)
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert np.array_equal(ids, whole)
    assert offsets[-1, 1] >= len(text.rstrip())


def test_tokenizers_that_cannot_be_cut_are_not_cut(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.normalizer = tokenizers.normalizers.Prepend("▁")
    backend.train_from_iterator(["a b"], tokenizers.trainers.BpeTrainer(special_tokens=["</s>"], show_progress=False))
    tokenizer = BackendTokenizer(backend)
    text = "a b " * 40_000
    assert np.array_equal(tokenizer.encode(text), backend.encode(text).ids)


def test_a_line_without_white_space_is_encoded_in_bounded_pieces(bpe):
    text = "ab" * 550_000
    assert max(len(piece) for piece in pieces(text)) <= 1 << 20
    assert bpe.decode(bpe.encode(text)) == text


def test_a_long_word_is_one_word(words):
    assert words.encode("ab" * 550_000 + " the\n").tolist() == words.encode("zz the\n").tolist()


@given(st.text(max_size=80))
@settings(deadline=None, max_examples=50)
def test_word_ids_and_offsets_agree_on_any_text(text):
    tokenizer = Tokenizer.train_words(["a b c\n"])
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert np.array_equal(ids, tokenizer.encode(text))
    assert len(ids) == count_words(text)
    assert [text[a:b] for a, b in offsets if text[a:b] != "\n"] == text.split()


def test_fingerprint_does_not_depend_on_layout(words, tmp_path):
    data = json.loads(words.to_json())
    (tmp_path / "tokenizer.json").write_text(json.dumps(dict(reversed(data.items())), indent=4))
    assert Tokenizer.load(tmp_path).fingerprint == words.fingerprint
