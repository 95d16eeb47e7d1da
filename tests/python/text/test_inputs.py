"""What is given as a text, and what is said where it is none."""

from __future__ import annotations

from pathlib import PurePath

import numpy as np
import pytest
import torch
from hf_folders import KINDS, save_folder, tokenizer
from tiny_lm import Doc, TinyLoaded, texts, tiny

from knnlm import KNNLM, load_model
from knnlm.build.dump import dump
from knnlm.model.key_spec import KeySpec
from knnlm.model.keys import iterate
from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.reference import BruteForceStore
from knnlm.text.inputs import TokenDocument, as_document, token_ids
from knnlm.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def lm():
    loaded = tiny()
    store = BruteForceStore(16)
    dump(loaded, texts(), store)
    return KNNLM(loaded, store)


WRONG = [
    (None, TypeError, "expected a string, token ids or a document, found NoneType"),
    (b"abc", TypeError, r"found bytes; decode them first: text\.decode\(\)"),
    (PurePath("note.txt"), TypeError, "found Pure.*Path; give what is in it"),
    (["abc", "abd"], TypeError, "expected one text, found a list of them: call once for each"),
    ({"input_ids": [1, 2]}, TypeError, "found dict; give its input_ids"),
    ("ab\ud800c", ValueError, r"lone surrogate U\+D800 at position 2"),
    ([1.5, 2.0], ValueError, "whole numbers, found shape .* of float64"),
    ([[1, 2, 3]], ValueError, "give one row of them"),
    (torch.tensor([[1, 2]]), ValueError, r"found shape \(1, 2\).*give one row"),
    ([-1, 2], ValueError, "expected token ids from 0 to 29, found -1"),
    (np.array([-1, 2]), ValueError, "found -1"),
    ([1, 30], ValueError, "found 30; use the model's own tokenizer"),
    (3, ValueError, "expected token ids of shape"),
]


@pytest.mark.parametrize(("text", "kind", "match"), WRONG)
@pytest.mark.parametrize("use", ["perplexity", "log_probs", "explain", "generate"])
def test_what_is_no_text_is_said(lm, use, text, kind, match):
    with pytest.raises(kind, match=match):
        getattr(lm, use)(text)


def test_what_is_a_text(lm):
    ids = lm.loaded.tokenizer.encode("abcd")
    expected = lm.log_probs("abcd")
    for text in (ids, ids.tolist(), tuple(ids.tolist()), torch.tensor(ids.tolist()), Doc("a", "abcd")):
        np.testing.assert_array_equal(lm.log_probs(text), expected)
    np.testing.assert_array_equal(lm.log_probs(TokenDocument("a", ids)), expected)
    assert lm.generate(ids, max_new_tokens=4) == lm.generate("abcd", max_new_tokens=4)
    assert len(token_ids([], lm.loaded.tokenizer)) == 0
    assert lm.perplexity("abcd", words=True) > 1
    with pytest.raises(ValueError, match="words: expected a text whose words can be counted"):
        lm.perplexity(ids, words=True)


def test_ids_that_begin_with_the_document_start_are_scored_without_it(lm):
    ids = lm.loaded.tokenizer.encode("abcd")
    np.testing.assert_array_equal(lm.log_probs([0, *ids]), lm.log_probs(ids))
    assert as_document([0, 0, 1], lm.loaded.tokenizer).tokens.tolist() == [0, 1]
    assert lm.generate([0, *ids], max_new_tokens=4) == lm.generate(ids, max_new_tokens=4)


def test_several_documents(lm):
    both = lm.evaluate([Doc("a", "abcd"), "abce"])
    assert both.tokens == 8
    for wrong, error, says in (
        ("abcd", FileNotFoundError, r"found nothing at 'abcd'; a string alone is a path, write \[text\] for one text"),
        (b"abcd", TypeError, "found bytes"),
        (None, TypeError, "found NoneType"),
        (Doc("a", "abcd"), TypeError, r"found Doc; write \[document\] for one"),
        ([{"text": "abcd"}], TypeError, "found a dict with 'text' as number 1"),
    ):
        with pytest.raises(error, match=says):
            lm.evaluate(wrong)
    with pytest.raises(TypeError, match="NoneType"):
        lm.evaluate([None])


def test_a_document_whose_text_no_tokenizer_can_read_is_named():
    with pytest.raises(ValueError, match=r"document 'odd': .*U\+D83D"):
        list(iterate(tiny(), [Doc("fine", "abc"), Doc("odd", "a\ud83d")]))
    with pytest.raises(ValueError, match=r"document 'odd'"):
        list(iterate(tiny(), [Doc("odd", "a letter: É")]))
    with pytest.raises(TypeError, match="expected documents with a name and a text or tokens, found int"):
        list(iterate(tiny(), [3]))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("model/", None), r"model: expected a model, found its name 'model/': KNNLM.from_pretrained loads it"),
        ((tiny(), "store/"), r"datastore: expected a datastore, found a path: KNNLM\.open\('store/'\) opens it"),
        ((tiny(), [1, 2]), "datastore: expected something with search.*found a list"),
        ((3, None), "model: expected what load_model returns or a torch module, found a int"),
    ],
)
def test_what_is_no_model_or_datastore_is_said(given, match):
    with pytest.raises(TypeError, match=match):
        KNNLM(*given, tokenizer=None if given[0] != 3 else tiny().tokenizer)


def copying(loaded, text, window=256):
    """A KNNLM that goes on as the text does: the one nearest key, alone, is that of the same place."""
    d = loaded.model.config.hidden_size if hasattr(loaded.model.config, "hidden_size") else loaded.model.config.d_model
    store = BruteForceStore(d)
    dump(loaded, [Doc("a", text)], store, keys=KeySpec(window=window, key_dtype="float32"))
    return KNNLM(loaded, store, lambda_=1.0, temperature=1e-3, k=1)


LONG = "Naïve Straße – 中文和日本語 👩\u200d👧 дом, é̂ and so on; done. "


def test_characters_of_several_tokens_come_whole():
    torch.manual_seed(0)
    words = Tokenizer.train_bpe(["plain words only"], 260)  # every other character is several tokens
    model = TransformerLM(TransformerConfig(words.vocab_size, d_model=16, n_layers=2, n_heads=2, context=512)).eval()
    lm = copying(TinyLoaded(model, words, context=512), LONG, window=512)
    count = len(words.encode(LONG))
    assert count > len(LONG) + 20
    pieces = list(lm.stream("", max_new_tokens=count))
    assert "".join(pieces) == LONG
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) == len(LONG)  # as soon as they are whole
    # A prompt may end in the middle of a character, and the text as well.
    ids = words.encode(LONG).tolist()
    at = next(i for i in range(5, count) if words.decode(ids[:i]).endswith("\ufffd"))
    whole = words.decode(ids[:at]).rstrip("\ufffd")
    assert whole + lm.generate(ids[:at], max_new_tokens=count - at) == LONG
    assert lm.generate(ids[: at - 1], max_new_tokens=1).endswith("\ufffd")


@pytest.mark.parametrize("kind", KINDS)
def test_white_space_joins_prompt_and_text(kind, tmp_path):
    folder = save_folder(tmp_path / "model", tokenizer(kind), max_position_embeddings=256)
    loaded = load_model(folder, device="cpu")
    lm = copying(loaded, "the cat sat on the mat and the dog sat on the cat")
    text = lm.generate("the cat sat on", max_new_tokens=40, stop=())
    assert text.startswith(" the mat and the dog")
    assert "".join(lm.stream("the cat sat on", max_new_tokens=40, stop=())) == text
    words = loaded.tokenizer
    known = words.decode(words.encode(LONG))
    lm = copying(loaded, LONG)
    assert "".join(lm.stream("", max_new_tokens=len(words.encode(LONG)), stop=())).strip() == known.strip()
